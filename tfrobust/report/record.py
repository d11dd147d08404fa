"""The files of a finished run, read and checked: config.yaml, history.csv, eval.json and others."""

import csv
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from tfrobust.errors import UserError
from tfrobust.flags import Flags
from tfrobust.record import Record
from tfrobust.report.text import NOTHING

T = TypeVar("T")


@dataclass(frozen=True)
class Probes:
    """A few evaluated images, clean and attacked (probes.npz).

    Attributes:
        image, adversarial: float32 [n, H, W, C] in [0, 1].
        label, clean_prediction, adversarial_prediction: integers [n].
        index: integers [n], each image's position in the evaluated split.
        attack: the label of the attack.
        class_names: strings [K].
    """

    image: np.ndarray
    adversarial: np.ndarray
    label: np.ndarray
    clean_prediction: np.ndarray
    adversarial_prediction: np.ndarray
    index: np.ndarray
    attack: str
    class_names: list[str]


@dataclass(frozen=True)
class Extremes:
    """The training images with the smallest and the largest values of a per-example table.

    Attributes:
        name: what the values are, such as "radius".
        image: float32 [2 n, H, W, C] in [0, 1], by rising value.
        label: integers [2 n].
        value: float32 [2 n], the values of these images.
        values: float32 [N], the values of all training images.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    value: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run folder.

    Attributes:
        config: the resolved config. An evaluation without config.yaml gets the names of its folder
            and of its data.
        history: one mapping per epoch, column -> number. An empty cell is an absent key, and
            `finished_at` is in seconds. Empty if nothing was trained.
        evaluation: eval.json.
        probes: None if the run stored no images.
        extremes: None if the method has no per-example table.
        valley: the losses "clean", "highest" and "lowest", each [n], around test images.
        flags: flags.npz.
        landscape: `axis` [S]; `loss` and `margin` [n, S, S] around n images; their `index` and
            `label` [n]; and `stands` [n], true for an image that withstands every attack.
    """

    config: dict[str, Any]
    history: list[dict[str, float]]
    evaluation: Record
    probes: Probes | None
    extremes: Extremes | None = None
    valley: dict[str, np.ndarray] | None = None
    flags: Flags | None = None
    landscape: dict[str, np.ndarray] | None = None

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number if probes.npz does not name it."""
        names = self.probes.class_names if self.probes else []
        return names[label] if 0 <= label < len(names) else str(label)


def load_run(run: Path) -> RunRecord:
    """Read the files of one run folder.

    Raises:
        UserError: eval.json is missing, or one of the files is damaged. The line names the file.
    """
    run = Path(run)
    config_file = run / "config.yaml"
    history_file, probes_file = run / "history.csv", run / "probes.npz"
    extremes_file, valley_file = run / "extremes.npz", run / "valley.npz"
    landscape_file = run / "landscape.npz"
    evaluation = Record.load(run)
    data = evaluation.data.name if evaluation.data else NOTHING
    config = {"name": run.resolve().name, "data": {"name": data}}
    return RunRecord(
        config=_read(config_file, _config) if config_file.is_file() else config,
        history=_read(history_file, _history) if history_file.is_file() else [],
        evaluation=evaluation,
        probes=_read(probes_file, _probes) if probes_file.is_file() else None,
        extremes=_read(extremes_file, _extremes) if extremes_file.is_file() else None,
        valley=_read(valley_file, _valley) if valley_file.is_file() else None,
        flags=Flags.load(run) if (run / "flags.npz").is_file() else None,
        landscape=_read(landscape_file, _landscape) if landscape_file.is_file() else None,
    )


def _read(path: Path, parse: Callable[[Path], T]) -> T:
    try:
        return parse(path)
    # A damaged file raises whatever its parser raises (zlib, zipfile, yaml, csv, ...).
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: expected a readable file, received {reason}") from error


def _config(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    _fields(config, {"name": str}, "config")
    _fields(config.get("data"), {"name": str}, "data")
    if config.get("method") is not None:
        _fields(config["method"], {"name": str}, "method")
    paper = config.get("paper") or {}
    _fields(paper, {}, "paper")
    for key in paper:
        if key != "source":
            _fraction(paper, key, "paper")
    return dict(config)


def _history(path: Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines, restkey="more cells than columns")
        rows = [
            {key: _cell(key, text, reader.line_num) for key, text in row.items() if text}
            for row in reader
        ]
    for place, row in enumerate(rows):
        if "epoch" not in row:
            raise ValueError(f"row {place + 1} without an epoch")
    return rows


def _cell(column: str, text: str, line: int) -> float:
    try:
        return float(text)
    except (TypeError, ValueError) as error:
        with suppress(TypeError, ValueError):
            if column == "finished_at":
                return datetime.fromisoformat(text).timestamp()
        raise ValueError(f"{text!r} in column {column}, line {line}") from error


def _probes(path: Path) -> Probes:
    with np.load(path, allow_pickle=False) as arrays:
        probes = Probes(
            image=arrays["image"],
            adversarial=arrays["adversarial"],
            label=arrays["label"],
            clean_prediction=arrays["clean_prediction"],
            adversarial_prediction=arrays["adversarial_prediction"],
            index=arrays["index"],
            attack=str(arrays["attack"]),
            class_names=[str(name) for name in arrays["class_names"]],
        )
    shape = probes.image.shape
    if len(shape) != 4 or probes.adversarial.shape != shape:
        raise ValueError(f"images of shape {shape} and {probes.adversarial.shape}")
    for key in ("label", "clean_prediction", "adversarial_prediction", "index"):
        if getattr(probes, key).shape != shape[:1]:
            raise ValueError(f"{key} of shape {getattr(probes, key).shape} for {shape[0]} images")
    return probes


def _extremes(path: Path) -> Extremes:
    with np.load(path, allow_pickle=False) as arrays:
        name, image = str(arrays["name"]), arrays["image"]
        label, value, values = (arrays[key] for key in ("label", "value", "values"))
    if image.ndim != 4 or label.shape != (len(image),) or value.shape != (len(image),):
        raise ValueError(f"images of shape {image.shape}, {label.shape} labels, {value.shape}")
    return Extremes(name, image, label, value, values)


def _valley(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        losses = {key: arrays[key] for key in ("clean", "highest", "lowest")}
    if len({part.shape for part in losses.values()}) > 1 or losses["clean"].ndim != 1:
        raise ValueError(f"losses of shapes {[part.shape for part in losses.values()]}")
    return losses


def _landscape(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        names = ("axis", "loss", "margin", "index", "label", "stands")
        landscape = {name: arrays[name] for name in names}
    (size,), (n,) = landscape["axis"].shape, landscape["label"].shape
    shapes = {"loss": (n, size, size), "margin": (n, size, size), "index": (n,), "stands": (n,)}
    for name, shape in shapes.items():
        if landscape[name].shape != shape:
            raise ValueError(f"{name} of shape {landscape[name].shape}, expected {shape}")
    return landscape


def _fields(value: Any, fields: Mapping[str, Any], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {value!r} where a mapping was expected")
    for key, kind in fields.items():
        if not isinstance(value.get(key), kind):
            raise ValueError(f"{where}.{key}: {value.get(key)!r}")


def _fraction(value: Mapping[str, Any], key: str, where: str) -> None:
    number = value.get(key)
    if not isinstance(number, int | float) or not 0 <= number <= 1:
        raise ValueError(f"{where}.{key}: {number!r} where a fraction in [0, 1] was expected")
