"""The four kinds of weather and light: snow, frost, fog and brightness."""

from __future__ import annotations

import numpy as np

from tfrobust.corruptions.blur import filtered, trailed, zoomed
from tfrobust.corruptions.draws import Constant, Draws, side

SNOW_MEAN = Constant((0.1, 0.1, 0.15, 0.25, 0.3), (0.1, 0.2, 0.55, 0.55, 0.55))
SNOW_SPREAD = Constant((0.2, 0.2, 0.3, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3, 0.3))
SNOW_FLAKE = Constant((1, 1, 1.75, 2.25, 1.25), (3, 2, 4, 4.5, 2.5))
SNOW_LEAST = Constant((0.6, 0.5, 0.55, 0.6, 0.65), (0.5, 0.5, 0.9, 0.85, 0.85))
SNOW_TRAIL = Constant((8, 10, 10, 12, 14), (10, 12, 12, 12, 12))
SNOW_SPEED = Constant((3, 4, 4, 6, 12), (4, 4, 8, 8, 12))
SNOW_KEPT = Constant((0.95, 0.9, 0.9, 0.85, 0.8), (0.8, 0.7, 0.7, 0.65, 0.55))
FROST_KEPT = Constant((1, 1, 0.9, 0.85, 0.75), (1, 0.8, 0.7, 0.65, 0.6))
FROST_ADDED = Constant((0.2, 0.3, 0.4, 0.4, 0.45), (0.4, 0.6, 0.7, 0.7, 0.75))
FOG_ADDED = Constant((0.2, 0.5, 0.75, 1, 1.5), (1.5, 2, 2.5, 2.5, 3))
FOG_DECAY = Constant((3, 3, 2.5, 2, 1.75), (2, 2, 1.7, 1.5, 1.4))
BRIGHTER = Constant((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)
ICE = np.array([0.9, 1.0, 1.1], np.float32)  # the bluish white of frost
DIRECTIONS = 5  # of the needles of frost


def snow(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Whiten the image, and add flakes that fall and the same layer turned by 180 degrees."""
    height, width, channels = images.shape[1:]
    flake = SNOW_FLAKE.length(images, severity)
    layer = draws.normal(height, width) * SNOW_SPREAD.amount(images, severity)
    layer += SNOW_MEAN.amount(images, severity)
    layer = zoomed(height, flake) @ layer @ zoomed(width, flake).T
    layer = np.where(layer < SNOW_LEAST.amount(images, severity), 0, np.minimum(layer, 1))
    trail, speed = SNOW_TRAIL.length(images, severity), SNOW_SPEED.length(images, severity)
    angles = np.radians(90 * draws.uniform() - 135)
    layer = trailed(layer[..., None].astype(np.float32), trail, speed, angles)
    grey = images @ LUMA[:, None] if channels == 3 else images.mean(axis=-1, keepdims=True)
    kept = SNOW_KEPT.amount(images, severity)
    whitened = kept * images + (1 - kept) * np.maximum(images, 1.5 * grey + 0.5)
    return whitened + layer + layer[:, ::-1, ::-1]


def frost(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Add a picture of frost to a darkened image.

    The authors cut it out of photographs. Here it is drawn: clouds of ice with needles in several
    directions, in its mean and its contrast like their photographs. Accuracies under this frost do
    not compare with published ones.
    """
    height, width = images.shape[1:3]
    picture = _ice(draws, height, width, max(1, side(images) // 12))[..., None]
    if images.shape[-1] == 3:
        picture = np.minimum(picture * ICE, 1)
    kept, added = FROST_KEPT.amount(images, severity), FROST_ADDED.amount(images, severity)
    return kept * images + added * picture


def _ice(draws: Draws, height: int, width: int, reach: int) -> np.ndarray:
    """Draw grey frost, [N, height, width], whose needles are 2 reach + 1 pixels long."""
    chance, brightness = draws.uniform(DIRECTIONS, height, width), draws.uniform(1, 1)
    seeds = (chance < 0.1 / reach).astype(np.float32)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    needles = np.zeros((len(seeds), height, width), np.float32)
    for place in range(DIRECTIONS):
        angle = np.pi * (place + 0.5) / DIRECTIONS
        away = np.abs(columns * np.sin(angle) - rows * np.cos(angle))
        needle = np.maximum(0, 1 - away) * (np.hypot(rows, columns) <= reach)
        grown = filtered(seeds[:, place, :, :, None], needle[None, :, :, None])
        needles = np.maximum(needles, grown[..., 0])
    clouds = plasma(draws, height, width, 2.0)
    return np.clip(0.05 + 0.4 * brightness + 0.25 * clouds + 0.3 * needles, 0, 1)


def fog(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Add c times a cloud and divide by 1 + c / m, where m is the largest value of the image."""
    added, decay = FOG_ADDED.amount(images, severity), FOG_DECAY.amount(images, severity)
    height, width = images.shape[1:3]
    cloud = plasma(draws, height, width, decay)[..., None]
    most = images.max(axis=(1, 2, 3), keepdims=True)
    return (images + added * cloud) * most / (most + added)


def plasma(draws: Draws, height: int, width: int, decay: float) -> np.ndarray:
    """Draw clouds in [0, 1], float32 [N, height, width], by the diamond-square algorithm.

    A square grid on a torus is refined by halves (Fournier, Fussell and Carpenter, 1982): a new
    point is the mean of its four neighbours plus noise from U[-a, a], where a is divided by
    decay^2 at every refinement.
    """
    size = 2 ** max(1, (max(height, width) - 1).bit_length())
    noise = 2 * draws.uniform(size, size) - 1
    cloud = np.zeros_like(noise)
    step, strength = size, np.float32(1)
    while step > 1:
        half = step // 2
        grid = (slice(0, None, step), slice(half, None, step))
        corners = cloud[:, grid[0], grid[0]]
        beside = corners + np.roll(corners, -1, 2)
        centres = (beside + np.roll(beside, -1, 1)) / 4 + strength * noise[:, grid[1], grid[1]]
        across = centres + np.roll(centres, 1, 1)
        below = centres + np.roll(centres, 1, 2)
        cloud[:, grid[1], grid[1]] = centres
        cloud[:, grid[0], grid[1]] = (beside + across) / 4 + strength * noise[:, grid[0], grid[1]]
        beneath = corners + np.roll(corners, -1, 1)
        cloud[:, grid[1], grid[0]] = (beneath + below) / 4 + strength * noise[:, grid[1], grid[0]]
        step, strength = half, strength / np.float32(decay**2)
    cloud -= cloud.min(axis=(1, 2), keepdims=True)
    cloud /= cloud.max(axis=(1, 2), keepdims=True)
    return cloud[:, :height, :width]


def brightness(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Add c to the value of each pixel in the space HSV, which is its largest channel."""
    value = images.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + np.float32(BRIGHTER.amount(images, severity)), 1)
    # Hue and saturation stay as they are where all channels grow by one factor; black becomes grey.
    return np.where(value > 0, images * (brighter / np.maximum(value, 1e-12)), brighter)
