"""A comparison of runs: a table of all runs, and tests of the differences between two of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import binomtest

from tfrobust.attack_settings import known_by
from tfrobust.errors import UserError, require
from tfrobust.flags import Flags, same_images
from tfrobust.report.columns import comparable, marks
from tfrobust.report.html import ReportTable
from tfrobust.report.record import RunRecord, load_run
from tfrobust.report.summary import (
    AccuracyRow,
    accuracy_rows,
    data_of,
    in_order,
    is_worst_case,
    summarise_training,
)
from tfrobust.report.text import NOTHING, duration, milliseconds, p_value, percent, points

CHANCE = 0.05  # a difference with a smaller p-value is beyond chance


@dataclass(frozen=True)
class Row:
    """A run to compare. Runs with the same label are the seeds of one row of the table.

    Attributes:
        label: The name of the row.
        folder: The folder of the run.
        varied: Key -> value of the keys in which the runs of a grid differ.
        reason: Why the run failed; None if it did not.
    """

    label: str
    folder: Path
    varied: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, and the contents of its folder."""

    row: Row
    record: RunRecord
    flags: Flags

    @property
    def seed(self) -> int:
        """The seed of the config; without config.yaml, that of the evaluation."""
        return int(self.record.config.get("seed", self.record.evaluation.seed) or 0)

    @property
    def accuracies(self) -> dict[str, AccuracyRow]:
        rows = accuracy_rows(self.record.config, self.record.evaluation)
        return {row.name: row for row in rows}


def read_runs(rows: Sequence[Row]) -> list[FinishedRun]:
    """Read the folders of the runs that did not fail.

    Raises:
        UserError: If a folder has no eval.json or no flags.npz, or a file in it is damaged.
    """
    runs = []
    for row in rows:
        if row.reason is not None:
            continue
        record = load_run(row.folder)
        if record.flags is None:
            raise UserError(f"{row.folder / 'flags.npz'}: expected flags, received no such file")
        runs.append(FinishedRun(row, record, record.flags))
    return runs


