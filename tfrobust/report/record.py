"""The files of a finished run, read and checked: config.yaml, history.csv, eval.json and others."""

import csv
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from tfrobust.errors import UserError, one_line, user_path
from tfrobust.flags import Flags, headline, subsets
from tfrobust.record import ExportRow, ExportTable, Record, RequirementRow
from tfrobust.report.text import NOTHING

T = TypeVar("T")


@dataclass(frozen=True)
class Probes:
    """A few evaluated images, clean and attacked (probes.npz).

    Attributes:
        image, adversarial: The images, float32 [n, H, W, C] in [0, 1].
        label, clean_prediction, adversarial_prediction: Classes, int [n].
        index: The position of each image in the evaluated split, int [n].
        attack: The label of the attack.
        class_names: The names of the K classes.
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
        name: The name of the table, such as "radius".
        image: The images by rising value, float32 [2 n, H, W, C] in [0, 1].
        label: Their classes, int [2 n].
        value: Their values, float32 [2 n].
        values: The values of all training images, float32 [N].
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
        config: The resolved config. Without config.yaml it has only the name of the folder and the
            name of the data.
        history: A mapping for each epoch, column -> number. An empty cell is an absent key, and
            `finished_at` is in seconds. Empty if nothing was trained.
        evaluation: The contents of eval.json.
        probes: The contents of probes.npz; None if the run stored no images.
        extremes: The contents of extremes.npz; None if the method has no per-example table.
        valley: The losses "clean", "highest" and "lowest" around test images, each [n].
        flags: The contents of flags.npz.
        landscape: The positions "axis" [S]; "loss" and "margin" [n, S, S] around n images; their
            "index" and "label" [n]; and "stands" [n], true if an image withstands every attack.
        measured_exports: The contents of exports.json.
    """

    config: dict[str, Any]
    history: list[dict[str, float]]
    evaluation: Record
    probes: Probes | None
    extremes: Extremes | None = None
    valley: dict[str, np.ndarray] | None = None
    flags: Flags | None = None
    landscape: dict[str, np.ndarray] | None = None
    measured_exports: Sequence[ExportRow] = ()

    @property
    def exports(self) -> Sequence[ExportRow]:
        """The rows of exports.json; the folder may keep those of a former config."""
        return self.measured_exports if self.config.get("export") else ()

    @property
    def requirements(self) -> list[RequirementRow]:
        """The verdicts on the requirements; eval.json may keep those of a former config."""
        return self.evaluation.requirements if self.config.get("require") else []

    @property
    def missed(self) -> list[str]:
        """A line for each requirement that is missed."""
        return [f"{row.name}: {row.text}" for row in self.requirements if not row.met]

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number if the record does not name it."""
        data, probes = self.evaluation.data, self.probes
        # Earlier records have the names in probes.npz, which is written for images alone.
        names = (data.class_names if data else []) or (probes.class_names if probes else [])
        return names[label] if 0 <= label < len(names) else str(label)


def load_run(folder: str | Path) -> RunRecord:
    """Read the files of a run folder.

    Raises:
        UserError: If eval.json is missing or a file is damaged; the message names the file.
    """
    folder = user_path("folder", folder)
    evaluation = Record.load(folder)
    flags = Flags.load(folder) if (folder / "flags.npz").is_file() else None
    if flags is not None and (line := disagreement(evaluation, flags)):
        raise UserError(f"{folder / 'eval.json'}: {line}")
    data = evaluation.data.name if evaluation.data else NOTHING
    config = {"name": folder.resolve().name, "data": {"name": data}}
    return RunRecord(
        config=_read(folder / "config.yaml", _config) or config,
        history=_read(folder / "history.csv", _history) or [],
        evaluation=evaluation,
        probes=_read(folder / "probes.npz", _probes),
        extremes=_read(folder / "extremes.npz", _extremes),
        valley=_read(folder / "valley.npz", _valley),
        flags=flags,
        landscape=_read(folder / "landscape.npz", _landscape),
        measured_exports=_read(folder / "exports.json", _exports) or (),
    )


def disagreement(evaluation: Record, flags: Flags) -> str | None:
    """Return how the accuracies of eval.json differ from the flags; None if they do not.

    One of the files was edited, or copied from another run.
    """
    clean = flags.right["clean"]
    rows = [row for row in evaluation.attacks if row.name in flags.right]
    rights = [flags.right[row.name] for row in rows]
    # What eval.json has of each accuracy, and the flags that it is of.
    figures = [("clean", evaluation.clean_accuracy, evaluation.examples, clean)]
    for row, right in zip(rows, rights, strict=True):
        figures.append((row.name, row.robust_accuracy, row.examples, right))
    if evaluation.schema_version and len(rows) == len(evaluation.attacks):
        share, count = evaluation.robust_accuracy, evaluation.worst_case_examples
        if share is not None and count is not None:
            figures.append(("worst case", share, count, headline(rights, clean)))
        for norm in evaluation.norms:
            own = [flags.right[row.name] for row in rows if row.norm == norm.norm]
            name = f"{norm.norm}: worst case"
            figures.append((name, norm.robust_accuracy, norm.examples, headline(own, clean)))
        smaller = subsets(rights, clean)
        for subset in evaluation.subsets:
            count, share = subset.examples, subset.robust_accuracy
            if count not in smaller:
                return f"subsets: expected numbers of images of {[*smaller]}, received {count}"
            figures.append((f"first {count} images", share, count, smaller[count]))
    for name, share, count, right in figures:
        found = None
        if count != len(right):
            found = f"expected {len(right)} images, as flags.npz has them, received {count}"
        elif not np.isclose(share, right.mean(), rtol=0, atol=1e-6):
            found = f"expected {right.mean():.2%}, as flags.npz has it, received {share:.2%}"
        if found:
            return f"{name}: {found}; evaluation.rerun=true attacks again"
    return None


def _read(path: Path, parse: Callable[[Path], T]) -> T | None:
    """Return the contents of a file, or None if there is no such file.

    Raises:
        UserError: If the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return parse(path)
    except Exception as error:  # a parser may raise anything (zlib, zipfile, yaml, csv, ...)
        reason = one_line(error, None)
        line = f"expected a readable file, received {reason}; remove it to go on without it"
        raise UserError(f"{path}: {line}") from error


