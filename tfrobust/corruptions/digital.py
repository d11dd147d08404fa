"""The four digital corruptions: contrast, elastic transform, pixelate and JPEG compression."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from tfrobust.corruptions.draws import Constant, Draws, side

CONTRAST = Constant((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
# The constants of the elastic transform, relative to the side of the image.
BEND = Constant((0, 0.05, 0.08, 0.1, 0.1), (2.18, 2.18, 0.054, 0.076, 0.131))
STIFF = Constant((0, 0.2, 0.06, 0.04, 0.03), (0.762, 0.087, 0.011, 0.011, 0.011))
SHEAR = Constant((0.08, 0.07, 0.06, 0.05, 0.03), (0.109, 0.218, 0.022, 0.022, 0.022))
PIXELS = Constant((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
QUALITY = Constant((80, 65, 58, 50, 40), (25, 18, 15, 10, 7))


def contrast(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Return m + c (x - m), where m is the mean of each channel of an image."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return mean + CONTRAST.amount(images, severity) * (images - mean)


def elastic_transform(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Move three points, and all others by the affine map of these; then displace every pixel.

    The points move by U[-s, s]^2, the pixels by smooth noise. With the authors' constants the low
    severities mostly shear the image, so that it is farthest from the original, and the high ones
    mostly bend it.
    """
    shear, bend, stiff = (
        constant.amount(images, severity) * side(images) for constant in (SHEAR, BEND, STIFF)
    )
    n, height, width = images.shape[:3]
    third = max(1, side(images) // 3)
    points = np.array([(1, 1), (1, -1), (-1, -1)]) * third + np.array([height, width]) // 2
    moved = points + shear * (2 * draws.uniform(3, 2) - 1)
    noise = 2 * draws.uniform(2, height, width) - 1
    field = ndimage.gaussian_filter(noise, (0, 0, stiff, stiff), mode="reflect", truncate=3)
    # (row, column, 1) in the result @ back = (row, column) in the image.
    homogeneous = np.concatenate([moved, np.ones((n, 3, 1))], axis=2)
    back = np.linalg.solve(homogeneous, np.broadcast_to(points, (n, 3, 2))).astype(np.float32)
    places = np.mgrid[:height, :width].astype(np.float32) + np.float32(bend) * field
    rows, columns = np.einsum("nkhw,nkd->dnhw", places, back[:, :2]) + back[:, 2].T[..., None, None]
    return _interpolated(images, rows, columns)


def _interpolated(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return images [N, H, W, C] at other places, [N, H, W], linearly; borders are mirrored."""
    height, width = images.shape[1:3]
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    number = np.arange(len(images))[:, None, None]

    def at(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return images[number, _mirrored(i, height), _mirrored(j, width)]

    above = (1 - right) * at(top, left) + right * at(top, left + 1)
    below = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    return (1 - down) * above + down * below


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
    """Return integer places inside 0 to size - 1, with the border pixel as the mirror."""
    period = max(1, 2 * (size - 1))
    inside = np.abs(places) % period
    return np.minimum(inside, period - inside) if size > 1 else np.zeros_like(places)


def pixelate(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Shrink each side to a share c of its pixels, and enlarge it again, both by boxes."""
    share = PIXELS.amount(images, severity)
    rows, columns = (_boxes(size, max(1, int(share * size))) for size in images.shape[1:3])
    return (rows @ images.transpose(0, 3, 1, 2) @ columns.T).transpose(0, 2, 3, 1)


def _boxes(size: int, fewer: int) -> np.ndarray:
    """Return the matrix, [size, size], that shrinks a line to fewer pixels and enlarges it."""
    line = Image.fromarray(np.eye(size, dtype=np.float32))
    small = line.resize((size, fewer), Image.Resampling.BOX)
    return np.asarray(small.resize((size, size), Image.Resampling.BOX))


def jpeg_compression(images: np.ndarray, severity: int, draws: Draws) -> np.ndarray:
    """Compress the image by JPEG: three channels as red, green and blue, others one by one."""
    quality, pixels = round(QUALITY.amount(images, severity)), np.rint(255 * images)
    pixels = pixels.astype(np.uint8)
    if images.shape[-1] == 3:
        return np.stack([_jpeg(image, quality) for image in pixels]) / np.float32(255)
    planes = [[_jpeg(plane, quality) for plane in np.moveaxis(image, -1, 0)] for image in pixels]
    return np.moveaxis(np.array(planes), 1, -1) / np.float32(255)


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Return pixels, uint8 [H, W] or [H, W, 3], after a JPEG file of this quality, 1 to 95."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content))
