"""Figures of a training, and images as PNG data URIs for a page."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tfrobust.overfitting import ROBUST, overfitted
from tfrobust.report.html import INK
from tfrobust.report.record import Probes, RunRecord

COLOURS = ("#2f7ed8", "#e07b39", "#2fa36b")  # readable on white and on near-black
ALARM = "#d6453a"


@dataclass(frozen=True)
class Panel:
    """One small plot of the training history.

    Attributes:
        name: the name of its file.
        title: the title.
        lines: column of the history -> legend.
        is_percent: whether the vertical axis is in percent.
    """

    name: str
    title: str
    lines: Mapping[str, str]
    is_percent: bool = False

    def measured(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Return whether the history has one of the panel's columns."""
        return any(column in row for column in self.lines for row in history)


# The first three are the columns of ATLAS's Figure 11.
PANELS = (
    Panel("jacobian", "Jacobian estimate at x′", {"val_jacobian": "validation"}),
    Panel(
        "robust-accuracy",
        "Validation robust accuracy",
        {"val_robust_accuracy": "monitor attack", "val_fgsm_accuracy": "FGSM"},
        is_percent=True,
    ),
    Panel(
        "clean-accuracy",
        "Validation clean accuracy",
        {"val_accuracy": "validation"},
        is_percent=True,
    ),
    Panel("loss", "Loss", {"loss": "training", "val_loss": "validation"}),
    Panel("learning-rate", "Learning rate", {"learning_rate": "learning rate"}),
    Panel("eps", "Training eps", {"eps": "eps"}),
)


def curves(history: Sequence[Mapping[str, float]], best: int | None) -> list[tuple[Panel, Figure]]:
    """Draw every panel that the history has a column for, with a dashed line at the best epoch."""
    return [(panel, _panel(panel, history, best)) for panel in PANELS if panel.measured(history)]


def _panel(panel: Panel, history: Sequence[Mapping[str, float]], best: int | None) -> Figure:
    figure = Figure(figsize=(4.0, 2.6), layout="constrained")
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in history]
    for colour, (column, label) in zip(COLOURS, panel.lines.items(), strict=False):
        if any(column in row for row in history):
            values = [row.get(column, math.nan) for row in history]
            marker = "o" if len(history) <= 40 else ""
            axes.plot(
                epochs, values, marker=marker, ls="-", ms=3, lw=1.6, color=colour, label=label
            )
    if best is not None:
        axes.axvline(best, color=INK, lw=1, ls="--", alpha=0.55, label=f"best epoch {best}")
    if panel.is_percent:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if ROBUST in panel.lines and (fallen := set(overfitted(history))):
        rows = [row for row in history if row["epoch"] in fallen]
        places = [row["epoch"] for row in rows], [row[ROBUST] for row in rows]
        axes.plot(*places, "X", ms=8, color=ALARM, label="overfitting")
    axes.set_xlabel("epoch", color=INK)
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def spread(history: Sequence[Mapping[str, float]], name: str) -> Figure:
    """Draw the quantiles of a per-example table over the epochs.

    The line is the median; the bands hold the middle 50 % and 90 % of the training images.
    """
    figure = Figure(figsize=(4.0, 2.6), layout="constrained")
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in history]
    q05, q25, q50, q75, q95 = (
        [row.get(f"{name}_q{share:02d}", math.nan) for row in history]
        for share in (5, 25, 50, 75, 95)
    )
    axes.fill_between(epochs, q05, q95, color=COLOURS[0], alpha=0.2, lw=0, label="90 % of images")
    axes.fill_between(epochs, q25, q75, color=COLOURS[0], alpha=0.4, lw=0, label="50 %")
    axes.plot(epochs, q50, color=COLOURS[0], lw=1.6, label="median")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("epoch", color=INK)
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def histogram(values: np.ndarray) -> Figure:
    """Draw the histogram of the values of all training images."""
    figure = Figure(figsize=(4.0, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(values, bins=30, color=COLOURS[0])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_ylabel("training images", color=INK)
    plain_axes(axes)
    return figure


@dataclass(frozen=True)
class ExtremeCard:
    """A training image as a PNG data URI, its class, and its value in the per-example table."""

    image: str
    label: str
    value: float


def extreme_cards(record: RunRecord) -> list[ExtremeCard]:
    """Return a card for each image of `Extremes`, in its order."""
    extremes = record.extremes
    if extremes is None:
        return []
    return [
        ExtremeCard(_png(image), record.class_name(label), value)
        for image, label, value in zip(
            extremes.image, extremes.label.tolist(), extremes.value.tolist(), strict=True
        )
    ]


def plain_axes(axes: Any, grid: str = "y") -> None:
    """Style axes: the page's colours, two spines, and a light grid along one axis."""
    axes.tick_params(colors=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=INK, alpha=0.12)


@dataclass(frozen=True)
class ProbeCard:
    """One image, its adversarial copy and their difference, as PNG data URIs, and what the network
    predicts for both."""

    index: int
    label: str
    clean: str
    clean_prediction: str
    clean_right: bool
    adversarial: str
    adversarial_prediction: str
    adversarial_right: bool
    difference: str


def amplification(probes: Probes) -> int:
    """Return the factor, at least 1, that spreads the largest change over the grey scale."""
    largest = float(np.abs(probes.adversarial - probes.image).max(initial=0))
    return max(1, int(0.5 / largest + 1e-6)) if largest > 0 else 1


def probe_cards(record: RunRecord) -> list[ProbeCard]:
    """Return a card for each probe. The difference, times `amplification(probes)`, is drawn around
    mid-grey."""
    probes, name, cards = record.probes, record.class_name, []
    if probes is None:
        return []
    gain = amplification(probes)
    for place in range(len(probes.image)):
        clean, adversarial = probes.image[place], probes.adversarial[place]
        label, before, after = (
            int(array[place])
            for array in (probes.label, probes.clean_prediction, probes.adversarial_prediction)
        )
        cards.append(
            ProbeCard(
                index=int(probes.index[place]),
                label=name(label),
                clean=_png(clean),
                clean_prediction=name(before),
                clean_right=before == label,
                adversarial=_png(adversarial),
                adversarial_prediction=name(after),
                adversarial_right=after == label,
                difference=_png(0.5 + gain * (adversarial - clean)),
            )
        )
    return cards


def _png(image: np.ndarray) -> str:
    """Return an image [H, W, C] as a PNG: in colour if C is 3, else the mean of its channels."""
    if image.shape[-1] != 3:
        image = image.mean(axis=-1, keepdims=True)
    pixels = np.clip(np.broadcast_to(image, (*image.shape[:2], 3)), 0, 1)
    buffer = io.BytesIO()
    imsave(buffer, np.round(pixels * 255).astype(np.uint8), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
