"""Rows and sentences of a report: accuracies with intervals, attack settings, training costs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from tfrobust.corruptions import CORRUPTIONS, SEVERITIES
from tfrobust.flags import headline as worst_case
from tfrobust.overfitting import ONE_STEP, ROBUST, overfitted
from tfrobust.record import UPPER_BOUND, AttackRow, CorruptionTable, DataRow, Record
from tfrobust.report.record import RunRecord
from tfrobust.report.text import interval, number, percent, threat_text

WORST = "worst case"  # the name of the row over all attacks on the most images
FEWER = "worst case, first "  # how the name of a row over attacks on fewer images begins

# The texts of common settings. Every other setting becomes 'key value'.
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
    """One measured accuracy.

    Attributes:
        name: "clean", "corruptions", the label of an attack, or the name of a worst case.
        accuracy: The accuracy, a fraction in [0, 1].
        low, high: The ends of its 95 % interval.
        examples: The number of images.
        seconds: The time that the attack took.
        settings: The attack's settings in short.
        cost: The text of `attack_cost`.
        paper: The paper's figure, a fraction, if it has one.
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
        """The measured accuracy minus the paper's, a fraction."""
        return None if self.paper is None else self.accuracy - self.paper


@dataclass(frozen=True)
class ClassRow:
    """The accuracies of one class.

    Attributes:
        name: The name of the class.
        examples: The number of its images.
        clean: The share of its images that are right when clean.
        attacked: The number of its images that every attack saw.
        robust: The share of the attacked images that are right under every attack.
    """

    name: str
    examples: int
    clean: float
    attacked: int
    robust: float


@dataclass(frozen=True)
class TrainingSummary:
    """The cost of a training.

    Attributes:
        epochs: The number of epochs.
        best_epoch: The epoch whose weights are kept, counted from 0.
        seconds_per_batch: The median time of a batch.
        validation_share: The median share of validation in the time of an epoch.
        wall_seconds: The time from the start of the first epoch to the end of the last, pauses
            included.
        training_seconds: The time of training and validation, without pauses.
    """

    epochs: int
    best_epoch: int | None
    seconds_per_batch: float | None
    validation_share: float | None
    wall_seconds: float | None
    training_seconds: float | None


def accuracy_rows(config: Mapping[str, Any], evaluation: Record) -> list[AccuracyRow]:
    """Return the rows of an evaluation: clean, corruptions, one for each attack, and worst cases.

    The first worst case is over the attacks that saw the most images. If other attacks saw fewer
    images, a further worst case is over all attacks that saw those images.
    """
    paper = config.get("paper") or {}
    rows: list[AccuracyRow] = []

    def add(name: str, accuracy: float, total: int, settings: str = "", **more: Any) -> None:
        low, high = interval(round(accuracy * total), total)
        figure = None if is_worst_case(name) else paper.get(name)
        row = AccuracyRow(name, accuracy, low, high, total, settings=settings, paper=figure, **more)
        rows.append(row)

    add("clean", evaluation.clean_accuracy, evaluation.examples)
    table = evaluation.corruptions
    if table is not None and table.accuracy is not None:
        seconds = sum(each.seconds or 0.0 for each in table.rows)
        settings = "mean over corruptions and severities"
        add(_name_of(table), table.accuracy, table.examples, settings, seconds=seconds)
    for attack in evaluation.attacks:
        settings = attack_settings(attack.config or {})
        if attack.name in evaluation.suites:
            settings = "right under each of its attacks above"
        more = {"seconds": attack.seconds, "cost": attack_cost(attack)}
        add(attack.name, attack.robust_accuracy, attack.examples, settings, **more)
    for norm in evaluation.norms:
        settings = f"right under every attack of {norm.norm} above"
        add(f"{norm.norm}: {WORST}", norm.robust_accuracy, norm.examples, settings)
    worst, total = evaluation.robust_accuracy, evaluation.worst_case_examples
    if evaluation.attacks and worst is not None and total:
        settings = "right under every attack above"
        if evaluation.subsets:
            settings = f"right under every attack above that saw all {total}"
        if evaluation.norms:
            settings += ": robust in the union of the norms"
        add(WORST, worst, total, settings)
    for subset in evaluation.subsets:
        settings = "right under every attack above that saw them"
        add(f"{FEWER}{subset.examples}", subset.robust_accuracy, subset.examples, settings)
    return rows


