"""Rows and sentences of a report: accuracies with intervals, attack settings, training costs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from tfrobust.corruptions import CORRUPTIONS, SEVERITIES
from tfrobust.flags import headline as worst_rows
from tfrobust.overfitting import ONE_STEP, ROBUST, overfitted
from tfrobust.record import AttackRow, CorruptionTable, DataRow, Record
from tfrobust.report.record import RunRecord
from tfrobust.report.text import interval, number, percent, threat_text

WORST, FEWER = "worst case", "worst case, first "  # names of rows over several attacks

# How a common setting is written. Every other one becomes 'key value', so that none is left out.
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
        name: "clean", "corruptions", the label of an attack, or a name of the worst case.
        accuracy: a fraction in [0, 1].
        low, high: the 95 % interval of the accuracy.
        examples: the number of images.
        seconds: the time that the attack took.
        settings: the attack's settings in short.
        cost: the text of `attack_cost`.
        paper: the paper's figure, if it has one.
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
        name: the class.
        examples: the number of its images.
        clean: the fraction of them that is right when clean.
        attacked: the number of them that every attack saw.
        robust: the fraction of those that is right under every attack.
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
        epochs: the number of epochs.
        best_epoch: the epoch whose weights are kept, from 0.
        seconds_per_batch: the median.
        validation_share: the median share of an epoch's time that validation took.
        wall_seconds: the time from the first epoch's start to the last one's end.
    """

    epochs: int
    best_epoch: int | None
    seconds_per_batch: float | None
    validation_share: float | None
    wall_seconds: float | None


def accuracy_rows(config: Mapping[str, Any], evaluation: Record) -> list[AccuracyRow]:
    """Return the rows of an evaluation: clean, corruptions, one per attack, last the worst cases.

    The first worst case is over the attacks that saw the most images. Where other attacks saw
    fewer, a further one is over all attacks that saw those.
    """
    paper = config.get("paper") or {}

    def row(name: str, accuracy: float, total: int, key: str | None, **more: Any) -> AccuracyRow:
        low, high = interval(round(accuracy * total), total)
        figure = None if key is None else paper.get(key)
        return AccuracyRow(name, accuracy, low, high, total, paper=figure, **more)

    rows = [row("clean", evaluation.clean_accuracy, evaluation.examples, "clean")]
    table = evaluation.corruptions
    if table is not None and table.accuracy is not None:
        seconds = sum(each.seconds or 0.0 for each in table.rows)
        name, settings = _name_of(table), "mean over corruptions and severities"
        mean, n = table.accuracy, table.examples
        rows.append(row(name, mean, n, None, seconds=seconds, settings=settings))
    for attack in evaluation.attacks:
        settings = attack_settings(attack.config or {})
        if attack.name in evaluation.suites:
            settings = "right under each of its attacks above"
        more = {"seconds": attack.seconds, "settings": settings, "cost": attack_cost(attack)}
        rows.append(row(attack.name, attack.robust_accuracy, attack.examples, attack.name, **more))
    for norm in evaluation.norms:
        settings = f"right under every attack of {norm.norm} above"
        name = f"{norm.norm}: {WORST}"
        rows.append(row(name, norm.robust_accuracy, norm.examples, name, settings=settings))
    worst, total = evaluation.robust_accuracy, evaluation.worst_case_examples
    if evaluation.attacks and worst is not None and total:
        settings = "right under every attack above"
        if evaluation.subsets:
            settings = f"right under every attack above that saw all {total}"
        if evaluation.norms:
            settings += ": robust in the union of the norms"
        rows.append(row(WORST, worst, total, None, settings=settings))
    for subset in evaluation.subsets:
        settings = "right under every attack above that saw them"
        name = f"{FEWER}{subset.examples}"
        rows.append(row(name, subset.robust_accuracy, subset.examples, None, settings=settings))
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
    """Return the names of rows, each once and in the order of a table.

    Attacks come in order of appearance, then the worst cases, from the most images to the fewest.
    """

    def images(name: str) -> float:
        return float(name.removeprefix(FEWER)) if name != WORST else math.inf

    once = list(dict.fromkeys(names))
    last = sorted(filter(is_worst_case, once), key=images, reverse=True)
    return [*(name for name in once if name not in last), *last]


def class_rows(record: RunRecord) -> list[ClassRow]:
    """Return one row for each class among the images of the headline.

    Empty if the flags of an attack are missing.
    """
    flags, names = record.flags, [attack.name for attack in record.evaluation.attacks]
    if flags is None or not names or not set(names) <= flags.right.keys():
        return []
    worst = worst_rows([flags.right[name] for name in names], flags.right["clean"])
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
    """Return the sentences that say which images an attack's accuracy counts.

    Empty if the mode of the evaluation is not recorded.
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
    measured = {"source", "clean"} | {attack.name for attack in evaluation.attacks}
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
    """Return the run in one sentence: method, data, clean and worst-case accuracy, threat and
    number of examples."""
    clean, *_ = accuracy_rows(config, evaluation)
    data = data_of(config, evaluation)
    text = f"{method_name(config)} on {data.name}: {percent(clean.accuracy)} clean"
    total = f"{clean.examples} {data.split} images"
    worst, n = evaluation.robust_accuracy, evaluation.worst_case_examples
    attacks = [attack for attack in evaluation.attacks if attack.name not in evaluation.suites]
    attacks = [attack for attack in attacks if attack.examples == n]
    if attacks and worst is not None:
        names = {attack.suite or attack.name for attack in attacks}
        under = names.pop() if len(names) == 1 else f"the worst of {len(attacks)} attacks"
        text += f", {percent(worst)} under {under}"
        if n != clean.examples:
            total += f", {n} of them attacked"
    text += f" ({threat_text(evaluation.radii)}, {total})"
    for subset in evaluation.subsets:
        text += f"; {percent(subset.robust_accuracy)} on the first {subset.examples} images, "
        text += "under all attacks"
    return text


def data_of(config: Mapping[str, Any], evaluation: Record) -> DataRow:
    """Return the data of an evaluation, or else the config's."""
    return evaluation.data or DataRow(name=config["data"]["name"])


def best_epoch(history: Sequence[Mapping[str, float]], config: Mapping[str, Any]) -> int | None:
    """Return the epoch, from 0, with the highest value of `train.monitor`.

    The default monitor is robust validation accuracy. Of equal epochs the last counts. It is the
    last of all, whose weights a training without validation keeps, if no epoch has a value; None if
    there is no epoch.
    """
    monitor = (config.get("train") or {}).get("monitor", "val_robust_accuracy")
    scores = [(row["epoch"], row.get(monitor, math.nan)) for row in history]
    known = [(epoch, score) for epoch, score in scores if math.isfinite(score)]
    known = known or [(epoch, 0.0) for epoch, _ in scores]
    return int(max(known, key=lambda pair: (pair[1], pair[0]))[0]) if known else None


def summarise_training(
    history: Sequence[Mapping[str, float]], config: Mapping[str, Any]
) -> TrainingSummary:
    """Return the cost of training; an entry is None if the history does not record it."""

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
    """Return the positions of the pairs on the Pareto front: no other pair is at least as high in
    both numbers and higher in one."""
    return [
        place
        for place, (a, b) in enumerate(pairs)
        if not any((x >= a and y > b) or (x > a and y >= b) for x, y in pairs)
    ]
