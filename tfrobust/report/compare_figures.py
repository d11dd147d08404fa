"""Figures of a comparison: the trade-off, training curves, accuracy over eps and parameters."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

import matplotlib
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tfrobust.errors import UserError, number
from tfrobust.overfitting import ROBUST
from tfrobust.report.columns import comparable, marks
from tfrobust.report.compare import FinishedRun, alike, families
from tfrobust.report.figures import PANELS, in_percent, literal, new_axes
from tfrobust.report.html import INK
from tfrobust.report.summary import WORST, ClassRow, class_rows, pareto, series_over_time

COLOURS = 10
MARKERS, LINES = "osD^vP*X<>", ("-", "--", ":", "-.")
MOST_CLASSES = 20  # in one figure
WIDE = 10.0  # the ratio of the largest to the smallest value above which an axis is logarithmic
SIZE = (4.6, 3.4)  # of a figure, in inches


def scatter(runs: Sequence[FinishedRun]) -> dict[str, Figure]:
    """Draw worst-case against clean accuracy, a point for each run that was attacked.

    The dashed line is the Pareto front of the means of the labels without `marks`, if their numbers
    are `comparable`. A once-for-all network is a line over its lambdas. There is no figure of fewer
    than two points.
    """
    runs = [run for run in runs if WORST in run.accuracies]
    if len(runs) < 2:
        return {}
    figure, axes = new_axes("clean accuracy", "worst-case accuracy", size=SIZE)
    means = []
    for place, (label, family) in enumerate(families(runs).items()):
        clean, robust = zip(*(_accuracies(run) for run in family), strict=True)
        marker = MARKERS[(place + place // COLOURS) % len(MARKERS)]
        style = {"color": _colour(place), "marker": marker}
        mark = marks(run.record for run in family)
        axes.plot(clean, robust, ls="", ms=6, alpha=0.85, label=literal(label + mark), **style)
        if not mark:
            means.append((mean(clean), mean(robust)))
        for run in family:
            curve = run.record.evaluation.curve
            first = [row for row in curve if row.width == curve[0].width]
            points = sorted((row.clean_accuracy, row.robust_accuracy) for row in first)
            if points:
                axes.plot(*zip(*points, strict=True), ".-", lw=1, color=style["color"])
    front = sorted(means[place] for place in pareto(means))
    records = [run.record.evaluation for run in runs if not marks([run.record])]
    if len(front) > 1 and all(comparable(records, name) for name in ("clean", WORST)):
        axes.plot(
            *zip(*front, strict=True), color=INK, lw=1, ls="--", alpha=0.6, label="Pareto front"
        )
    in_percent(axes.xaxis, axes.yaxis)
    return {"trade-off": _legend(figure, axes)}


def overlays(runs: Sequence[FinishedRun]) -> dict[str, Figure]:
    """Draw the training curves of all runs, a figure for each panel and a colour for each label.

    A panel is left out if fewer than two runs have its first column.
    """
    figures = {}
    for panel in PANELS[:4]:
        column = next(iter(panel.lines))
        if sum(any(column in row for row in run.record.history) for run in runs) < 2:
            continue
        figure, axes = new_axes("epoch", panel.title, size=SIZE)
        for place, (label, family) in enumerate(families(runs).items()):
            for nth, run in enumerate(family):
                history = run.record.history
                axes.plot(
                    [row["epoch"] for row in history],
                    [row.get(column, math.nan) for row in history],
                    **_line(place),
                    lw=1.4,
                    label=None if nth else literal(label),
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if panel.is_percent:
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        figures[panel.name] = _legend(figure, axes)
    return figures


def over_time(runs: Sequence[FinishedRun]) -> dict[str, Figure]:
    """Draw validation robust accuracy over the time of training, a line for each run.

    There is no figure unless two runs have both.
    """
    lines = {id(run): series_over_time(run.record.history, ROBUST) for run in runs}
    if sum(bool(line) for line in lines.values()) < 2:
        return {}
    figure, axes = new_axes("minutes of training", "validation robust accuracy", size=SIZE)
    for place, (label, family) in enumerate(families(runs).items()):
        for nth, run in enumerate(family):
            axes.plot(
                [seconds / 60 for seconds, _ in lines[id(run)]],
                [robust for _, robust in lines[id(run)]],
                **_line(place),
                lw=1.4,
                marker=".",
                label=None if nth else literal(label),
            )
    in_percent(axes.yaxis)
    return {"robust-accuracy-over-time": _legend(figure, axes)}


def over_eps(runs: Sequence[FinishedRun]) -> dict[str, Figure]:
    """Draw robust accuracy over eps, the mean over the seeds; nothing unless two labels have it.

    There is no common axis of eps under different norms. Seeds measured at different eps are
    averaged at those that they share.
    """
    by_label: dict[str, dict[float, float]] = {}
    if len({run.record.evaluation.threats[0].norm for run in runs}) > 1:
        return {}
    for label, family in families(runs).items():
        curves = [run.record.evaluation.eps_curve for run in family]
        seeds = [{row.eps: row.robust_accuracy for row in curve} for curve in curves if curve]
        shared = [eps for eps in seeds[0] if all(eps in seed for seed in seeds)] if seeds else []
        by_label[label] = {eps: mean(seed[eps] for seed in seeds) for eps in shared}
    if sum(bool(curve) for curve in by_label.values()) < 2:
        return {}
    figure, axes = new_axes("eps", "robust accuracy", size=SIZE)
    for place, (label, curve) in enumerate(by_label.items()):
        if curve:
            style = {**_line(place), "lw": 1.6, "marker": "."}
            axes.plot([*curve], [*curve.values()], label=literal(label), **style)
    if alike(runs):
        axes.axvline(runs[0].record.evaluation.threats[0].eps, color=INK, lw=1, ls="--", alpha=0.55)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    return {"eps": _legend(figure, axes)}


def classes(runs: Sequence[FinishedRun]) -> dict[str, Figure]:
    """Draw worst-case accuracy of each class, a row for each label, the mean over its seeds.

    There is no figure unless two labels have accuracies of the same classes, at most MOST_CLASSES.
    """
    by_label: dict[str, list[list[ClassRow]]] = {}
    class_names: set[tuple[str, ...]] = set()
    for run in runs:
        rows = class_rows(run.record)
        if rows:
            by_label.setdefault(run.row.label, []).append(rows)
            class_names.add(tuple(row.name for row in rows))
    if len(by_label) < 2 or len(class_names) > 1:
        return {}
    names = class_names.pop()
    if len(names) > MOST_CLASSES:
        return {}
    size = (1.6 + 0.5 * len(names), 1.2 + 0.32 * len(by_label))
    figure, axes = new_axes(size=size)
    cells = []
    for y, rows_of_seeds in enumerate(by_label.values()):
        rows_of_classes = zip(*rows_of_seeds, strict=True)
        cells.append([mean(row.robust for row in rows) for rows in rows_of_classes])
        for x, value in enumerate(cells[-1]):
            ink = "black" if value > 0.5 else "white"
            axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axes.imshow(cells, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    slanted: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), [literal(name) for name in names], **slanted)
    axes.set_yticks(range(len(by_label)), [literal(label) for label in by_label])
    axes.grid(False)
    return {"classes": figure}


def sweeps(runs: Sequence[FinishedRun]) -> dict[str, Figure]:
    """Draw clean (open marks) and worst-case accuracy (filled) over each number that a grid varies.

    Each combination of the other keys has a separate line.
    """
    keys = dict.fromkeys(key for run in runs for key in run.row.varied if key != "seed")
    figures = {}
    for key in keys:
        # label without the key -> value of the key -> (clean, worst case) of each seed
        lines: dict[str, dict[float, list[tuple[float, float]]]] = {}
        for run in runs:
            value = _number(run.row.varied.get(key))
            if value is not None:
                line = lines.setdefault(_label_without(run, key, value), {})
                line.setdefault(value, []).append(_accuracies(run))
        values = sorted({value for line in lines.values() for value in line})
        if len(values) < 2:
            continue
        figure, axes = new_axes(literal(key), "accuracy", size=SIZE)
        for place, (label, line) in enumerate(lines.items()):
            for kind, name in enumerate(("clean", WORST)):
                heights = [mean(pair[kind] for pair in line[value]) for value in sorted(line)]
                if all(map(math.isnan, heights)):
                    continue
                axes.plot(
                    sorted(line),
                    heights,
                    marker="o",
                    **_line(place),
                    ms=5,
                    lw=1.3,
                    label=literal(f"{label} {name}".strip()),
                    **({"markerfacecolor": "none"} if name == "clean" else {}),
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


def _number(value: Any) -> float | None:
    """Return a number or a fraction, or the text of one, as a float; None for anything else."""
    try:
        return number("", yaml.safe_load(value) if isinstance(value, str) else value)
    except (UserError, yaml.YAMLError):
        return None


def _label_without(run: FinishedRun, key: str, value: float) -> str:
    """Return the label of a run without the value of a key, such as alpha=1.0e-06.

    Several keys of a grid may end alike, such as method.attack.steps and
    train.validation_attack.steps. Their values stand in the label in the order of the grid.
    """
    begin = f"{key.rpartition('.')[2]}="
    parts = run.row.label.split(" ")
    places = [
        place
        for place, part in enumerate(parts)
        if part.startswith(begin) and _number(part.removeprefix(begin)) == value
    ]
    alike = [
        other
        for other, others in run.row.varied.items()
        if f".{other}".endswith(f".{begin[:-1]}") and _number(others) == value
    ]
    for place in places[-len(alike) :][alike.index(key) :][:1]:
        del parts[place]
    return " ".join(parts)


def _accuracies(run: FinishedRun) -> tuple[float, float]:
    """Return the clean and the worst-case accuracy of a run, NaN if it was not attacked."""
    rows = run.accuracies
    return rows["clean"].accuracy, rows[WORST].accuracy if WORST in rows else math.nan


def _legend(figure: Figure, axes: Any) -> Figure:
    """Return the figure with a legend below its axes."""
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
    return matplotlib.colormaps["tab10"](place % COLOURS)


def _line(place: int) -> dict[str, Any]:
    """Return the colour and the style of a line, which differ for each of the first 40 labels."""
    return {"color": _colour(place), "ls": LINES[place // COLOURS % len(LINES)]}
