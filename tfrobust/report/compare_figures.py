"""Figures of a comparison: the trade-off, training curves, accuracy over eps and parameters."""

import math
from collections.abc import Sequence
from numbers import Real
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tfrobust.report.compare import Measured, alike, families
from tfrobust.report.figures import PANELS, plain_axes
from tfrobust.report.html import INK
from tfrobust.report.summary import ClassRow, class_rows, pareto

MARKERS = "osD^vP*X<>"
MOST_CLASSES = 20  # in one figure
WIDE = 10.0  # the ratio of the largest to the smallest value above which an axis is logarithmic


def scatter(runs: Sequence[Measured]) -> Figure:
    """Draw worst-case against clean accuracy, a point for each run.

    The dashed line is the Pareto front of the labels' means. A once-for-all network is a line over
    its lambdas.
    """
    figure, axes = _axes("clean accuracy", "worst-case accuracy")
    middles = []
    for place, (label, family) in enumerate(families(runs).items()):
        clean, robust = zip(*(_both(run) for run in family), strict=True)
        style = {"color": _colour(place), "marker": MARKERS[place % len(MARKERS)]}
        axes.plot(clean, robust, ls="", ms=6, alpha=0.85, label=_text(label), **style)
        middles.append((mean(clean), mean(robust)))
        for run in family:
            curve = run.record.evaluation.curve
            first = [row for row in curve if row.width == curve[0].width]
            over = sorted((row.clean_accuracy, row.robust_accuracy) for row in first)
            if over:
                axes.plot(*zip(*over, strict=True), ".-", lw=1, color=style["color"])
    front = sorted(middles[place] for place in pareto(middles))
    if len(front) > 1:
        axes.plot(
            *zip(*front, strict=True), color=INK, lw=1, ls="--", alpha=0.6, label="Pareto front"
        )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1))
        axis.set_major_locator(MaxNLocator(nbins=5))
    return _legend(figure, axes)


def overlays(runs: Sequence[Measured]) -> dict[str, Figure]:
    """Draw the training curves of all runs in one figure per panel, one colour per label.

    Panels that fewer than two runs have are left out.
    """
    figures = {}
    for panel in PANELS[:4]:
        column = next(iter(panel.lines))
        if sum(any(column in row for row in run.record.history) for run in runs) < 2:
            continue
        figure, axes = _axes("epoch", panel.title)
        for place, (label, family) in enumerate(families(runs).items()):
            for number, run in enumerate(family):
                history = run.record.history
                axes.plot(
                    [row["epoch"] for row in history],
                    [row.get(column, math.nan) for row in history],
                    color=_colour(place),
                    lw=1.4,
                    label=None if number else _text(label),
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if panel.is_percent:
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        figures[panel.name] = _legend(figure, axes)
    return figures


def over_eps(runs: Sequence[Measured]) -> Figure | None:
    """Draw robust accuracy over eps, the mean over the seeds; None unless two labels have it."""
    by_label: dict[str, list[Any]] = {}
    for label, family in families(runs).items():
        curves = [run.record.evaluation.eps_curve for run in family]
        by_label[label] = [curve for curve in curves if curve]
    if sum(bool(curves) for curves in by_label.values()) < 2:
        return None
    figure, axes = _axes("eps", "robust accuracy")
    for place, (label, curves) in enumerate(by_label.items()):
        if curves:
            eps = [row.eps for row in curves[0]]
            values = [mean(c[i].robust_accuracy for c in curves) for i in range(len(eps))]
            axes.plot(eps, values, color=_colour(place), lw=1.6, marker=".", label=_text(label))
    if alike(runs):
        axes.axvline(runs[0].record.evaluation.threats[0].eps, color=INK, lw=1, ls="--", alpha=0.55)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    return _legend(figure, axes)


def classes(runs: Sequence[Measured]) -> Figure | None:
    """Draw worst-case accuracy of each class, a row for each label, the mean over its seeds.

    None unless at least two labels have accuracies for the same, at most `MOST_CLASSES` classes.
    """
    by_label: dict[str, list[list[ClassRow]]] = {}
    for label, family in families(runs).items():
        rows_of_runs = [class_rows(run.record) for run in family]
        if any(rows_of_runs):
            by_label[label] = [rows for rows in rows_of_runs if rows]
    class_names = {
        tuple(row.name for row in rows)
        for rows_of_runs in by_label.values()
        for rows in rows_of_runs
    }
    if len(by_label) < 2 or len(class_names) > 1:
        return None
    names = class_names.pop()
    if len(names) > MOST_CLASSES:
        return None
    cells = [
        [mean(row.robust for row in of_class) for of_class in zip(*rows_of_runs, strict=True)]
        for rows_of_runs in by_label.values()
    ]
    size = (1.6 + 0.5 * len(names), 1.2 + 0.32 * len(by_label))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(cells, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(cells):
        for x, value in enumerate(row):
            ink = "black" if value > 0.5 else "white"
            axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(names)), [_text(name) for name in names])
    axes.set_yticks(range(len(by_label)), [_text(label) for label in by_label])
    plain_axes(axes)
    axes.grid(False)
    return figure