def _name_of(table: CorruptionTable) -> str:
    """Return "corruptions", or the names and severities of a table that has not all of them.

    Means over different corruptions therefore never share a column.
    """
    names = [row.name for row in table.rows]
    if len(names) == len(CORRUPTIONS) and table.severities == list(SEVERITIES):
        return "corruptions"
    severities = ", ".join(map(str, table.severities))
    which = "" if len(names) == len(CORRUPTIONS) else f" {', '.join(names)}"
    return f"corruptions{which} at severity {severities}"


def is_worst_case(name: str) -> bool:
    """Return whether a row of `accuracy_rows` with this name is a worst case over attacks."""
    return name == WORST or name.startswith(FEWER)


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of rows without repetitions, in the order of a table.

    Attacks keep their order. The worst cases follow, from the most images to the fewest.
    """

    def images(name: str) -> float:
        return float(name.removeprefix(FEWER)) if name != WORST else math.inf

    once = list(dict.fromkeys(names))
    last = sorted(filter(is_worst_case, once), key=images, reverse=True)
    return [*(name for name in once if name not in last), *last]


def class_rows(record: RunRecord) -> list[ClassRow]:
    """Return a row for each class of the images in the headline.

    There are none if the flags of an attack are missing.
    """
    flags, names = record.flags, [attack.name for attack in record.evaluation.attacks]
    if flags is None or not names or not set(names) <= flags.right.keys():
        return []
    worst = worst_case([flags.right[name] for name in names], flags.right["clean"])
    n = len(worst)
    rows = []
    for label in np.unique(flags.label[:n]).tolist():
        members = flags.label == label
        rows.append(
            ClassRow(
                record.class_name(label),
                int(members.sum()),
                float(flags.right["clean"][members].mean()),
                int(members[:n].sum()),
                float(worst[members[:n]].mean()),
            )
        )
    return rows


def attack_cost(attack: AttackRow) -> str:
    """Return the cost of an attack: '80 attacked, 61 + 60 passes each, 12.3 a second'.

    The passes are forward and backward passes per attacked image. What is not recorded is left out.
    """
    attacked = attack.attacked
    if attacked is None:
        return ""
    parts = [f"{attacked} attacked"]
    if attacked:
        forward, backward = attack.queries / attacked, attack.gradients / attacked
        parts.append(f"{forward:.4g} + {backward:.4g} passes each")
        if attack.seconds:
            parts.append(f"{attacked / attack.seconds:.3g} a second")
    return ", ".join(parts)


def how_counted(evaluation: Record) -> str:
    """Return sentences on which images the accuracy under an attack counts.

    They are empty if the mode of the evaluation is not recorded.
    """
    text = ""
    if evaluation.mode == "cascade":
        text = (
            "Each attack ran only on the images that those above it had left right: its accuracy "
            "is what was left after all of them."
        )
        if evaluation.norms:
            text += " Under each norm this begins anew with all that is right when clean."
    elif evaluation.mode == "each":
        text = "Each attack ran on all images that are right when clean: its accuracy is its own."
        if evaluation.suites:
            text += " Only within a suite did each run on what those before it had left."
    if any(suite.endswith(UPPER_BOUND) for suite in evaluation.suites):
        text += (
            " A suite that is called an upper bound is a short AutoAttack: AutoAttack itself may "
            "leave fewer images right."
        )
    if evaluation.craft_precision != "float32":
        text += (
            f" The attacks searched on the network in {evaluation.craft_precision}; the network "
            "itself judged what they found."
        )
    rounded = evaluation.rounded_robust_accuracy
    if rounded is not None:
        text += (
            " With the adversarial images rounded to multiples of 1/255, as they are saved, the "
            f"accuracy is {percent(rounded)}."
        )
    return text.strip()


def warnings(evaluation: Record) -> str:
    """Return one line that names the checks that warn; empty if none does."""
    checks = evaluation.checks
    names = [check.name for check in checks if check.warns]
    if not names:
        return ""
    count = f"{len(names)} of {len(checks)} checks warn{'s' if len(names) == 1 else ''}"
    return f"{count} that the robust accuracy may be too high: {', '.join(names)}."


def overfitting(history: Sequence[Mapping[str, float]], config: Mapping[str, Any]) -> str:
    """Return a warning of catastrophic overfitting; empty if no epoch shows it."""
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
    """Return the paper's figures that this run did not measure, label -> fraction."""
    measured = {"source", *(row.name for row in accuracy_rows(config, evaluation))}
    paper = config.get("paper") or {}
    return {key: value for key, value in paper.items() if key not in measured}


