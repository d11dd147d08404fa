"""The trials of a search: their table, the best of them, and those that none beats in both
accuracies."""

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
    """One trial: its values by their keys; running, completed or failed, and then for what reason.

    epochs trained; clean, robust: validation accuracies in [0, 1] at the epoch that was kept, NaN
    where there is none.
    """

    name: str
    values: Mapping[str, Any]
    status: str
    epochs: int = 0
    clean: float = math.nan
    robust: float = math.nan
    reason: str = ""


def completed(trials: Sequence[SearchTrial]) -> list[SearchTrial]:
    """The trials that have accuracies."""
    return [trial for trial in trials if trial.status == "completed"]


def unbeaten(trials: Sequence[SearchTrial]) -> list[SearchTrial]:
    """The Pareto front of clean and robust accuracy, by rising clean accuracy."""
    done = completed(trials)
    front = [done[place] for place in pareto([(trial.clean, trial.robust) for trial in done])]
    return sorted(front, key=lambda trial: (trial.clean, trial.name))


def best_trial(trials: Sequence[SearchTrial], min_clean: float | None) -> SearchTrial | None:
    """The trial of highest robust accuracy among those of at least this clean accuracy; of equals
    that of the higher clean accuracy, then the first."""
    fit = [trial for trial in completed(trials) if trial.clean >= (min_clean or 0.0)]
    return max(fit, key=lambda trial: (trial.robust, trial.clean), default=None)


def write_trials(path: Path, keys: Sequence[str], trials: Sequence[SearchTrial]) -> None:
    """Writes trials.csv: a row a trial, in the order of their start."""
    front, buffer = unbeaten(trials), io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["trial", *keys, *RESULTS])
    for trial in trials:
        done = trial.status == "completed"
        writer.writerow(
            [
                trial.name,
                *(_text(trial.values[key]) for key in keys),
                *((trial.epochs, trial.clean, trial.robust) if done else ("", "", "")),
                trial.status,
                "yes" if trial in front else "",
                trial.reason,
            ]
        )
    write_text(path, buffer.getvalue())


def read_trials(path: Path) -> tuple[list[str], list[SearchTrial]]:
    """(keys, trials) of trials.csv. Raises UserError naming the file if it is damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
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
    found = SearchTrial(row["trial"], values, row["status"], reason=row["reason"])
    if found.status != "completed":
        return found
    clean, robust = (float(row[name]) for name in RESULTS[1:3])
    if not (0 <= clean <= 1 and 0 <= robust <= 1):
        raise ValueError
    return SearchTrial(found.name, values, found.status, int(row["epochs"]), clean, robust)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
