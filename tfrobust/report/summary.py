"""A run in rows and sentences: accuracies with intervals, attack settings, training facts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from tfrobust.evaluation.record import AttackRow, DataRow, Record
from tfrobust.evaluation.record import headline as worst_rows
from tfrobust.overfitting import ONE_STEP, ROBUST, overfitted
from tfrobust.report.record import RunRecord
from tfrobust.report.text import interval, number, percent

WORST, FEWER = "worst case", "worst case, first "  # rows that are over several attacks

# How a known setting reads; every other one reads 'key value', so nothing stays hidden.
SETTINGS = {
    "steps": "{} steps",
    "step_size": "step size {}",
    "restarts": "restarts {}",
    "loss": "loss {}",
    "start": "start {}",
    "success": "success {}",
}


@dataclass(frozen=True)
class AccuracyRow:
    """One measured accuracy: fractions in [0, 1], seconds, and the paper's figure if it has one.

    `low` and `high` bound the 95 % interval. cost: as in `attack_cost`.
    """

    name: str
    accuracy: float
    low: float
    high: float
    examples: int
    seconds: float | None = None
    settings: str = ""
    cost: str = ""
    paper: float | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus the paper's, a fraction."""
        return None if self.paper is None else self.accuracy - self.paper


@dataclass(frozen=True)
class ClassRow:
    """The images of one class: how many, how many of them every attack saw, and the fraction
    right of all when clean, and of the attacked under every attack."""

    name: str
    examples: int
    clean: float
    attacked: int
    robust: float


@dataclass(frozen=True)
class TrainingSummary:
    """epochs run; best epoch counted from 0; median seconds a batch; median share of an epoch that
    validation took; wall time in seconds."""

    epochs: int
    best_epoch: int | None
    seconds_per_batch: float | None
    validation_share: float | None
    wall_seconds: float | None


def accuracy_rows(config: Mapping[str, Any], evaluation: Record) -> list[AccuracyRow]:
    """Clean accuracy, one row an attack, and when there is any the worst case: over the attacks
    that saw the most images, then on the first images that more of the attacks saw."""
    paper = config.get("paper") or {}

    def row(name: str, accuracy: float, total: int, key: str | None, **more: Any) -> AccuracyRow:
        low, high = interval(round(accuracy * total), total)
        figure = None if key is None else paper.get(key)
        return AccuracyRow(name, accuracy, low, high, total, paper=figure, **more)

    rows = [row("clean", evaluation.clean_accuracy, evaluation.examples, "clean")]
    for attack in evaluation.attacks:
        settings = attack_settings(attack.config or {})
        if attack.name in evaluation.suites:
            settings = "right under each of its attacks above"
        more = {"seconds": attack.seconds, "settings": settings, "cost": attack_cost(attack)}
        rows.append(row(attack.name, attack.robust_accuracy, attack.examples, attack.name, **more))
    worst, total = evaluation.robust_accuracy, evaluation.worst_case_examples
    if evaluation.attacks and worst is not None and total:
        settings = "right under every attack above"
        if evaluation.subsets:
            settings = f"right under every attack above that saw all {total}"
        rows.append(row(WORST, worst, total, None, settings=settings))
    for subset in evaluation.subsets:
        settings = "right under every attack above that saw them"
        name = f"{FEWER}{subset.examples}"
        rows.append(row(name, subset.robust_accuracy, subset.examples, None, settings=settings))
    return rows


def is_worst_case(name: str) -> bool:
    """Return whether a row of `accuracy_rows` is over several attacks, not one or a suite."""
    return name == WORST or name.startswith(FEWER)


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of rows, each once: attacks in order of appearance, then the worst case over
    all images, then those over fewer, the most images first."""

    def images(name: str) -> float:
        return float(name.removeprefix(FEWER)) if name != WORST else math.inf

    once = list(dict.fromkeys(names))
    last = sorted(filter(is_worst_case, once), key=images, reverse=True)
    return [*(name for name in once if name not in last), *last]


def class_rows(record: RunRecord) -> list[ClassRow]:
    """One row a class that has attacked images; none without the flags of every attack. Attacked
    are the images of the headline."""
    flags, names = record.flags, [attack.name for attack in record.evaluation.attacks]
    if flags is None or not names or not set(names) <= flags.right.keys():
        return []
    worst = worst_rows([flags.right[name] for name in names], flags.right["clean"])
    n = len(worst)
    rows = []
    for label in np.unique(flags.label[:n]).tolist():
        own = flags.label == label
        rows.append(
            ClassRow(
                record.class_name(label),
                int(own.sum()),
                float(flags.right["clean"][own].mean()),
                int(own[:n].sum()),
                float(worst[own[:n]].mean()),
            )
        )
    return rows


def attack_cost(attack: AttackRow) -> str:
    """'80 attacked, 61 + 60 passes each, 12.3 a second', or less where less is known: forward and
    backward passes and speed, per attacked image."""
    attacked = attack.attacked
    if attacked is None:
        return ""
    told = f"{attacked} attacked"
    if attacked:
        told += f", {attack.queries / attacked:.4g} + {attack.gradients / attacked:.4g} "
        told += "passes each"
        if attack.seconds:
            told += f", {attacked / attack.seconds:.3g} a second"
    return told


def how_counted(evaluation: Record) -> str:
    """What the accuracy of an attack counts, in plain words; empty where it is not recorded."""
    told = ""
    if evaluation.mode == "cascade":
        told = (
            "Each attack ran only on the images that those above it had left right: its accuracy "
            "is what was left after all of them."
        )
    elif evaluation.mode == "each":
        told = "Each attack ran on all images that are right when clean: its accuracy is its own."
        if evaluation.suites:
            told += " Only within a suite did each run on what those before it had left."
    if evaluation.craft_precision != "float32":
        told += (
            f" The attacks searched on the network in {evaluation.craft_precision}; the network "
            "itself judged what they found."
        )
    rounded = evaluation.rounded_robust_accuracy
    if rounded is not None:
        told += (
            " With the adversarial images rounded to multiples of 1/255, as they are saved, the "
            f"accuracy is {percent(rounded)}."
        )
    return told.strip()


def warnings(evaluation: Record) -> str:
    """The checks that warn, in one line; empty if none does."""
    checks = evaluation.checks
    names = [check.name for check in checks if check.warns]
    if not names:
        return ""
    count = f"{len(names)} of {len(checks)} checks warn{'s' if len(names) == 1 else ''}"
    return f"{count} that the robust accuracy may be too high: {', '.join(names)}."


def overfitting(history: Sequence[Mapping[str, float]], config: Mapping[str, Any]) -> str:
    """Catastrophic overfitting in a sentence, with the epoch whose weights are kept; empty where
    no epoch shows it."""
    epochs = overfitted(history)
    if not epochs:
        return ""
    row = next(row for row in history if row["epoch"] == epochs[0])
    best = max(other.get(ROBUST, -math.inf) for other in history if other["epoch"] < epochs[0])
    kept = best_epoch(history, config)
    more = f" and {len(epochs) - 1} more" if len(epochs) > 1 else ""
    return (
        f"Catastrophic overfitting at epoch {epochs[0]}{more}: on validation data robust accuracy "
        f"fell from {percent(best)} to {percent(row[ROBUST])} while FGSM accuracy was "
        f"{percent(row[ONE_STEP])}. The weights kept are those of epoch {kept}."
    )


def missing_from_paper(config: Mapping[str, Any], evaluation: Record) -> dict[str, float]:
    """The paper's figures for which this run has no measurement, label -> fraction."""
    measured = {"source", "clean"} | {attack.name for attack in evaluation.attacks}
    paper = config.get("paper") or {}
    return {key: value for key, value in paper.items() if key not in measured}


