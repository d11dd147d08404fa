"""The numbers in docs/results/intro.md, a Jinja template, taken from the records of runs.

A run has its name on the page, with its suite: digits_methods/digits_adv_seed-0. A name without a
seed, such as digits_methods/digits_adv, stands for all seeds of a run, and "cpu_hour_adv (seed 0)"
for one that has no seed in its name. A column is that of the page's tables: clean, or the label of
an attack.

    {{ accuracy("cpu_hour_gkl", "clean") }}                 68.8 %
    {{ with_range("cpu_hour_gkl") }}                        37.6 % (34.7 to 40.6), under AutoAttack
    {{ with_range("digits_methods/digits_adv") }}           77.0 % (76.1 to 78.1)
    {{ against("cpu_hour_gkl", "cpu_hour_adv (seed 0)") }}  35, 69 (p = 0.001)
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, StrictUndefined, TemplateError
from leaderboard import training_seconds
from summaries import full_name, name_without_seed, rows_of, seed_of, unpacked

from tfrobust.errors import UserError, nearest
from tfrobust.report import NOTHING, AccuracyRow, between, duration, percent
from tfrobust.report.compare import difference
from tfrobust.report.text import p_value

INTRO = "results/intro.md"
AUTOATTACK = "AutoAttack"
T = TypeVar("T")
Summary = Mapping[str, Any]


def filled_in(template: str, summaries: Sequence[Summary]) -> str:
    """Return a text with its numbers.

    Raises:
        UserError: If the template is damaged, or names a run or a column that has no record.
    """
    environment = Environment(  # noqa: S701 (the text is Markdown)
        undefined=StrictUndefined, trim_blocks=True
    )
    numbers = Numbers(summaries)
    for function in (
        numbers.accuracy,
        numbers.with_range,
        numbers.beside_paper,
        numbers.runs_of,
        numbers.most_robust_first,
        numbers.against,
        numbers.epochs,
        numbers.training_time,
        numbers.at_eps,
        numbers.at_lambda,
        numbers.overfitting_epochs,
        numbers.jacobian_epochs,
        numbers.highest_to_last,
    ):
        environment.globals[function.__name__] = function
    try:
        return environment.from_string(template).render()
    except (TemplateError, TypeError) as error:  # the latter for a call with other arguments
        raise UserError(f"{INTRO}: expected a template, received {error}") from None


class Numbers:
    """The numbers of runs, as texts.

    Args:
        summaries: The summaries of all runs.
    """

    def __init__(self, summaries: Sequence[Summary]) -> None:
        self._suites: dict[str, set[str]] = {}
        self._runs: dict[str, list[Summary]] = {}
        for summary in summaries:
            name = full_name(summary)
            family = name_without_seed(name)
            self._suites.setdefault(summary["suite"], set()).add(family)
            for each in {name, f"{name} (seed {seed_of(summary)})", family}:
                self._runs.setdefault(each, []).append(summary)

    def accuracy(self, run: str, column: str = AUTOATTACK) -> str:
        """Return an accuracy, the mean over seeds: 41.0 %."""
        return percent(mean(row.accuracy for row in self._rows(run, column)))

    def with_range(self, run: str, column: str = AUTOATTACK) -> str:
        """Return an accuracy and its range over seeds, or the 95 % interval of a single run."""
        rows = self._rows(run, column)
        low, high = rows[0].low, rows[0].high
        if len(rows) > 1:
            low, high = (end(row.accuracy for row in rows) for end in (min, max))
        return f"{self.accuracy(run, column)} ({between(low, high)})"

    def beside_paper(self, run: str, column: str) -> str:
        """Return the accuracy of a run and, in parentheses, the paper's figure: 99.5 % (99.5)."""
        row = _entry(rows_of(self._one(run)), column, f"{run}: expected a column")
        if row.paper is None:
            raise UserError(f"{INTRO}: {run}: expected a figure of the paper for {column!r}")
        return f"{percent(row.accuracy)} ({100 * row.paper:.1f})"

    def runs_of(self, suite: str) -> list[str]:
        """Return the runs of a suite, by their names without the seed."""
        return sorted(_entry(self._suites, suite, "expected a suite with records"))

    def most_robust_first(self, runs: Iterable[str], column: str = AUTOATTACK) -> list[str]:
        """Return the names of runs in the order of their accuracy, the highest first."""
        return sorted(runs, key=lambda run: -mean(row.accuracy for row in self._rows(run, column)))

    def against(
        self, run: str, other: str, column: str = AUTOATTACK, same_images: bool = True
    ) -> str:
        """Compare two runs under an attack, image by image: 27, 47 (p = 0.027).

        Args:
            same_images: Whether the images must be the same. They need not be where one run has
                a changed copy of the other's, in the same order.

        Returns:
            On how many images only the first run is right, on how many only the second, and the
            p-value of McNemar's exact test; "–" where a record does not have them.
        """
        summaries = [self._one(run), self._one(other)]
        images = [(summary.get("flags") or {}).get("images") for summary in summaries]
        if None in images:
            return NOTHING
        if same_images and len(set(images)) > 1:
            raise UserError(f"{INTRO}: expected {run} and {other} on the same images")
        for summary in summaries:
            _entry(rows_of(summary), column, f"{summary['name']}: expected a column")
        first, second = (unpacked(summary, column) for summary in summaries)
        n = min(len(first), len(second))
        pair = difference(first[:n], second[:n])
        return f"{pair.gained}, {pair.lost} (p {p_value(pair.p)})"

    def epochs(self, run: str) -> int:
        """Return the number of epochs of a run."""
        return int(self._one(run)["training"]["epochs"])

    def training_time(self, run: str) -> str:
        """Return the time of training and validation of a run: 55 min 02 s."""
        return duration(training_seconds(self._one(run)))

    def at_eps(self, run: str, eps: float) -> str:
        """Return the accuracy of a run at another eps than that of its threat."""
        points = {round(point.eps, 6): point for point in self._one(run)["evaluation"].eps_curve}
        return percent(_entry(points, eps, f"{run}: expected an eps").robust_accuracy)

    def at_lambda(self, run: str, value: float) -> str:
        """Return the clean and the robust accuracy of a once-for-all network at one lambda."""
        points = {point.strength: point for point in self._one(run)["evaluation"].curve}
        point = _entry(points, value, f"{run}: expected a lambda")
        return f"{100 * point.clean_accuracy:.1f} / {percent(point.robust_accuracy)}"

    def overfitting_epochs(self, run: str) -> str:
        """Return how many epochs each seed had when it first showed overfitting: 41, –, 52."""
        texts = []
        for summary in self._seeds(run):
            training = summary["training"]
            seconds = [at for at, _ in training["robust_over_time"]]
            shown = training["overfitted_seconds"]
            texts.append(str(seconds.index(shown[0]) + 1) if shown else NOTHING)
        return ", ".join(texts)

    def jacobian_epochs(self, run: str, factor: float) -> str:
        """Return how many epochs each seed had when its Jacobian estimate first rose: 38, –, 52.

        It has risen if it is more than `factor` times its lowest value since eps stopped growing.
        """
        texts = []
        for summary in self._seeds(run):
            train = summary["config"]["train"]
            first = int(train.get("epsilon_warmup_epochs", 0) + train["epsilon_ramp_epochs"])
            values = np.array([value for _, value in summary["training"]["jacobian_over_time"]])
            rises = values[first:] > factor * np.minimum.accumulate(values[first:])
            texts.append(str(first + int(rises.argmax()) + 1) if rises.any() else NOTHING)
        return ", ".join(texts)

    def highest_to_last(self, run: str) -> str:
        """Return the highest and the last robust accuracy in validation, by seed: 67.0 to 1.6 %."""
        curves = [
            [value for _, value in summary["training"]["robust_over_time"]]
            for summary in self._seeds(run)
        ]
        return ", ".join(f"{100 * max(curve):.1f} to {percent(curve[-1])}" for curve in curves)

    def _rows(self, run: str, column: str) -> list[AccuracyRow]:
        """Return the rows of a column, one for each seed, all of as many images."""
        rows = [
            _entry(rows_of(each), column, f"{run}: expected a column") for each in self._seeds(run)
        ]
        if len(sizes := {row.examples for row in rows}) > 1:
            expected = "expected seeds with the same number of images"
            raise UserError(f"{INTRO}: {run}: {expected}, received {sorted(sizes)}")
        return rows

    def _one(self, run: str) -> Summary:
        """Return the summary of a single run."""
        seeds = self._seeds(run)
        if len(seeds) > 1:
            raise UserError(f"{INTRO}: {run}: expected one run, received {len(seeds)} seeds")
        return seeds[0]

    def _seeds(self, run: str) -> list[Summary]:
        """Return the summaries of all seeds of a run."""
        return _entry(self._runs, run, "expected a run with a record")


def _entry(entries: Mapping[Any, T], key: Any, what: str) -> T:
    if key not in entries:
        hint = nearest(str(key), [str(each) for each in entries])
        raise UserError(f"{INTRO}: {what}, received {key!r}{hint}")
    return entries[key]
