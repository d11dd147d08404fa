"""The figures of docs/results.md: accuracies, and a training over its minutes, as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from summaries import name_without_seed, rows_of

from tfrobust.io import write_atomically

COLOURS, LINES = 20, ("-", "--", ":", "-.")
MANY = 60  # the number of epochs from which a line has no dots


def figure(group: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the runs on a data set as an SVG.

    Each run has a line with its clean and its worst-case accuracy and their 95 % intervals; the
    seeds of a run share a line.
    """
    names = list(dict.fromkeys(name_without_seed(summary["name"]) for summary in group))
    drawn = Figure(figsize=(6.4, 0.7 + 0.42 * len(names)), layout="constrained")
    axes = drawn.add_subplot()
    for colour, kind in (("#2f7ed8", "clean"), ("#e07b39", "worst case")):
        for summary in group:
            row, name = rows_of(summary).get(kind), name_without_seed(summary["name"])
            if row is None:
                continue
            line: float = names.index(name)
            twins = [other for other in group if name_without_seed(other["name"]) == name]
            line += 0.16 * (twins.index(summary) - (len(twins) - 1) / 2)
            reach = [[row.accuracy - row.low], [row.high - row.accuracy]]
            axes.errorbar(row.accuracy, line, xerr=reach, fmt="o", ms=4, lw=1, color=colour)
        axes.plot([], [], "o", color=colour, label=kind)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.grid(axis="x", alpha=0.3)
    drawn.legend(loc="outside upper right", ncols=2, frameon=False)
    save(drawn, path)


def timed(group: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the summaries with robust accuracy over time.

    The list is empty if there are fewer than two, as one line would compare nothing, and for a
    suite in which no run shows catastrophic overfitting.
    """
    runs = [summary for summary in group if summary["training"].get("robust_over_time")]
    drawn = any(
        summary["suite"] is None or summary["training"].get("overfitted_seconds")
        for summary in runs
    )
    return runs if drawn and len(runs) > 1 else []


def time_figure(group: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw validation robust accuracy over the minutes of training as SVG, a line for each run.

    A second panel has the Jacobian estimate of the runs that record it. A cross marks the first
    epoch that shows catastrophic overfitting. The seeds of a run share a colour.
    """
    names = list(dict.fromkeys(name_without_seed(summary["name"]) for summary in group))
    panels = {"robust_over_time": "validation robust accuracy"}
    if any(summary["training"].get("jacobian_over_time") for summary in group):
        panels["jacobian_over_time"] = "Jacobian estimate on validation data"
    drawn = Figure(figsize=(6.4, 4.0 * len(panels)), layout="constrained")
    labelled = set()
    for place, (key, title) in enumerate(panels.items()):
        axes = drawn.add_subplot(len(panels), 1, place + 1)
        for summary in group:
            training, name = summary["training"], name_without_seed(summary["name"])
            if not (points := training.get(key)):
                continue
            cycle, nth = divmod(names.index(name), COLOURS)
            style: Any = {
                "color": matplotlib.colormaps["tab20"](nth),
                "ls": LINES[cycle % len(LINES)],
            }
            label = None if name in labelled else name
            minutes, values = zip(*((at / 60, value) for at, value in points), strict=True)
            dots = "." if len(points) < MANY else ""
            axes.plot(minutes, values, marker=dots, lw=1.3, label=label, **style)
            labelled.add(name)
            first = training.get("overfitted_seconds", [])[:1]
            for at, value in points:
                if at in first:
                    axes.plot(at / 60, value, "kx", ms=9, zorder=3)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if key == "robust_over_time":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        else:
            axes.set_yscale("log")
    axes.set_xlabel("minutes of training")
    if any(summary["training"].get("overfitted_seconds") for summary in group):
        axes.plot([], [], "kx", ms=9, label="catastrophic overfitting")
    drawn.legend(loc="outside right upper", frameon=False, fontsize=8)
    save(drawn, path)


def save(drawn: Figure, path: Path) -> None:
    """Write a figure as SVG, the same bytes each time."""
    with matplotlib.rc_context({"svg.hashsalt": "tfrobust"}):
        write_atomically(path, lambda aside: drawn.savefig(aside, metadata={"Date": None}))
