"""The progress bar of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from tfrobust.distribution import worker


def progress_bar(
    label: str | None, images: Iterable[Any] | None = None, *, total: int | None = None
) -> tqdm[Any]:
    """Return a bar that counts images.

    It shows only on a terminal and, if there are several workers, only on the first.

    Args:
        label: The text before the bar; None for no bar.
        images: The images to go through, if the bar is to count them by itself.
        total: The number of images otherwise.
    """
    hidden = True if label is None or worker()[0] else None
    return tqdm(images, label, total, unit="image", disable=hidden)
