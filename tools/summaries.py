"""The summaries of runs: docs/results/NAME.json, or docs/results/SUITE/NAME.json in a suite."""

import functools
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import config as configs
from tfrobust.errors import UserError
from tfrobust.evaluation import Record
from tfrobust.flags import Flags
from tfrobust.io import write_text
from tfrobust.overfitting import ROBUST, overfitted
from tfrobust.report import (
    AccuracyRow,
    accuracy_rows,
    load_run,
    series_over_time,
    summarise_training,
)

PLACE_KEYS = {"dir", "path", "init_from"}  # the keys of paths


def add_run(folder: Path, results: Path, name: str | None = None) -> Path:
    """Write the summary of a finished run.

    Args:
        folder: The folder of the run.
        results: The folder of the summaries.
        name: The name of the summary, by default the run's.

    Returns:
        The summary's file: `results`/NAME.json, or NAME_seedN.json for a second seed of a run.

    Raises:
        UserError: If the run is damaged or its evaluation is not finished.
    """
    record = load_run(folder)
    config, name = record.config, name or record.config["name"]
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"{folder}: expected a name that can be a file name, received {name!r}")
    if pending := record.evaluation.pending:
        raise UserError(f"{folder}: expected a finished evaluation; not run: {', '.join(pending)}")
    command = config.get("command") or f"python -m pipelines.run {config['name']}"
    summary = {
        "name": name,
        "command": without_places_in_command(command),
        "note": config.get("note"),
        "config": without_places(
            {k: v for k, v in config.items() if k not in ("command", "note")} | {"name": name}
        ),
        "evaluation": without_places(record.evaluation.as_json()),
        "training": asdict(summarise_training(record.history, record.config))
        | curves_of(record.history),
        "flags": None if record.flags is None else packed(record.flags),
    }
    path = results / f"{name}.json"
    if path.is_file() and read_summary(path)["config"].get("seed") != config.get("seed"):
        path = results / f"{name}_seed{config.get('seed')}.json"
    write_text(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return path


def curves_of(history: Sequence[Mapping[str, float]]) -> dict[str, list[Any]]:
    """Return curves over the seconds of training, and the seconds of catastrophic overfitting."""
    shown = set(overfitted(history))
    overfitting = [row for row in history if row["epoch"] in shown]
    return {
        "robust_over_time": series_over_time(history, ROBUST),
        "jacobian_over_time": series_over_time(history, "val_jacobian"),
        "overfitted_seconds": [at for at, _ in series_over_time(overfitting, ROBUST)],
    }


def packed(flags: Flags) -> dict[str, Any]:
    """Return which images are right, eight in a byte, and a digest of the images, in hexadecimal.

    Two summaries with the same digest can be compared image by image, by `unpacked`.
    """
    images = None if flags.digest is None else hashlib.sha256(flags.digest.tobytes()).hexdigest()
    right = {name: np.packbits(each).tobytes().hex() for name, each in flags.right.items()}
    return {"images": images, "right": right}


def unpacked(summary: Mapping[str, Any], column: str) -> np.ndarray:
    """Return whether each image is right under an attack, or clean: bool [n]."""
    row, bits = rows_of(summary)[column], bytes.fromhex(summary["flags"]["right"][column])
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=row.examples).astype(bool)


def is_place(text: Any) -> bool:
    """Return whether a value is a path on some machine."""
    return isinstance(text, str) and re.match(r"[/~\\]|\.\.?/|[A-Za-z]:\\", text) is not None


def without_places(value: Any) -> Any:
    """Return a value without its entries that are paths on the machine of the run."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if k not in PLACE_KEYS and not is_place(v)}
        return {key: without_places(entry) for key, entry in kept.items()}
    if isinstance(value, list):
        return [without_places(entry) for entry in value if not is_place(entry)]
    return value


def without_places_in_command(command: str) -> str:
    """Return the command without `--set key=PATH`, as paths differ between machines."""
    kept: list[str] = []
    for word in shlex.split(command):
        key, _, value = word.partition("=")
        if kept[-1:] == ["--set"] and (key.split(".")[-1] in PLACE_KEYS or is_place(value)):
            kept.pop()
        else:
            kept.append(word)
    return shlex.join(kept)


def read_summary(path: Path) -> dict[str, Any]:
    """Return a summary. Raises UserError if its file is damaged."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        for key in ("name", "command", "config", "evaluation", "training"):
            summary[key]
        summary["config"]["data"]["name"]
        summary["config"]["paper"] = paper_of(summary)
        summary["evaluation"] = Record.parse(summary["evaluation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected a run summary, received {error!r}") from error
    return summary


def paper_of(summary: Mapping[str, Any]) -> Any:
    """Return the paper's figures in the config of this name or, if there is none, of the run."""
    return config_named(summary["name"]).get("paper", summary["config"].get("paper"))


@functools.cache
def config_named(name: str) -> Mapping[str, Any]:
    """Return the config of this name, empty if there is none."""
    return configs.load(configs.find(name)) if name in configs.available() else {}


def seed_of(summary: Mapping[str, Any]) -> Any:
    return summary["config"].get("seed")


def full_name(summary: Mapping[str, Any]) -> str:
    """Return the name of a run and, before it, its suite: digits_methods/digits_adv_seed-0."""
    return "/".join(filter(None, (summary["suite"], summary["name"])))


def rows_of(summary: Mapping[str, Any]) -> dict[str, AccuracyRow]:
    return {row.name: row for row in accuracy_rows(summary["config"], summary["evaluation"])}


def name_without_seed(name: str) -> str:
    """Return the name of a run without its seed.

    It is _seedN at the end or, in a suite, _seed-N anywhere: adv_seed1 is adv, and
    adv_seed-1_label_smoothing-0.1 is adv_label_smoothing-0.1.
    """
    return re.sub(r"_seed(\d+$|-\d+(?=_|$))", "", name)


def summaries_of(docs: Path) -> list[dict[str, Any]]:
    """Return the summaries in the folder results of `docs`, sorted by name and seed.

    Each has the key "suite": the name of its folder in results, or None.
    """
    results, summaries = docs / "results", []
    for path in sorted([*results.glob("*.json"), *results.glob("*/*.json")]):
        if path.name != "leaderboard.json":
            suite = None if path.parent == results else path.parent.name
            summaries.append(read_summary(path) | {"suite": suite})
    return sorted(summaries, key=lambda each: (name_without_seed(each["name"]), seed_of(each) or 0))


def by_data(docs: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the summaries of each data set by its name, then those of each suite by its name."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for summary in summaries_of(docs):
        key = (summary["suite"] or "", summary["config"]["data"]["name"])
        groups.setdefault(key, []).append(summary)
    return {suite or data: groups[suite, data] for suite, data in sorted(groups)}