def attack_settings(config: Mapping[str, Any]) -> str:
    """Return an attack's settings: '20 steps, step size 2/255 = 0.007843, loss dlr'."""
    ordered = [key for key in SETTINGS if key in config]
    ordered += [key for key in config if key not in SETTINGS and key != "name"]
    return ", ".join(
        SETTINGS.get(key, key + " {}").format(number(config[key]))
        for key in ordered
        if config[key] is not None
    )


def method_name(config: Mapping[str, Any]) -> str:
    """Return the training method, or the run's name if a finished model was only evaluated."""
    return str((config.get("method") or config)["name"])


def headline(config: Mapping[str, Any], evaluation: Record) -> str:
    """Return one sentence on a run: method, data, accuracies, threat and number of images."""
    clean, *_ = accuracy_rows(config, evaluation)
    data = data_of(config, evaluation)
    text = f"{method_name(config)} on {data.name}: {percent(clean.accuracy)} clean"
    total = f"{clean.examples} {data.split} images"
    worst, n = evaluation.robust_accuracy, evaluation.worst_case_examples
    attacks = [attack for attack in evaluation.single_attacks if attack.examples == n]
    if attacks and worst is not None:
        rows = {attack.name for attack in evaluation.attacks}  # of a suite only once it is finished
        names = {a.suite if a.suite in rows else a.name for a in attacks}
        under = names.pop() if len(names) == 1 else f"the worst of {len(attacks)} attacks"
        text += f", {percent(worst)} under {under}"
        if n != clean.examples:
            total += f", {n} of them attacked"
    text += f" ({threat_text(evaluation.balls)}, {total})"
    for subset in evaluation.subsets:
        text += f"; {percent(subset.robust_accuracy)} on the first {subset.examples} images, "
        text += "under all attacks"
    return text


def data_of(config: Mapping[str, Any], evaluation: Record) -> DataRow:
    """Return the data set of an evaluation or, if it is not recorded, that of the config."""
    return evaluation.data or DataRow(name=config["data"]["name"])


def best_epoch(history: Sequence[Mapping[str, float]], config: Mapping[str, Any]) -> int | None:
    """Return the epoch whose weights are kept, counted from 0; None if there is no epoch.

    It has the highest value of `train.monitor`, by default robust validation accuracy, and is the
    last of equals. If no epoch has a value, as without validation, it is the last epoch.
    """
    if not history:
        return None
    monitor = (config.get("train") or {}).get("monitor", ROBUST)

    def score(row: Mapping[str, float]) -> tuple[float, float]:
        value = row.get(monitor, math.nan)
        return (value if math.isfinite(value) else -math.inf), row["epoch"]

    return int(max(history, key=score)["epoch"])


def summarise_training(
    history: Sequence[Mapping[str, float]], config: Mapping[str, Any]
) -> TrainingSummary:
    """Return the cost of training; a value that the history does not record is None."""

    def median_of(column: str) -> float | None:
        values = [row[column] for row in history if column in row]
        return median(values) if values else None

    ends = [row["finished_at"] for row in history if "finished_at" in row]
    wall = None
    if len(ends) > 1:
        # The start of the first epoch is not recorded, so the median epoch stands for the first.
        wall = ends[-1] - ends[0] + median(after - before for before, after in pairwise(ends))
    return TrainingSummary(
        epochs=len(history),
        best_epoch=best_epoch(history, config),
        seconds_per_batch=median_of("seconds_per_batch"),
        validation_share=median_of("validation_share"),
        wall_seconds=wall,
        training_seconds=history[-1].get("training_seconds") if history else None,
    )


def series_over_time(
    history: Sequence[Mapping[str, float]], column: str
) -> list[tuple[float, float]]:
    """Return (seconds of training, value of the column) of each epoch that has both."""
    both = [(row.get("training_seconds"), row.get(column)) for row in history]
    return [(at, value) for at, value in both if at is not None and value is not None]


def pareto(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """Return the positions of the pairs on the Pareto front.

    No other pair is at least as high in both numbers and higher in one of them.
    """
    front = []
    for place, (a, b) in enumerate(pairs):
        beaten = any(x >= a and y >= b and (x, y) != (a, b) for x, y in pairs)
        if not beaten:
            front.append(place)
    return front
