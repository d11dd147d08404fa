"""Several runs side by side: one table, and which differences are more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import binomtest

from tfrobust.errors import UserError, require
from tfrobust.evaluation.record import Flags, same_images
from tfrobust.report.html import Table
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
    """A run of a comparison: its row's label, its folder, the keys in which it differs from others
    of a grid, and why it failed, if it did. Runs of one label are the seeds of one row."""

    label: str
    run: Path
    varied: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Measured:
    """A finished run."""

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
    """The runs that did not fail, read from their folders. Raises UserError as `load_run` does."""
    found = []
    for row in rows:
        if row.reason is not None:
            continue
        record = load_run(row.run)
        if record.flags is None:
            raise UserError(f"{row.run / 'flags.npz'}: expected flags, received no such file")
        found.append(Measured(row, record, record.flags))
    return found


def families(runs: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Label -> the runs of its seeds."""
    found: dict[str, list[Measured]] = {}
    for run in runs:
        found.setdefault(run.row.label, []).append(run)
    return found


def alike(runs: Sequence[Measured]) -> bool:
    """Whether all runs have the images and the threat of the first, so that numbers compare."""
    return all(_threat(r) == _threat(runs[0]) and _same_data(r, runs[0]) for r in runs)


def _threat(run: Measured) -> tuple[str, float]:
    threat = run.record.evaluation.threat
    return threat.norm, threat.eps


def _data(run: Measured) -> tuple[str, str]:
    data = data_of(run.record.config, run.record.evaluation)
    return data.name, data.split


def _same_data(first: Measured, second: Measured) -> bool:
    """Whether the images are the same; as far as they are named where digests are not known."""
    one, other = first.flags.digest, second.flags.digest
    if one is None or other is None:
        return _data(first) == _data(second)
    return same_images(one, other)


def same_test_images(runs: Sequence[Measured]) -> bool:
    """Whether all runs saw the images of the first, by their digests."""
    return all(same_images(runs[0].flags.digest, run.flags.digest) for run in runs)


def columns(runs: Sequence[Measured]) -> list[str]:
    """clean, every attack in order of appearance, and last the worst case over all images and over
    fewer."""
    return in_order(name for run in runs for name in run.accuracies)


def comparison(runs: Sequence[Measured]) -> Table:
    """A row a label: mean accuracies with their standard deviation over the seeds, the paper's and
    the difference to it where it is known, the cost of training. The best of a column is bold,
    where the runs are `alike`."""
    kinds = columns(runs)
    sizes = {
        kind: sorted({run.accuracies[kind].examples for run in runs if kind in run.accuracies})
        for kind in kinds
    }
    heads = [f"{kind}\nn={'/'.join(map(str, sizes[kind]))}" for kind in kinds]
    lines, means = [], []
    for label, family in families(runs).items():
        cells, values = [], []
        for kind in kinds:
            found = [run.accuracies[kind] for run in family if kind in run.accuracies]
            cells.append(_cell(found))
            values.append(mean(row.accuracy for row in found) if found else -1.0)
        told = [summarise_training(run.record.history, run.record.config) for run in family]
        times = [t.seconds_per_batch for t in told if t.seconds_per_batch is not None]
        epochs = sorted({t.epochs for t in told})
        line = [label, ", ".join(str(run.seed) for run in family), *cells]
        lines.append(
            [*line, milliseconds(mean(times) if times else None), "/".join(map(str, epochs))]
        )
        means.append(values)
    best = {
        (place, 2 + column)
        for column in range(len(kinds))
        for place, values in enumerate(means)
        if len(means) > 1 and alike(runs) and values[column] == max(v[column] for v in means) >= 0
    }
    return Table(["method", "seeds", *heads, "time per batch", "epochs"], lines, frozenset(best))


def _cell(rows: Sequence[AccuracyRow]) -> str:
    if not rows:
        return NOTHING
    values = [row.accuracy for row in rows]
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    told = f"{100 * mean(values):.1f}{spread} %"
    paper = rows[0].paper
    return (
        told if paper is None else f"{told}\npaper {percent(paper)}, {points(mean(values) - paper)}"
    )


def flat(runs: Sequence[Measured]) -> Table:
    """A row a run, accuracies as fractions: what a program reads."""
    kinds = [kind for kind in columns(runs) if kind != "clean" and not is_worst_case(kind)]
    lines = []
    for run in runs:
        known = run.accuracies
        cells = [f"{known[kind].accuracy:.6g}" if kind in known else "" for kind in kinds]
        clean = known["clean"]
        lines.append(
            [run.row.label, str(run.seed), str(clean.examples), f"{clean.accuracy:.6g}", *cells]
        )
    return Table(["method", "seed", "examples", "clean", *kinds], lines)


@dataclass(frozen=True)
class Difference:
    """One run against another on the same n images: `gained` are right in the first alone, `lost`
    in the second alone. p: of McNemar's test, exact."""

    n: int
    gained: int
    lost: int

    @property
    def points(self) -> float:
        """A fraction: the first's accuracy minus the second's."""
        return (self.gained - self.lost) / self.n

    @property
    def p(self) -> float:
        differ = self.gained + self.lost
        return float(binomtest(self.gained, differ).pvalue) if differ else 1.0

    @property
    def beyond_chance(self) -> bool:
        return self.p < CHANCE


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Of two arrays of flags, bool [n], of the same images. (McNemar, 1947, "Note on the sampling
    error of the difference between correlated proportions or percentages".)"""
    return Difference(len(first), int((first & ~second).sum()), int((second & ~first).sum()))


def differences(runs: Sequence[Measured]) -> Table:
    """Every pair of runs on the images that both saw: clean, and under all attacks that both met
    with the same settings. Bold is what is beyond chance."""
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
    return Table(header, lines, frozenset(bold))


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
    one, other = first.flags.right, second.flags.right
    ours, theirs = _settings(first), _settings(second)
    shared = [key for key in ours if key in theirs and ours[key] == theirs[key]]
    n = min(len(one["clean"]), len(other["clean"]))
    clean = difference(one["clean"][:n], other["clean"][:n])
    if not shared:
        return clean, None
    n = min(len(right[key]) for right in (one, other) for key in shared)
    left, right = (
        np.logical_and.reduce([flags[key][:n] for key in shared]) for flags in (one, other)
    )
    return clean, difference(left, right)


def _settings(run: Measured) -> dict[str, Any]:
    """The settings of each attack by its name; a suite is known by its attacks."""
    record = run.record.evaluation
    rows = [row for row in record.attacks if row.name not in record.suites]
    return {row.name: row.config for row in rows if row.name in run.flags.right}


def name_of(run: Measured, among: Sequence[Measured]) -> str:
    """The label, with the seed where another run shares it."""
    twins = [other for other in among if other.row.label == run.row.label]
    return f"{run.row.label} seed {run.seed}" if len(twins) > 1 else run.row.label


def named(runs: Sequence[Path]) -> list[Row]:
    """A row for each folder, labelled by its name, or by its path where two share that. Raises
    UserError for a folder that is given twice."""
    paths = [Path(run) for run in runs]
    twice = sorted({str(p) for p in paths if sum(p.resolve() == o.resolve() for o in paths) > 1})
    if twice:
        raise UserError(f"{', '.join(twice)}: expected different runs, received one more than once")
    labels = [path.resolve().name for path in paths]
    return [
        Row(label if labels.count(label) == 1 else str(path), path)
        for label, path in zip(labels, paths, strict=True)
    ]
