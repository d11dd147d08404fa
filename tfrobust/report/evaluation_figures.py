"""Figures of an evaluation."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tfrobust.record import CorruptionTable, CurveRow, EpsRow
from tfrobust.report.figures import COLOURS, in_percent, legend, literal, new_axes
from tfrobust.report.html import INK
from tfrobust.report.summary import ClassRow
from tfrobust.report.text import number

BARS = 20  # the largest number of classes in a figure


def class_bars(rows: Sequence[ClassRow]) -> Figure:
    """Draw clean and worst-case accuracy of the least robust classes, the most robust on top."""
    rows = sorted(rows, key=lambda row: row.robust)[:BARS]
    figure, axes = new_axes(size=(4.0, 0.8 + 0.26 * len(rows)), grid="x")
    places = np.arange(len(rows))
    clean, robust = [row.clean for row in rows], [row.robust for row in rows]
    axes.barh(places, clean, height=0.78, color=COLOURS[0], alpha=0.35, label="clean")
    axes.barh(places, robust, height=0.5, color=COLOURS[0], label="worst case")
    axes.set_yticks(places, [literal(row.name) for row in rows])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def valley(losses: Mapping[str, np.ndarray]) -> Figure:
    """Draw the loss at test images, sorted by this loss, over a band from `lowest` to `highest`.

    Args:
        losses: The losses "clean", "highest" and "lowest", each [n].
    """
    figure, axes = new_axes("test images by their loss")
    order = np.argsort(losses["clean"], kind="stable")
    visible = {key: np.maximum(loss[order], 1e-8) for key, loss in losses.items()}  # in logarithms
    places = np.arange(len(order))
    band = visible["lowest"], visible["highest"]
    axes.fill_between(places, *band, color=COLOURS[0], alpha=0.25, lw=0, label="in the ball")
    axes.plot(places, visible["clean"], color=COLOURS[0], lw=1.6, label="clean")
    axes.set_yscale("log")
    legend(axes)
    return figure


def landscapes(around: Mapping[str, np.ndarray]) -> list[Figure]:
    """Draw the loss around each image, all on one scale.

    The prediction becomes wrong at the line. The two points are the image, and the point at eps in
    the steepest direction.
    """
    axis, finite = around["axis"], around["loss"][np.isfinite(around["loss"])]
    low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
    levels = np.linspace(low, max(high, low + 1e-6), 13)
    return [
        _landscape(axis, loss, margin, levels)
        for loss, margin in zip(around["loss"], around["margin"], strict=True)
    ]


def _landscape(
    axis: np.ndarray, loss: np.ndarray, margin: np.ndarray, levels: np.ndarray
) -> Figure:
    """Draw a loss and a margin, each [S, S], over the positions `axis` [S] in units of eps."""
    labels = ("steepest direction / eps", "random direction / eps")
    figure, axes = new_axes(*labels, size=(4.0, 3.2))
    filled = axes.contourf(axis, axis, np.ma.masked_invalid(loss), levels, cmap="Blues")
    bar = figure.colorbar(filled, ax=axes, format="%.3g")
    bar.set_label("cross entropy", color=INK)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_visible(False)
    if np.nanmin(margin) < 0 < np.nanmax(margin):
        axes.contour(axis, axis, margin, [0], colors=COLOURS[1], linewidths=2)
    axes.plot([0, 1], [0, 0], "o", color="#1b1f24", mec="white", ms=7)
    axes.grid(visible=False)
    return figure


def eps_curve(curve: Sequence[EpsRow], eps: float) -> Figure:
    """Draw robust accuracy over eps, with a dashed line at the threat's eps."""
    figure, axes = new_axes("eps", "robust accuracy")
    radii, accuracy = [row.eps for row in curve], [row.robust_accuracy for row in curve]
    axes.plot(radii, accuracy, marker="o", ls="-", ms=4, lw=1.6, color=COLOURS[0])
    axes.axvline(eps, color=INK, lw=1, ls="--", alpha=0.55, label=f"eps {number(eps)}")
    in_percent(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_ylim(0, 1.04)
    legend(axes)
    return figure


def corruption_map(table: CorruptionTable) -> Figure:
    """Draw the accuracy under each corruption at each severity as a map with numbers in percent."""
    figure, axes = new_axes("severity", size=(4.0, 0.8 + 0.26 * len(table.rows)))
    shares = np.array([row.accuracy for row in table.rows])
    axes.pcolormesh(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.55 else "#1b1f24"
        place = (column + 0.5, row + 0.5)
        axes.text(*place, f"{100 * share:.0f}", color=colour, ha="center", va="center", fontsize=8)
    names = [row.name.replace("_", " ") for row in table.rows]
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.set_xticks(np.arange(len(table.severities)) + 0.5, map(str, table.severities))
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def trade_off(curve: Sequence[CurveRow]) -> Figure:
    """Draw robust against clean accuracy, a point for each lambda and a line for each width."""
    figure, axes = new_axes("clean accuracy", "robust accuracy")
    widths = list(dict.fromkeys(row.width for row in curve))
    for place, width in enumerate(widths):
        rows = [row for row in curve if row.width == width]
        rows.sort(key=lambda row: row.strength)
        points = [(row.clean_accuracy, row.robust_accuracy) for row in rows]
        colour = COLOURS[place % len(COLOURS)]
        marker = "osD^v"[place // len(COLOURS) % 5]
        label = None if width is None else f"width {width:g}"
        axes.plot(
            *zip(*points, strict=True), marker=marker, ms=4, lw=1.2, color=colour, label=label
        )
        for row, point in zip(rows, points, strict=True):
            text = f"{row.strength:g}"
            axes.annotate(text, point, (4, 4), textcoords="offset points", color=INK, fontsize=8)
    if widths != [None]:
        legend(axes)
    in_percent(axes.xaxis, axes.yaxis)
    return figure