def attack_settings(config: Mapping[str, Any]) -> str:
    """An attack's settings in short: '20 steps, step size 2/255 = 0.007843, loss dlr'."""
    ordered = [key for key in SETTINGS if key in config]
    ordered += [key for key in config if key not in SETTINGS and key != "name"]
    return ", ".join(
        SETTINGS.get(key, key + " {}").format(number(config[key]))
        for key in ordered
        if config[key] is not None
    )


def method_name(config: Mapping[str, Any]) -> str:
    """The training method; the run's own name when a finished model was only evaluated."""
    return str((config.get("method") or config)["name"])


def headline(config: Mapping[str, Any], evaluation: Record) -> str:
    """The run in one sentence: method, data, clean and worst-case accuracy, threat, examples."""
    clean, *_ = accuracy_rows(config, evaluation)
    threat, data = evaluation.threat, data_of(config, evaluation)
    told = f"{method_name(config)} on {data.name}: {percent(clean.accuracy)} clean"
    total = f"{clean.examples} {data.split} images"
    worst, n = evaluation.robust_accuracy, evaluation.worst_case_examples
    attacks = [attack for attack in evaluation.attacks if attack.name not in evaluation.suites]
    attacks = [attack for attack in attacks if attack.examples == n]
    if attacks and worst is not None:
        names = {attack.suite or attack.name for attack in attacks}
        under = names.pop() if len(names) == 1 else f"the worst of {len(attacks)} attacks"
        told += f", {percent(worst)} under {under}"
        if n != clean.examples:
            total += f", {n} of them attacked"
    told += f" ({threat.norm}, eps {number(threat.eps)}, {total})"
    for subset in evaluation.subsets:
        told += f"; {percent(subset.robust_accuracy)} on the first {subset.examples} images, "
        told += "under all attacks"
    return told


def data_of(config: Mapping[str, Any], evaluation: Record) -> DataRow:
    """The images of an evaluation; those of the config where it does not say."""
    return evaluation.data or DataRow(name=config["data"]["name"])


def best_epoch(history: Sequence[Mapping[str, float]], config: Mapping[str, Any]) -> int | None:
    """The epoch, from 0, of the highest validation accuracy, robust unless the config says
    otherwise; the last of equals."""
    monitor = (config.get("train") or {}).get("monitor", "val_robust_accuracy")
    scores = [(row["epoch"], row.get(monitor, math.nan)) for row in history]
    known = [(epoch, score) for epoch, score in scores if math.isfinite(score)]
    return int(max(known, key=lambda pair: (pair[1], pair[0]))[0]) if known else None


def summarise_training(
    history: Sequence[Mapping[str, float]], config: Mapping[str, Any]
) -> TrainingSummary:
    """What the history says about the cost of training; None where it does not say."""

    def middle(column: str) -> float | None:
        values = [row[column] for row in history if column in row]
        return median(values) if values else None

    ends = [row["finished_at"] for row in history if "finished_at" in row]
    wall = None
    if len(ends) > 1:
        # The start of the first epoch is not recorded: the median epoch stands in for it.
        wall = ends[-1] - ends[0] + median(after - before for before, after in pairwise(ends))
    return TrainingSummary(
        epochs=len(history),
        best_epoch=best_epoch(history, config),
        seconds_per_batch=middle("seconds_per_batch"),
        validation_share=middle("validation_share"),
        wall_seconds=wall,
    )


def pareto(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """The places of those that no other one beats in one number without losing in the other."""
    return [
        place
        for place, (a, b) in enumerate(pairs)
        if not any((x >= a and y > b) or (x > a and y >= b) for x, y in pairs)
    ]
