"""A comparison of several runs: one table, and tests of which differences are beyond chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import binomtest

from tfrobust.errors import UserError, require
from tfrobust.flags import Flags, same_images
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
from tfrobust.report.text import NOTHING, milliseconds, percent, points

CHANCE = 0.05


@dataclass(frozen=True)
class Row:
    """A run to compare. Runs with the same label are the seeds of one row of the table.

    Attributes:
        label: the name of the row.
        run: the run folder.
        varied: key -> value of the keys in which the runs of a grid differ.
        reason: why the run failed; None if it did not.
    """

    label: str
    run: Path
    varied: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Measured:
    """A finished run with its files read."""

    row: Row
    record: RunRecord
    flags: Flags

    @property
    def seed(self) -> int:
        return int(self.record.config.get("seed") or 0)

    @property
    def accuracies(self) -> dict[str, AccuracyRow]:
        rows = accuracy_rows(self.record.config, self.record.evaluation)
        return {row.name: row for row in rows}


def measured(rows: Sequence[Row]) -> list[Measured]:
    """Read the runs that did not fail. Raises UserError as `load_run` does, and without flags."""
    runs = []
    for row in rows:
        if row.reason is not None:
            continue
        record = load_run(row.run)
        if record.flags is None:
            raise UserError(f"{row.run / 'flags.npz'}: expected flags, received no such file")
        runs.append(Measured(row, record, record.flags))
    return runs


def families(runs: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Group the runs by label: label -> the runs of its seeds."""
    groups: dict[str, list[Measured]] = {}
    for run in runs:
        groups.setdefault(run.row.label, []).append(run)
    return groups


def alike(runs: Sequence[Measured]) -> bool:
    """Return whether all runs share one set of images and one threat, so that numbers compare."""
    return all(_threat(r) == _threat(runs[0]) and _same_data(r, runs[0]) for r in runs)


def _threat(run: Measured) -> tuple[Any, ...]:
    """Return the norm and the eps of each threat."""
    return tuple(chain.from_iterable(run.record.evaluation.radii))


def _data(run: Measured) -> tuple[str, str]:
    data = data_of(run.record.config, run.record.evaluation)
    return data.name, data.split


def _same_data(first: Measured, second: Measured) -> bool:
    """Compare the digests of the images, or the names of the data if a digest is missing."""
    if first.flags.digest is None or second.flags.digest is None:
        return _data(first) == _data(second)
    return same_images(first.flags.digest, second.flags.digest)


def same_test_images(runs: Sequence[Measured]) -> bool:
    """Return whether all runs saw the same images, by their digests."""
    return all(same_images(runs[0].flags.digest, run.flags.digest) for run in runs)


def columns(runs: Sequence[Measured]) -> list[str]:
    """Return the names of the accuracies of all runs, in the order of `in_order`."""
    return in_order(name for run in runs for name in run.accuracies)


def comparison(runs: Sequence[Measured]) -> ReportTable:
    """Return the table with one row per label.

    A cell has the mean accuracy over the seeds with its standard deviation and, where it is known,
    the paper's figure with the difference to it. The best of a column is bold if the runs are
    `alike`.
    """
    names = columns(runs)
    lines, means = [], []
    for label, family in families(runs).items():
        cells, values = [], []
        for name in names:
            rows = [run.accuracies[name] for run in family if name in run.accuracies]
            cells.append(_cell(rows))
            values.append(mean(row.accuracy for row in rows) if rows else -1.0)
        seeds = ", ".join(str(run.seed) for run in family)
        lines.append([label, seeds, *cells, *_costs(family)])
        means.append(values)
    header = ["method", "seeds", *(_head(name, runs) for name in names)]
    best = _highest(means, first_column=2) if len(means) > 1 and alike(runs) else frozenset()
    return ReportTable([*header, "time per batch", "epochs"], lines, best)


def _head(name: str, runs: Sequence[Measured]) -> str:
    """Return the header of a column: the accuracy's name and its numbers of images."""
    sizes = {run.accuracies[name].examples for run in runs if name in run.accuracies}
    return f"{name}\nn={'/'.join(map(str, sorted(sizes)))}"


