"""tools/recompress.py tells the quality of compressed images, and compresses them again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from recompress import change, compressed  # noqa: E402


def smooth(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return images of few frequencies, uint8 [count, 32, 32, 3]."""
    images = tf.image.resize(rng.uniform(50, 200, (count, 8, 8, 3)), (32, 32), "bicubic")
    return np.clip(images.numpy(), 0, 255).astype(np.uint8)


def test_the_quality_is_where_a_compression_changes_least(rng: np.random.Generator) -> None:
    images = compressed(smooth(rng, 20), 75)
    changes = {quality: change(images, compressed(images, quality)) for quality in (60, 75, 90)}
    assert min(changes, key=changes.__getitem__) == 75


def test_shifted_blocks_change_compressed_images_more(rng: np.random.Generator) -> None:
    images = compressed(smooth(rng, 20), 75)
    shifted = compressed(images, 75, shift=4)
    assert shifted.shape == images.shape and shifted.dtype == np.uint8
    assert change(images, shifted) > 2 * change(images, compressed(images, 75))
