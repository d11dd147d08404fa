"""The four kinds of blur: defocus, glass, motion and zoom blur."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage, signal

from tfrobust.corruptions.draws import Constant, Draws

DISC = Constant((0.3, 0.4, 0.5, 1, 1.5), (3, 4, 6, 8, 10))
SMOOTH = Constant((0.4, 0.5, 0.6, 0.2, 0.1), (0.1, 0.5, 0.5, 0.5, 0.5))
GLASS = Constant((0.05, 0.25, 0.4, 0.25, 0.4), (0.7, 0.9, 1, 1.1, 1.5))
REACH = Constant((1, 1, 1, 1, 1), (1, 2, 2, 3, 4))
ROUNDS = Constant((1, 1, 1, 2, 2), (2, 1, 3, 2, 2))
TRAIL = Constant((6, 6, 6, 8, 9), (10, 15, 15, 15, 20))
SPEED = Constant((1, 1.5, 2, 2, 2.5), (3, 5, 8, 12, 15))
ZOOM = Constant((1.06, 1.11, 1.15, 1.20, 1.25), (1.11, 1.15, 1.20, 1.24, 1.30))
STEP = Constant((0.01, 0.01, 0.01, 0.01, 0.01), (0.01, 0.01, 0.02, 0.02, 0.03))  # of the zoom


def defocus_blur(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Average over a disc of radius r, which a Gaussian of width s has smoothed."""
    radius, smooth = DISC.length(images, severity), SMOOTH.length(images, severity)
    few = 1 if radius <= 8 else 2
    reach = math.floor(radius) + few
    offsets = np.arange(-reach, reach + 1)
    disc = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    taps = np.exp(-(np.arange(-few, few + 1) ** 2) / (2 * smooth**2))
    kernel = disc / disc.sum()
    for axis in (0, 1):
        kernel = ndimage.convolve1d(kernel, taps / taps.sum(), axis, mode="constant")
    return filtered(images, kernel[None, :, :, None])


def filtered(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve images [N, H, W, C], mirrored at their borders, with a kernel [1, 2r+1, 2r+1, 1]."""
    reach = kernel.shape[1] // 2
    padded = np.pad(images, [(0, 0), (reach, reach), (reach, reach), (0, 0)], "reflect")
    return signal.fftconvolve(padded, kernel.astype(np.float32), "valid", axes=(1, 2))


def glass_blur(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Replace every pixel by one near it, between two Gaussian blurs.

    The pixels are replaced one after the other, from the last to the first, so that what has been
    replaced is copied on. The paper calls this a shuffle; its code, whose exchange of two pixels
    overwrites one of them, copies.
    """
    sigma = GLASS.length(images, severity)
    reach = round(REACH.length(images, severity))
    n, height, width, channels = images.shape
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    pixels = (rows[:, None] * width + columns).ravel()
    source = np.repeat(np.arange(height * width)[:, None], n, axis=1)  # of each pixel and image
    flat = source.reshape(-1)
    for _ in range(round(ROUNDS.amount(images, severity))):
        down, right = np.moveaxis(
            draws.each(lambda g: g.integers(-reach, reach, (2, len(pixels)), np.int8)), 0, -1
        ).astype(np.int64)
        near = (pixels[:, None] + down * width + right) * n + np.arange(n)
        for pixel, places in zip(pixels, near, strict=True):
            source[pixel] = flat[places]
    smooth = _gaussian(images, sigma).reshape(n, height * width, channels)
    moved = np.take_along_axis(smooth, source.T[:, :, None], axis=1)
    return _gaussian(moved.reshape(images.shape), sigma)


def _gaussian(images: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")


def motion_blur(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Blur along a line in a direction from -45 to 45 degrees, drawn for each image."""
    angles = np.radians(90 * draws.uniform() - 45)
    return trailed(images, TRAIL.length(images, severity), SPEED.length(images, severity), angles)


def trailed(images: np.ndarray, radius: float, sigma: float, angles: np.ndarray) -> np.ndarray:
    """Blur images [N, H, W, C] along one side of a line, as ImageMagick's motion blur does.

    The value at distance i, from 0 to twice the radius, has the weight exp(-i^2 / (2 sigma^2)).
    Beyond its border an image has the values of the border.

    Args:
        images: Images [N, H, W, C].
        radius: Half the length of the trail, in pixels.
        sigma: The width of the Gaussian, in pixels.
        angles: The direction of each line, in radians, [N].
    """
    height, width = images.shape[1:3]
    distances = np.arange(2 * math.ceil(radius) + 1, dtype=np.float32)
    weights = np.exp(-(distances**2) / (2 * sigma**2), dtype=np.float32)
    weights /= weights.sum()
    down, right = (
        np.ceil(distances * direction[:, None] - 0.5).astype(int) + len(distances)
        for direction in (np.sin(angles), np.cos(angles))
    )
    pad = (len(distances), len(distances))
    padded = np.pad(images, [(0, 0), pad, pad, (0, 0)], "edge")
    blurred = np.zeros_like(images)
    for place, image in enumerate(padded):
        for weight, i, j in zip(weights, down[place], right[place], strict=True):
            blurred[place] += weight * image[i : i + height, j : j + width]
    return blurred


def zoom_blur(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Average the image and copies of it whose middle is enlarged 1 to c times."""
    most, step = ZOOM.amount(images, severity), STEP.amount(images, severity)
    zooms = np.arange(1, most + step / 2, step)
    rows, columns = (np.stack([zoomed(size, z) for z in zooms]) for size in images.shape[1:3])
    blurred = np.empty_like(images)
    for place, image in enumerate(images):
        copies = np.tensordot(rows, image, (2, 0))  # [zooms, H, W, C]
        total = np.tensordot(copies, columns, ((0, 2), (0, 2)))  # [H, C, W]
        blurred[place] = (image + total.transpose(0, 2, 1)) / (len(zooms) + 1)
    return blurred


def zoomed(size: int, zoom: float) -> np.ndarray:
    """Return the matrix, float32 [size, size], that enlarges the middle of a line linearly.

    The middle has size / zoom pixels, rounded up. It is enlarged zoom times, rounded, and what then
    exceeds `size` is cut off at both ends, as in the authors' code.
    """
    middle = math.ceil(size / zoom)
    enlarged = round(middle * zoom)
    places = (np.arange(size) + (enlarged - size) // 2) * (middle - 1) / max(1, enlarged - 1)
    places += (size - middle) // 2
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size))).astype(np.float32)
