"""The three kinds of noise: Gaussian, shot and impulse noise."""

from __future__ import annotations

import numpy as np

from tfrobust.corruptions.draws import Constant, Draws

GAUSSIAN = Constant((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
PHOTONS = Constant((500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
IMPULSE = Constant((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))


def gaussian_noise(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Add noise from N(0, c^2) to every value."""
    return images + GAUSSIAN.amount(images, severity) * draws.normal(*images.shape[1:])


def shot_noise(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Return Poisson(c x) / c: the noise of light that has c photons at a full value."""
    photons = PHOTONS.amount(images, severity)
    return draws.each(lambda generator, image: generator.poisson(photons * image), images) / photons


def impulse_noise(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Replace a share c of the values, half of them by 0 and half by 1."""
    chance, share = draws.uniform(*images.shape[1:]), IMPULSE.amount(images, severity)
    return np.select([chance < share / 2, chance < share], [np.float32(0), np.float32(1)], images)
