"""The checks that adversarial images lie within the threat."""

from __future__ import annotations

import numpy as np

from tfrobust.attacks import SavedImages
from tfrobust.errors import UserError
from tfrobust.evaluation.batching import batches
from tfrobust.threat import Threat

PIXELS = 2**22  # the number of values that are checked at once, 32 MiB in float64
# For the rounding of distances, relative to the largest of 1, eps and the ends of the box.
TOLERANCE = 1e-6


def saved_images(
    attack: SavedImages, rows: np.ndarray, x: np.ndarray, threat: Threat
) -> np.ndarray:
    """Return the saved adversarial images of rows of a split, [n, H, W, C].

    Args:
        attack: The saved images.
        rows: The rows, int [n].
        x: The clean images of these rows, [n, H, W, C].
        threat: The threat.

    Raises:
        UserError: If the file lacks an image or has images outside the threat.
    """
    images = attack.lookup(rows)
    try:
        check_adversarial(attack.title, threat, images, x)
    except RuntimeError as error:
        expected = f"images of this threat, received {attack.path}"
        raise UserError(f"path: expected {expected}: {error}") from None
    return images


def check_adversarial(title: str, threat: Threat, x_adv: np.ndarray, x: np.ndarray) -> None:
    """Check that adversarial images are finite, inside the box and within eps of the clean ones.

    Args:
        title: The name of the attack, for messages.
        threat: Defines the box and eps.
        x_adv: Adversarial images [n, H, W, C].
        x: Clean images [n, H, W, C].

    Raises:
        RuntimeError: If an image is not finite, outside the box or beyond eps.
        UserError: If the shapes differ.
    """
    # Images are float32, so the ends of the box are those that float32 can hold.
    low, high = (float(np.float32(end)) for end in threat.box)
    factors = threat.factors(x.shape[1:])
    if x_adv.shape != x.shape:
        raise UserError(f"{title}: expected images of shape {x.shape}, received {x_adv.shape}")
    rounding = TOLERANCE * max(1.0, *map(abs, threat.box))
    most = threat.eps + max(rounding, TOLERANCE * threat.eps)
    # Few images at a time, because float64 takes twice the memory.
    for rows in batches(len(x), max(1, PIXELS // max(1, x[:1].size))):
        images, near = x_adv[rows].astype(np.float64), x[rows].astype(np.float64)
        if not np.isfinite(images).all():
            raise RuntimeError(f"{title}: made images that are not finite")
        if images.min() < low or images.max() > high:
            raise RuntimeError(
                f"{title}: made images in [{images.min()}, {images.max()}], "
                f"outside the box [{low}, {high}]"
            )
        if factors is not None:  # a small factor would enlarge the rounding of its feature
            slack = rounding * (factors > 0)
            images = np.clip(near, images - slack, images + slack)
        distance = threat.distance(images, near).numpy()
        if (distance > most).any():
            raise RuntimeError(
                f"{title}: made images at distance {distance.max()}, eps is {threat.eps}"
            )
