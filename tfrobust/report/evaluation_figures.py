"""Figures of an evaluation."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tfrobust.record import CorruptionTable, CurveRow, EpsRow
from tfrobust.report.figures import COLOURS, plain_axes
from tfrobust.report.html import INK
from tfrobust.report.summary import ClassRow
from tfrobust.report.text import number

BARS = 20  # the most classes that are drawn


def class_bars(rows: Sequence[ClassRow]) -> Figure:
    """Draw clean and worst-case accuracy of the least robust classes, the most robust on top."""
    some = sorted(rows, key=lambda row: row.robust)[:BARS]
    figure = Figure(figsize=(4.0, 0.8 + 0.26 * len(some)), layout="constrained")
    axes = figure.add_subplot()
    names = [row.name.replace("$", r"\$") for row in some]
    places = np.arange(len(some))
    clean, robust = ([getattr(row, kind) for row in some] for kind in ("clean", "robust"))
    axes.barh(places, clean, height=0.78, color=COLOURS[0], alpha=0.35, label="clean")
    axes.barh(places, robust, height=0.5, color=COLOURS[0], label="worst case")
    axes.set_yticks(places, names)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    plain_axes(axes, grid="x")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def valley(losses: Mapping[str, np.ndarray]) -> Figure:
    """Draw the loss at test images, in rising order, in the band between the lowest and the highest
    loss found around each."""
    figure = Figure(figsize=(4.0, 2.6), layout="constrained")
    axes = figure.add_subplot()
    order = np.argsort(losses["clean"], kind="stable")
    least = 1e-8  # on a logarithmic scale
    clean, high, low = (
        np.maximum(losses[key][order], least) for key in ("clean", "highest", "lowest")
    )
    places = np.arange(len(order))
    axes.fill_between(places, low, high, color=COLOURS[0], alpha=0.25, lw=0, label="in the ball")
    axes.plot(places, clean, color=COLOURS[0], lw=1.6, label="clean")
    axes.set_yscale("log")
    axes.set_xlabel("test images by their loss", color=INK)
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def landscapes(around: Mapping[str, np.ndarray]) -> list[Figure]:
    """Draw the loss around each image, all on one scale.

    The line is where the prediction becomes wrong; the two points are the image, and the point at
    eps in the steepest direction.
    """
    axis, finite = around["axis"], np.isfinite(around["loss"])
    low, high = (float(end(around["loss"][finite], initial=0)) for end in (np.min, np.max))
    levels = np.linspace(low, max(high, low + 1e-6), 13)
    return [
        _landscape(axis, loss, margin, levels)
        for loss, margin in zip(around["loss"], around["margin"], strict=True)
    ]


def _landscape(
    axis: np.ndarray, loss: np.ndarray, margin: np.ndarray, levels: np.ndarray
) -> Figure:
    figure = Figure(figsize=(4.0, 3.2), layout="constrained")
    axes = figure.add_subplot()
    filled = axes.contourf(axis, axis, np.ma.masked_invalid(loss), levels, cmap="Blues")
    bar = figure.colorbar(filled, ax=axes, format="%.3g")
    bar.set_label("cross entropy", color=INK)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_visible(False)
    if np.nanmin(margin) < 0 < np.nanmax(margin):
        axes.contour(axis, axis, margin, [0], colors=COLOURS[1], linewidths=2)
    axes.plot([0, 1], [0, 0], "o", color="#1b1f24", mec="white", ms=7)
    axes.set_xlabel("steepest direction / eps", color=INK)
    axes.set_ylabel("random direction / eps", color=INK)
    plain_axes(axes)
    axes.grid(visible=False)
    return figure


def eps_curve(curve: Sequence[EpsRow], eps: float) -> Figure:
    """Draw robust accuracy over eps, with a dashed line at the threat's eps."""
    figure = Figure(figsize=(4.0, 2.6), layout="constrained")
    axes = figure.add_subplot()
    radii, accuracy = [row.eps for row in curve], [row.robust_accuracy for row in curve]
    axes.plot(radii, accuracy, marker="o", ls="-", ms=4, lw=1.6, color=COLOURS[0])
    axes.axvline(eps, color=INK, lw=1, ls="--", alpha=0.55, label=f"eps {number(eps)}")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("eps", color=INK)
    axes.set_ylabel("robust accuracy", color=INK)
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def corruption_map(table: CorruptionTable) -> Figure:
    """Draw the accuracy under each corruption at each severity as a map with numbers in percent."""
    figure = Figure(figsize=(4.0, 0.8 + 0.26 * len(table.rows)), layout="constrained")
    axes = figure.add_subplot()
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
    axes.set_xlabel("severity", color=INK)
    plain_axes(axes)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def trade_off(curve: Sequence[CurveRow]) -> Figure:
    """Draw robust against clean accuracy, a point for each lambda and a line for each width."""
    figure = Figure(figsize=(4.0, 2.6), layout="constrained")
    axes = figure.add_subplot()
    widths = list(dict.fromkeys(row.width for row in curve))
    for width, colour in zip(widths, itertools.cycle(COLOURS)):
        same = [row for row in curve if row.width == width]
        rows = sorted(same, key=lambda row: row.strength)
        clean, robust = [row.clean_accuracy for row in rows], [row.robust_accuracy for row in rows]
        label = None if width is None else f"width {width:g}"
        axes.plot(clean, robust, marker="o", ls="-", ms=4, lw=1.2, color=colour, label=label)
        for row, x, y in zip(rows, clean, robust, strict=True):
            text = f"{row.strength:g}"
            axes.annotate(text, (x, y), (4, 4), textcoords="offset points", color=INK, fontsize=8)
    if widths != [None]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1))
        axis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("clean accuracy", color=INK)
    axes.set_ylabel("robust accuracy", color=INK)
    plain_axes(axes)
    return figure