def _config(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check_section(config, "config")
    _check_section(config.get("data"), "data")
    if config.get("method") is not None:
        _check_section(config["method"], "method")
    seed = config.get("seed")
    if not isinstance(seed, int | None):
        raise ValueError(f"seed: {seed!r} where an int was expected")
    paper = config.get("paper") or {}
    if not isinstance(paper, Mapping):
        raise ValueError(f"paper: {paper!r} where a mapping was expected")
    for key, value in paper.items():
        is_fraction = isinstance(value, int | float) and 0 <= value <= 1
        if key != "source" and not is_fraction:
            raise ValueError(f"paper.{key}: {value!r} where a fraction in [0, 1] was expected")
    return dict(config)


def _exports(path: Path) -> list[ExportRow]:
    return ExportTable.model_validate_json(path.read_text(encoding="utf-8-sig")).rows


def _history(path: Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8-sig") as lines:  # spreadsheets put a mark in front
        reader = csv.DictReader(lines, restkey="more cells than columns")
        rows = [
            {key: _cell(key, text, reader.line_num) for key, text in row.items() if text}
            for row in reader
        ]
    for place, row in enumerate(rows):
        if not np.isfinite(row.get("epoch", np.nan)):
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


def _arrays(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the arrays of these names in an .npz file."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names}


def _probes(path: Path) -> Probes:
    arrays = _arrays(path, [field.name for field in fields(Probes)])
    arrays["attack"] = str(arrays["attack"])
    arrays["class_names"] = [str(name) for name in arrays["class_names"]]
    probes = Probes(**arrays)
    shape = probes.image.shape
    if len(shape) != 4 or probes.adversarial.shape != shape:
        raise ValueError(f"images of shape {shape} and {probes.adversarial.shape}")
    for key in ("label", "clean_prediction", "adversarial_prediction", "index"):
        if getattr(probes, key).shape != shape[:1]:
            raise ValueError(f"{key} of shape {getattr(probes, key).shape} for {shape[0]} images")
    return probes


def _extremes(path: Path) -> Extremes:
    arrays = _arrays(path, [field.name for field in fields(Extremes)])
    image, label, value = arrays["image"], arrays["label"], arrays["value"]
    if image.ndim != 4 or label.shape != (len(image),) or value.shape != (len(image),):
        raise ValueError(f"images of shape {image.shape}, {label.shape} labels, {value.shape}")
    return Extremes(**arrays | {"name": str(arrays["name"])})


def _valley(path: Path) -> dict[str, np.ndarray]:
    losses = _arrays(path, ("clean", "highest", "lowest"))
    if len({part.shape for part in losses.values()}) > 1 or losses["clean"].ndim != 1:
        raise ValueError(f"losses of shapes {[part.shape for part in losses.values()]}")
    return losses


def _landscape(path: Path) -> dict[str, np.ndarray]:
    landscape = _arrays(path, ("axis", "loss", "margin", "index", "label", "stands"))
    (size,), (n,) = landscape["axis"].shape, landscape["label"].shape
    shapes = {"loss": (n, size, size), "margin": (n, size, size), "index": (n,), "stands": (n,)}
    for name, shape in shapes.items():
        if landscape[name].shape != shape:
            raise ValueError(f"{name} of shape {landscape[name].shape}, expected {shape}")
    return landscape


def _check_section(section: Any, where: str) -> None:
    """Raise a ValueError unless a section is a mapping whose name is text."""
    if not isinstance(section, Mapping):
        raise ValueError(f"{where}: {section!r} where a mapping was expected")
    if not isinstance(section.get("name"), str):
        raise ValueError(f"{where}.name: {section.get('name')!r}")
