"""The constants of the corruptions are those of CIFAR-10-C and ImageNet-C, severity by severity.

Source: make_cifar_c.py and make_imagenet_c.py of github.com/hendrycks/robustness. The lengths of
the elastic transform are divided by the side of the image; the authors wrote 244 for 224.
"""

from __future__ import annotations

import numpy as np
import pytest

from tfrobust.corruptions import blur, digital, noise, weather
from tfrobust.corruptions.draws import Constant

TYPO = 244 / 224
SNOW = (
    weather.SNOW_MEAN,
    weather.SNOW_SPREAD,
    weather.SNOW_FLAKE,
    weather.SNOW_LEAST,
    weather.SNOW_TRAIL,
    weather.SNOW_SPEED,
    weather.SNOW_KEPT,
)
# The values of each constant, of images of 32 and then of 224 pixels.
ALONE = [
    (noise.GAUSSIAN, (0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38)),
    (noise.PHOTONS, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    (noise.IMPULSE, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    (digital.CONTRAST, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    (digital.QUALITY, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    (digital.PIXELS, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    (weather.BRIGHTER, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
]
# Several constants of a corruption: at each severity, of images of 32 and then of 224 pixels.
TOGETHER = [
    (
        (blur.DISC, blur.SMOOTH),
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    ),
    (
        (blur.GLASS, blur.REACH, blur.ROUNDS),
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    ),
    (
        (blur.TRAIL, blur.SPEED),
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    ),
    (
        (weather.FOG_ADDED, weather.FOG_DECAY),
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    ),
    (
        (weather.FROST_KEPT, weather.FROST_ADDED),
        [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    ),
    (
        SNOW,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
    ),
    (
        (digital.BEND, digital.STIFF, digital.SHEAR),
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
        [
            (2 * TYPO, 0.7 * TYPO, 0.1 * TYPO),
            (2 * TYPO, 0.08 * TYPO, 0.2 * TYPO),
            (0.05 * TYPO, 0.01 * TYPO, 0.02 * TYPO),
            (0.07 * TYPO, 0.01 * TYPO, 0.02 * TYPO),
            (0.12 * TYPO, 0.01 * TYPO, 0.02 * TYPO),
        ],
    ),
]


@pytest.mark.parametrize(("constant", "small", "large"), ALONE)
def test_the_constant_is_that_of_the_authors(
    constant: Constant, small: tuple[float, ...], large: tuple[float, ...]
) -> None:
    assert (constant.small, constant.large) == (small, large)


@pytest.mark.parametrize(("constants", "small", "large"), TOGETHER)
def test_the_constants_are_those_of_the_authors(
    constants: tuple[Constant, ...], small: list[tuple[float, ...]], large: list[tuple[float, ...]]
) -> None:
    found = [each.small for each in constants], [each.large for each in constants]
    np.testing.assert_allclose(np.transpose(found[0]), small)
    np.testing.assert_allclose(
        np.transpose(found[1]), large, rtol=1e-3, atol=5e-4
    )  # ours are rounded


@pytest.mark.parametrize(
    ("ends", "steps", "last", "step"),
    [
        ((1.06, 1.11, 1.16, 1.21, 1.26), (0.01,) * 5, blur.ZOOM.small, blur.STEP.small),
        (
            (1.11, 1.16, 1.21, 1.26, 1.31),
            (0.01, 0.01, 0.02, 0.02, 0.03),
            blur.ZOOM.large,
            blur.STEP.large,
        ),
    ],
)
def test_the_last_zoom_is_that_of_the_authors(
    ends: tuple[float, ...],
    steps: tuple[float, ...],
    last: tuple[float, ...],
    step: tuple[float, ...],
) -> None:
    """They write arange(1, end, step), whose last number may be the end itself, by rounding."""
    zooms = [np.arange(1, end, width)[-1] for end, width in zip(ends, steps, strict=True)]
    assert step == steps and last == pytest.approx(zooms)
