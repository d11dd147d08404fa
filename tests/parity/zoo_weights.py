"""Random weights for the architectures of `tfrobust.zoo`, with NumPy alone.

The name of an array in torch is its seed, so both sides draw the same if they agree on the names.
RandomState's numbers are the same in every version of NumPy.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

# The last convolution of a block is small, as otherwise the logits of a deep network are huge.
LAST = re.compile(r".*\.(conv2|conv_1|conv_2d_2)\.weight")


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a kernel of variance 2 / fan-in, or random statistics, scales and offsets."""
    draws = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) > 1:
        size = 0.2 if LAST.fullmatch(name) else 1.0
        values = draws.normal(0, size * np.sqrt(2 / np.prod(shape[1:])), shape)
    elif name.endswith((".running_var", ".weight")):
        values = draws.uniform(0.5, 1.5, shape)
    else:
        values = draws.normal(0, 0.2, shape)
    return values.astype("float32")
