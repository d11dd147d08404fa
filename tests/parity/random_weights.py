"""Random weights for a residual network of ours and its counterpart in torch, with NumPy alone.

Both sides draw for all convolutions, then for all BatchNorms, then for the dense layer, each in the
order in which they are made. RandomState's numbers are the same in every version of NumPy.
"""

from __future__ import annotations

import numpy as np

Draws = np.random.RandomState


def images(size: int) -> np.ndarray:
    """Return two images [2, size, size, 3] in [0, 1]."""
    return Draws(1).uniform(size=(2, size, size, 3)).astype("float32")


def convolution(draws: Draws, filters: int, channels: int, kernel: int) -> np.ndarray:
    """Return torch's kernel [filters, channels, kernel, kernel] of variance 2 / fan-in."""
    std = np.sqrt(2 / (channels * kernel**2))
    return draws.normal(0, std, (filters, channels, kernel, kernel)).astype("float32")


def batch_norm(draws: Draws, channels: int, affine: bool) -> list[np.ndarray]:
    """Return scale and offset if `affine`, and then the moving mean and variance, [C] each."""
    rows = [draws.uniform(0.5, 1.5, channels), draws.normal(0, 0.2, channels)] if affine else []
    rows += [draws.normal(0, 0.2, channels), draws.uniform(0.5, 1.5, channels)]
    return [row.astype("float32") for row in rows]


def dense(draws: Draws, classes: int, channels: int) -> list[np.ndarray]:
    """Return torch's kernel [classes, channels] of variance 1 / channels, and a bias [classes]."""
    kernel = draws.normal(0, channels**-0.5, (classes, channels))
    return [kernel.astype("float32"), draws.normal(0, 0.2, classes).astype("float32")]
