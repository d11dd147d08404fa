"""The trials of a search: trials.csv, the best trial and the Pareto front."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfrobust.errors import UserError
from tfrobust.io import write_text
from tfrobust.report.summary import pareto

RESULTS = ("epochs", "val_accuracy", "val_robust_accuracy", "status", "pareto", "reason")


@dataclass(frozen=True)
class SearchTrial:
    """One trial of a search.

    Attributes:
        name: The name of the trial's folder.
        values: Searched key -> the trial's value.
        status: "running", "completed" or "failed".
        epochs: The number of trained epochs.
        clean, robust: Validation accuracies in [0, 1] at the epoch whose weights are kept; NaN
            unless the trial is completed.
        reason: Why the trial failed.
    """

    name: str
    values: Mapping[str, Any]
    status: str
    epochs: int = 0
    clean: float = math.nan
    robust: float = math.nan
    reason: str = ""


def completed(trials: Sequence[SearchTrial]) -> list[SearchTrial]:
    """Return the completed trials."""
    return [trial for trial in trials if trial.status == "completed"]


def unbeaten(trials: Sequence[SearchTrial]) -> list[SearchTrial]:
    """Return the Pareto front of clean and robust accuracy, by rising clean accuracy."""
    candidates = completed(trials)
    accuracies = [(trial.clean, trial.robust) for trial in candidates]
    front = [candidates[position] for position in pareto(accuracies)]
    return sorted(front, key=lambda trial: (trial.clean, trial.name))


def best_trial(trials: Sequence[SearchTrial], min_clean: float | None) -> SearchTrial | None:
    """Return the trial with the highest robust accuracy among those with enough clean accuracy.

    Of equally robust trials it is the one with the highest clean accuracy, and the first of these.
    None if no completed trial reaches `min_clean`.
    """
    candidates = [trial for trial in completed(trials) if trial.clean >= (min_clean or 0.0)]
    return max(candidates, key=lambda trial: (trial.robust, trial.clean), default=None)


def write_trials(path: Path, keys: Sequence[str], trials: Sequence[SearchTrial]) -> None:
    """Write trials.csv, with a row for each trial in the order in which they began."""
    front, buffer = unbeaten(trials), io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["trial", *keys, *RESULTS])
    for trial in trials:
        values = [_text(trial.values[key]) for key in keys]
        results: list[Any] = ["", "", ""]
        if trial.status == "completed":
            results = [trial.epochs, trial.clean, trial.robust]
        marks = ["yes" if trial in front else "", trial.reason]
        writer.writerow([trial.name, *values, *results, trial.status, *marks])
    write_text(path, buffer.getvalue())


def read_trials(path: Path) -> tuple[list[str], list[SearchTrial]]:
    """Read trials.csv.

    Returns:
        The searched keys, and the trials.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
        keys = [key for key in reader.fieldnames or () if key not in ("trial", *RESULTS)]
        if not rows:
            raise ValueError
        return keys, [_trial(row, keys) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error):
        raise UserError(f"{path}: expected the trials of a search, it is damaged") from None


def _trial(row: Mapping[str, str], keys: Sequence[str]) -> SearchTrial:
    values = {key: _value(row[key]) for key in keys}
    name, status = row["trial"], row["status"]
    if status != "completed":
        return SearchTrial(name, values, status, reason=row["reason"])
    clean, robust = (float(row[column]) for column in RESULTS[1:3])
    if not (0 <= clean <= 1 and 0 <= robust <= 1):
        raise ValueError
    reason = row["reason"]
    return SearchTrial(name, values, status, int(row["epochs"]), clean, robust, reason)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