def families(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Group the runs by label: label -> the runs of its seeds."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(run.row.label, []).append(run)
    return groups


def alike(runs: Sequence[FinishedRun]) -> bool:
    """Return whether all runs share one set of images and one threat, so that numbers compare."""
    return all(_threat(r) == _threat(runs[0]) and _same_data(r, runs[0]) for r in runs)


def _threat(run: FinishedRun) -> tuple[Any, ...]:
    """Return the norm and the eps of each threat, and the factors of its features if it has any."""
    values = chain.from_iterable(run.record.evaluation.balls)
    return tuple(value for value in values if value is not None)


def _data(run: FinishedRun) -> tuple[str, str]:
    data = data_of(run.record.config, run.record.evaluation)
    return data.name, data.split


def _same_data(first: FinishedRun, second: FinishedRun) -> bool:
    """Compare the digests of the images, or the names of the data if a digest is missing."""
    if first.flags.digest is None or second.flags.digest is None:
        return _data(first) == _data(second)
    return same_images(first.flags.digest, second.flags.digest)


def same_test_images(runs: Sequence[FinishedRun]) -> bool:
    """Return whether the digests of the test images of all runs are the same."""
    return all(same_images(runs[0].flags.digest, run.flags.digest) for run in runs)


def comparison(runs: Sequence[FinishedRun]) -> ReportTable:
    """Return the table with one row for each label.

    A cell has the mean accuracy over the seeds, with its standard deviation. If a paper has a
    figure, the cell also has that figure and the difference. The best cell of a column is bold if
    the runs are `alike` and its numbers are `comparable`. A row with a run that missed a
    requirement, or whose evaluation is not finished, is marked and never the best.
    """
    names = in_order(name for run in runs for name in run.accuracies)
    lines, means = [], []
    for label, family in families(runs).items():
        cells, values = [], []
        for name in names:
            rows = [run.accuracies[name] for run in family if name in run.accuracies]
            cells.append(_cell(rows))
            values.append(mean(row.accuracy for row in rows) if rows else -1.0)
        seeds = ", ".join(str(run.seed) for run in family)
        mark = marks(run.record for run in family)
        lines.append([label + mark, seeds, *cells, *_costs(family)])
        means.append([-1.0] * len(names) if mark else values)
    header = ["method", "seeds", *(_head(name, runs) for name in names)]
    records = [run.record.evaluation for run in runs if not marks([run.record])]
    best = _highest(means, first_column=2) if len(means) > 1 and alike(runs) else frozenset()
    best = frozenset((y, x) for y, x in best if comparable(records, names[x - 2]))
    return ReportTable([*header, "time per batch", "training time", "epochs"], lines, best)


def _head(name: str, runs: Sequence[FinishedRun]) -> str:
    """Return the header of a column: the name of the accuracy and its numbers of images."""
    sizes = {run.accuracies[name].examples for run in runs if name in run.accuracies}
    return f"{name}\nn={'/'.join(map(str, sorted(sizes)))}"


def _costs(family: Sequence[FinishedRun]) -> list[str]:
    """Return the mean times per batch and of training, and the epochs, of a label's runs."""
    costs = [summarise_training(run.record.history, run.record.config) for run in family]
    times = [cost.seconds_per_batch for cost in costs if cost.seconds_per_batch is not None]
    epochs = sorted({cost.epochs for cost in costs} - {0})  # 0: trained elsewhere
    time = milliseconds(mean(times) if times else None)
    clocks = [cost.training_seconds for cost in costs if cost.training_seconds is not None]
    total = duration(mean(clocks) if clocks else None)
    return [time, total, "/".join(map(str, epochs)) or NOTHING]


def _highest(means: Sequence[Sequence[float]], first_column: int) -> frozenset[tuple[int, int]]:
    """Return the cells (row, column) of the highest mean in each column; -1 stands for no mean."""
    cells = set()
    for column, values in enumerate(zip(*means, strict=True)):
        highest = max(values)
        if highest >= 0:
            rows = [row for row, value in enumerate(values) if value == highest]
            cells |= {(row, first_column + column) for row in rows}
    return frozenset(cells)


def _cell(rows: Sequence[AccuracyRow]) -> str:
    if not rows:
        return NOTHING
    values = [row.accuracy for row in rows]
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    text = f"{100 * mean(values):.1f}{spread} %"
    paper = rows[0].paper
    if paper is None:
        return text
    return f"{text}\npaper {percent(paper)}, {points(mean(values) - paper)}"


def flat(runs: Sequence[FinishedRun]) -> ReportTable:
    """Return a table for programs: one row for each run, with accuracies as fractions."""
    names = in_order(name for run in runs for name in run.accuracies)
    names = [name for name in names if name != "clean" and not is_worst_case(name)]
    lines = []
    for run in runs:
        rows = run.accuracies
        clean = rows["clean"]
        cells = [f"{rows[name].accuracy:.6g}" if name in rows else "" for name in names]
        lines.append(
            [run.row.label, str(run.seed), str(clean.examples), f"{clean.accuracy:.6g}", *cells]
        )
    return ReportTable(["method", "seed", "examples", "clean", *names], lines)


@dataclass(frozen=True)
class Difference:
    """The difference between two runs on the same images.

    Attributes:
        n: The number of images.
        gained: The number of images that only the first run classifies correctly.
        lost: The number of images that only the second run classifies correctly.
    """

    n: int
    gained: int
    lost: int

    @property
    def points(self) -> float:
        """The first run's accuracy minus the second's, a fraction."""
        return (self.gained - self.lost) / self.n

    @property
    def p(self) -> float:
        """The p-value of McNemar's exact test."""
        differ = self.gained + self.lost
        return float(binomtest(self.gained, differ).pvalue) if differ else 1.0

    @property
    def beyond_chance(self) -> bool:
        return self.p < CHANCE

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return an interval of the difference on all images that the sample stands for.

        It follows from the shares of images that only the first or only the second run gets right.
        Each has its exact interval (Clopper and Pearson, 1934) at half the error (Bonferroni), so
        the level is kept, and the interval may hold 0 where `p` is small.

        Args:
            level: The confidence, such as 0.95.

        Returns:
            The two ends, fractions.
        """
        gained, lost = (
            binomtest(count, self.n).proportion_ci((1 + level) / 2)
            for count in (self.gained, self.lost)
        )
        return float(gained.low - lost.high), float(gained.high - lost.low)

    def at_least(self, level: float) -> float:
        """Return the lower end of the one-sided form of `interval`, a fraction."""
        return self.interval(2 * level - 1)[0]

    def at_most(self, level: float) -> float:
        """Return the upper end of the one-sided interval of `points`, a fraction.

        Of the d images that only one run gets right, let p be the first run's share: the
        difference is (2 p - 1) d / n, and p has the exact interval of a binomial proportion
        (Clopper and Pearson, 1934). So the end is below 0 where McNemar's exact one-sided test
        calls the first run worse: where P(X <= gained) < 1 - level for X ~ Binomial(d, 1/2).

        Args:
            level: The confidence, such as 0.95.
        """
        differ = self.gained + self.lost
        if not differ:
            return 0.0
        test = binomtest(self.gained, differ, alternative="less")
        return float(2 * test.proportion_ci(level).high - 1) * differ / self.n


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compare two arrays of flags, bool [n], of the same images (McNemar, 1947, Psychometrika)."""
    return Difference(len(first), int((first & ~second).sum()), int((second & ~first).sum()))


def differences(runs: Sequence[FinishedRun]) -> ReportTable:
    """Return a table of the differences between every two runs, on the images that both saw.

    Its columns are clean accuracy, and accuracy under all attacks that both runs had in the same
    settings and, in a cascade, after the same attacks. Differences beyond chance are bold.
    """
    lines: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for first, second in combinations(runs, 2):
        pairs = paired(first, second)
        line = [f"{name_of(first, runs)} − {name_of(second, runs)}"]
        for column, pair in enumerate(pairs):
            if pair is None:
                line.append(NOTHING)
                continue
            if pair.beyond_chance:
                bold.add((len(lines), 1 + column))
            line.append(f"{points(pair.points)} (p {p_value(pair.p)}, n={pair.n})")
        lines.append(line)
    header = ["difference in points", "clean", "right under all shared attacks"]
    return ReportTable(header, lines, frozenset(bold))


def paired(first: FinishedRun, second: FinishedRun) -> tuple[Difference, Difference | None]:
    """Return the clean difference of two runs, and that under their shared attacks, if any.

    Raises:
        UserError: If the threats or the test images of the runs differ or are not recorded.
    """
    names = [name_of(run, [first, second]) for run in (first, second)]
    both = f"{names[0]}, {names[1]}"
    threats = [_threat(run) for run in (first, second)]
    require(threats[0] == threats[1], both, "the same threat", threats)
    for run, name in zip((first, second), names, strict=True):
        expected = "digests of its test images (evaluate it again: evaluation.rerun=true)"
        require(run.flags.digest is not None, name, expected, "a record of before there were any")
    same = same_images(first.flags.digest, second.flags.digest)
    require(same, both, "the same test images in the same order", [_data(first), _data(second)])
    clean = _difference(first, second, ["clean"])
    shared = _shared_attacks(first, second)
    return clean, _difference(first, second, shared) if shared else None


def _shared_attacks(first: FinishedRun, second: FinishedRun) -> list[str]:
    """Return the names of the attacks that two runs had in the same settings.

    In a cascade, an image that an attack broke counts as broken by every later one. So under each
    norm only the attacks with which both lists begin, in any order, are shared.
    """
    cascade = any(run.record.evaluation.mode != "each" for run in (first, second))
    cascades, others = (_cascades(run, cascade) for run in (first, second))
    shared: list[str] = []
    for part, attacks in cascades.items():
        other = others.get(part, [])
        lengths = range(min(len(attacks), len(other)), 0, -1)
        same = next((n for n in lengths if dict(attacks[:n]) == dict(other[:n])), 0)
        shared += [name for name, _ in attacks[:same]]
    return shared


def _cascades(run: FinishedRun, cascade: bool) -> dict[Any, list[tuple[str, Any]]]:
    """Return the attacks of each cascade of a run, in order, with their settings.

    Args:
        run: The run.
        cascade: Whether all attacks under a norm are one cascade. If not, the attacks of each suite
            are one, and every other attack is alone.
    """
    settings, cascades = settings_of(run), dict[Any, list[tuple[str, Any]]]()
    for row in run.record.evaluation.attacks:
        if row.name in settings:
            part = (row.norm, None if cascade else row.suite or row.name)
            cascades.setdefault(part, []).append((row.name, settings[row.name]))
    return cascades


def _difference(first: FinishedRun, second: FinishedRun, names: Sequence[str]) -> Difference:
    """Return the difference under all attacks of these names, on the images that all have seen."""
    n = min(len(run.flags.right[name]) for run in (first, second) for name in names)

    def right_under_all(run: FinishedRun) -> np.ndarray:
        return np.logical_and.reduce([run.flags.right[name][:n] for name in names])

    return difference(right_under_all(first), right_under_all(second))


def settings_of(run: FinishedRun) -> dict[str, Any]:
    """Return by what each attack is known (`known_by`), name -> settings; suites are left out."""
    rows = run.record.evaluation.single_attacks
    return {r.name: known_by(r.config, r.files) for r in rows if r.name in run.flags.right}


def name_of(run: FinishedRun, runs: Sequence[FinishedRun]) -> str:
    """Return the run's label, with its seed if another of the runs has the same label."""
    labels = [other.row.label for other in runs]
    label = run.row.label
    return f"{label} seed {run.seed}" if labels.count(label) > 1 else label


def rows_of(folders: Sequence[Path]) -> list[Row]:
    """Return a row for each run folder, labelled by its name, or by its path if two share a name.

    Raises UserError if a folder comes twice, or for a file.
    """
    for file in folders:
        if Path(file).is_file():
            hint = f"(did you mean {str(Path(file).parent)!r}?)"
            raise UserError(f"{file}: expected the folder of a run, received a file {hint}")
    resolved = [Path(folder).resolve() for folder in folders]
    repeated = {str(f) for f in folders if resolved.count(Path(f).resolve()) > 1}
    if repeated:
        names = ", ".join(sorted(repeated))
        raise UserError(f"{names}: expected different runs, received one more than once")
    labels = [path.name for path in resolved]
    return [
        Row(label if labels.count(label) == 1 else str(folder), Path(folder))
        for label, folder in zip(labels, folders, strict=True)
    ]
