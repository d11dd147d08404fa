"""Axes in the style of the pages, figures of a training, and images as PNG data URIs."""

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
        name: The name of the figure's file.
        title: The title.
        lines: Column of the history -> legend.
        is_percent: Whether the vertical axis is in percent.
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


def new_axes(
    x_label: str = "", y_label: str = "", *, size: tuple[float, float] = (4.0, 2.6), grid: str = "y"
) -> tuple[Figure, Any]:
    """Return a figure of a size in inches, and its only axes, styled by `style`."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    style(axes, grid)
    return figure, axes


def style(axes: Any, grid: str = "y") -> None:
    """Give axes the page's colours, two spines, and a light grid along one axis."""
    axes.tick_params(colors=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=INK, alpha=0.12)


def in_percent(*axes: Any) -> None:
    """Label each axis in percent, with about five ticks."""
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(xmax=1))
        axis.set_major_locator(MaxNLocator(nbins=5))


def legend(axes: Any) -> None:
    """Add a legend in the page's colours."""
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def literal(label: str) -> str:
    """Return a label for matplotlib.

    Matplotlib takes a bare dollar sign for the beginning of a formula, and leaves labels that begin
    with an underscore out of legends.
    """
    blank = " " * label.startswith("_")
    return blank + label.replace("$", r"\$")


def curves(history: Sequence[Mapping[str, float]], best: int | None) -> dict[str, Figure]:
    """Draw the panels that the history has a column for, with a dashed line at the best epoch."""
    return {panel.name: _panel(panel, history, best) for panel in PANELS if panel.measured(history)}


def _panel(panel: Panel, history: Sequence[Mapping[str, float]], best: int | None) -> Figure:
    figure, axes = new_axes("epoch")
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if panel.is_percent:
        in_percent(axes.yaxis)
    overfitted_epochs = set(overfitted(history))
    if ROBUST in panel.lines and overfitted_epochs:
        rows = [row for row in history if row["epoch"] in overfitted_epochs]
        values = [row[ROBUST] for row in rows]
        epochs = [row["epoch"] for row in rows]
        axes.plot(epochs, values, "X", ms=8, color=ALARM, label="overfitting")
    legend(axes)
    return figure


def spread(history: Sequence[Mapping[str, float]], name: str) -> Figure:
    """Draw the quantiles of the per-example table `name` over the epochs.

    The line is the median; the bands hold the middle 50 % and 90 % of the training images.
    """
    figure, axes = new_axes("epoch")
    epochs = [row["epoch"] for row in history]

    def quantile(share: str) -> list[float]:
        return [row.get(f"{name}_q{share}", math.nan) for row in history]

    bands = {"color": COLOURS[0], "lw": 0}
    axes.fill_between(
        epochs, quantile("05"), quantile("95"), alpha=0.2, label="90 % of images", **bands
    )
    axes.fill_between(epochs, quantile("25"), quantile("75"), alpha=0.4, label="50 %", **bands)
    axes.plot(epochs, quantile("50"), color=COLOURS[0], lw=1.6, label="median")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    legend(axes)
    return figure


def histogram(values: np.ndarray) -> Figure:
    """Draw the histogram of the values [N] of all training images."""
    figure, axes = new_axes(y_label="training images")
    axes.hist(values, bins=30, color=COLOURS[0])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    return figure


@dataclass(frozen=True)
class ExtremeCard:
    """A training image as a PNG data URI, its class, and its value in the per-example table."""

    image: str
    label: str
    value: float


def extreme_cards(record: RunRecord) -> list[ExtremeCard]:
    """Return a card for each image of `Extremes`, in the same order."""
    extremes = record.extremes
    if extremes is None:
        return []
    labels, values = extremes.label.tolist(), extremes.value.tolist()
    return [
        ExtremeCard(_png(image), record.class_name(label), value)
        for image, label, value in zip(extremes.image, labels, values, strict=True)
    ]


@dataclass(frozen=True)
class ProbeCard:
    """A clean image, the adversarial image and their difference as PNG data URIs, and predictions.

    The predictions are names of classes; `clean_right` and `adversarial_right` say whether they are
    the label.
    """

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
    """Return the factor, at least 1, by which the largest change fills the grey scale."""
    largest = float(np.abs(probes.adversarial - probes.image).max(initial=0))
    return max(1, int(0.5 / largest + 1e-6)) if largest > 0 else 1


def probe_cards(record: RunRecord) -> list[ProbeCard]:
    """Return a card for each probe; the amplified difference is drawn around mid-grey."""
    probes, cards = record.probes, []
    if probes is None:
        return []
    gain = amplification(probes)
    for place, (clean, adversarial) in enumerate(
        zip(probes.image, probes.adversarial, strict=True)
    ):
        label = int(probes.label[place])
        clean_class = int(probes.clean_prediction[place])
        adversarial_class = int(probes.adversarial_prediction[place])
        cards.append(
            ProbeCard(
                index=int(probes.index[place]),
                label=record.class_name(label),
                clean=_png(clean),
                clean_prediction=record.class_name(clean_class),
                clean_right=clean_class == label,
                adversarial=_png(adversarial),
                adversarial_prediction=record.class_name(adversarial_class),
                adversarial_right=adversarial_class == label,
                difference=_png(0.5 + gain * (adversarial - clean)),
            )
        )
    return cards


def _png(image: np.ndarray) -> str:
    """Return an image [H, W, C] as the data URI of a PNG: in colour if C is 3, else in grey.

    The grey is the mean of the channels.
    """
    if image.shape[-1] != 3:
        image = image.mean(axis=-1, keepdims=True)
    pixels = np.clip(np.broadcast_to(image, (*image.shape[:2], 3)), 0, 1)
    buffer = io.BytesIO()
    imsave(buffer, np.round(pixels * 255).astype(np.uint8), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
