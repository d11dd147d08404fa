"""The fifteen common corruptions of images at five severities.

They are those of ImageNet-C and CIFAR-10-C (Hendrycks and Dietterich, 2019, "Benchmarking Neural
Network Robustness to Common Corruptions and Perturbations", arXiv:1903.12261), with the authors'
constants, written anew for batches of images of any size. They agree with the published images in
kind and in strength but not in each pixel, and `frost` is drawn instead of photographed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfrobust.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from tfrobust.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate
from tfrobust.corruptions.draws import Draws
from tfrobust.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from tfrobust.corruptions.weather import brightness, fog, frost, snow
from tfrobust.errors import UserError, choose, is_int, require, require_at_least, require_seed

# A corruption takes images float32 [N, H, W, C] in [0, 1], the severity and the draws, and returns
# images of this shape, which need not be in [0, 1].
CORRUPTIONS: dict[str, Callable[[np.ndarray, int, Draws], np.ndarray]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 5  # of images that are told from channels


def require_severity(severity: Any) -> int:
    """Return a severity as an int. Raises a UserError unless it is an integer from 1 to 5."""
    fits = is_int(severity) and severity in SEVERITIES
    require(fits, "severity", "an int from 1 to 5", severity)
    return int(severity)


def require_channels_last(argument: str, shape: Sequence[int]) -> None:
    """Raise a UserError unless a shape is (H, W, C), and does not look like (C, H, W)."""
    fits = len(shape) == 3 and not (shape[0] in (1, 3) and min(shape[1:]) >= LEAST_SIDE)
    require(fits, argument, "images [N, H, W, C], channels last", f"inputs of shape {tuple(shape)}")


def corrupted(
    images: np.ndarray, name: str, severity: int, seed: int = 0, first: int = 0
) -> np.ndarray:
    """Return corrupted images.

    The noise of an image depends on the seed, the name, the severity and the image's place alone.
    So the images of a part, given with its `first`, are corrupted as they are among all images.

    Args:
        images: Float images [N, H, W, C] in [0, 1].
        name: A name in CORRUPTIONS.
        severity: 1 to 5.
        seed: The seed of the noise.
        first: The place of the first image in the test set.

    Returns:
        Float32 images [N, H, W, C] in [0, 1].

    Raises:
        UserError: If an argument is not as described.
    """
    choose("name", name, CORRUPTIONS)
    severity, seed = require_severity(severity), require_seed(seed)
    require_at_least(0, first=first)
    try:
        images = np.asarray(images).astype(np.float32, casting="same_kind", copy=False)
    except (TypeError, ValueError):  # no numbers, or lists of different lengths
        received = f"{getattr(images, 'dtype', type(images).__name__)}"
        raise UserError(f"images: expected numbers [N, H, W, C], received {received}") from None
    require(images.ndim == 4, "images", "an array [N, H, W, C]", images.shape)
    require_channels_last("images", images.shape[1:])
    if not images.size:
        return images
    require(
        images.min() >= 0 and images.max() <= 1,
        "images",
        "values in [0, 1]",
        [float(images.min()), float(images.max())],
    )
    draws = Draws(seed, name, severity, range(first, first + len(images)))
    return np.clip(CORRUPTIONS[name](images, severity, draws), 0, 1).astype(np.float32)
