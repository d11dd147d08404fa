"""Batches of a fixed size over arrays of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfrobust.errors import require_at_least


def batches(n: int, batch_size: int) -> Iterator[slice]:
    """Return a slice for each batch of n examples; the last batch may be smaller.

    Raises a UserError unless `batch_size` is an int from 1.
    """
    require_at_least(1, batch_size=batch_size)
    return (slice(start, start + batch_size) for start in range(0, n, batch_size))


def map_batches(
    function: Callable[..., Any], *arrays: np.ndarray, batch_size: int, numbered: bool = False
) -> list[np.ndarray]:
    """Apply a function to arrays batch by batch, and join its results.

    Args:
        function: B rows of each array, [B, ...] -> a sequence of arrays or tensors [B, ...].
        arrays: One array [n, ...] with n > 0, or several of the same length.
        batch_size: The largest B.
        numbered: Whether the function also takes the number of the batch, counted from 0.

    Returns:
        A list of arrays [n, ...], one for each array that the function returns.
    """
    results = []
    for number, rows in enumerate(batches(len(arrays[0]), batch_size)):
        numbers = (number,) if numbered else ()
        values = function(*(array[rows] for array in arrays), *numbers)
        results.append([np.asarray(value) for value in values])
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]