def sweeps(runs: Sequence[Measured]) -> dict[str, Figure]:
    """Draw clean (open marks) and worst-case accuracy (filled) over each number that a grid varies.

    Each combination of the other keys has a line of its own.
    """
    keys = dict.fromkeys(key for run in runs for key in run.row.varied if key != "seed")
    figures = {}
    for key in keys:
        having = [run for run in runs if _number(run.row.varied.get(key)) is not None]
        values = sorted({_number(run.row.varied[key]) or 0.0 for run in having})
        if len(values) < 2:
            continue
        figure, axes = _axes(key, "accuracy")
        lines: dict[str, list[Measured]] = {}
        for run in having:
            lines.setdefault(_others(run, key), []).append(run)
        for place, (label, family) in enumerate(lines.items()):
            at: dict[float, list[tuple[float, float]]] = {}
            for run in family:
                at.setdefault(_number(run.row.varied[key]) or 0.0, []).append(_both(run))
            places = sorted(at)
            for kind, name in enumerate(("clean", "worst case")):
                middle = [mean(pair[kind] for pair in at[x]) for x in places]
                face = {"markerfacecolor": "none"} if kind == 0 else {}
                legend = _text(f"{label} {name}".strip())
                axes.plot(
                    places, middle, "o-", color=_colour(place), ms=5, lw=1.3, label=legend, **face
                )
        positive = [value for value in values if value > 0]
        if positive and positive[-1] > WIDE * positive[0]:
            if values[0] > 0:
                axes.set_xscale("log")
            else:
                axes.set_xscale("symlog", linthresh=positive[0])
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        figures[f"over-{key}"] = _legend(figure, axes)
    return figures


def _others(run: Measured, key: str) -> str:
    """Return the run's label without the part of the key that the axis shows."""
    shown = f"{key.rpartition('.')[2]}={run.row.varied[key]}"
    return " ".join(part for part in run.row.label.split(" ") if part != shown)


def _number(value: Any) -> float | None:
    """Return a number as a float; None for anything else."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def _both(run: Measured) -> tuple[float, float]:
    """Return the clean and the worst-case accuracy of a run."""
    rows = run.accuracies
    return rows["clean"].accuracy, rows.get("worst case", rows["clean"]).accuracy


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(_text(x), color=INK)
    axes.set_ylabel(y, color=INK)
    plain_axes(axes)
    return figure, axes


def _legend(figure: Figure, axes: Any) -> Figure:
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )
    return figure


def _colour(place: int) -> Any:
    return matplotlib.colormaps["tab10"](place % 10)


def _text(label: str) -> str:
    """Return a label for matplotlib, to which a bare dollar sign would begin a formula."""
    return label.replace("$", r"\$")