def _costs(family: Sequence[Measured]) -> list[str]:
    """Return the mean time per batch and the epochs of a label's runs."""
    costs = [summarise_training(run.record.history, run.record.config) for run in family]
    times = [cost.seconds_per_batch for cost in costs if cost.seconds_per_batch is not None]
    epochs = sorted({cost.epochs for cost in costs} - {0})  # 0: trained elsewhere
    return [
        milliseconds(mean(times) if times else None),
        "/".join(map(str, epochs)) or NOTHING,
    ]


def _highest(means: Sequence[Sequence[float]], first_column: int) -> frozenset[tuple[int, int]]:
    """Return the cells (row, column) with the highest mean of each column; -1 is no mean."""
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


def flat(runs: Sequence[Measured]) -> ReportTable:
    """Return a table for programs: one row per run, accuracies as fractions."""
    names = [name for name in columns(runs) if name != "clean" and not is_worst_case(name)]
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
        n: the number of images.
        gained: how many of them only the first run gets right.
        lost: how many of them only the second run gets right.
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


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compare two arrays of flags, bool [n], of the same images.

    (McNemar, 1947, "Note on the sampling error of the difference between correlated proportions or
    percentages".)
    """
    return Difference(len(first), int((first & ~second).sum()), int((second & ~first).sum()))


def differences(runs: Sequence[Measured]) -> ReportTable:
    """Return a table of the differences between every two runs, on the images that both saw.

    The columns are clean accuracy, and accuracy under all attacks that ran on both with the same
    settings. Differences beyond chance are bold.
    """
    lines: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for first, second in combinations(runs, 2):
        pairs = _pairs(first, second)
        line = [f"{name_of(first, runs)} − {name_of(second, runs)}"]
        for column, pair in enumerate(pairs):
            if pair is None:
                line.append(NOTHING)
                continue
            if pair.beyond_chance:
                bold.add((len(lines), 1 + column))
            line.append(f"{points(pair.points)} (p {_p(pair.p)}, n={pair.n})")
        lines.append(line)
    header = ["difference in points", "clean", "right under all shared attacks"]
    return ReportTable(header, lines, frozenset(bold))


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _pairs(first: Measured, second: Measured) -> tuple[Difference, Difference | None]:
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
    settings, others = _settings(first), _settings(second)
    shared = [name for name in settings if name in others and settings[name] == others[name]]
    return clean, _difference(first, second, shared) if shared else None


def _difference(first: Measured, second: Measured, names: Sequence[str]) -> Difference:
    """Return the difference of what is right under all these, on the images that all saw."""
    flags = [[run.flags.right[name] for name in names] for run in (first, second)]
    n = min(len(right) for columns in flags for right in columns)
    one, other = (np.logical_and.reduce([right[:n] for right in columns]) for columns in flags)
    return difference(one, other)


def _settings(run: Measured) -> dict[str, Any]:
    """Return the settings of each attack, attack -> config; a suite stands as its attacks."""
    record = run.record.evaluation
    rows = [row for row in record.attacks if row.name not in record.suites]
    return {row.name: row.config for row in rows if row.name in run.flags.right}


def name_of(run: Measured, among: Sequence[Measured]) -> str:
    """Return the run's label, with its seed if another of the runs has the same label."""
    labels = [other.row.label for other in among]
    label = run.row.label
    return f"{label} seed {run.seed}" if labels.count(label) > 1 else label


def named(runs: Sequence[Path]) -> list[Row]:
    """Return a row for each run folder, labelled by its name, or by its path if two share a name.

    Raises UserError if a folder comes twice.
    """
    paths = [Path(run) for run in runs]
    resolved = [path.resolve() for path in paths]
    twice = {str(path) for path in paths if resolved.count(path.resolve()) > 1}
    if twice:
        names = ", ".join(sorted(twice))
        raise UserError(f"{names}: expected different runs, received one more than once")
    labels = [path.resolve().name for path in paths]
    return [
        Row(label if labels.count(label) == 1 else str(path), path)
        for label, path in zip(labels, paths, strict=True)
    ]
