"""Write CIFAR-10 with its images compressed as JPEG once more, to measure what compression changes.

    python tools/recompress.py again.npz --quality 75
    python -m pipelines.run cpu_hour_muon --set name=again \\
        --set 'data={name: npz, path: again.npz, batch_size: 128}' --set data.validation=1000 \\
        --set data.augment=crop_flip

It also prints by how much a compression with the same blocks changes the images, in grey levels of
255, at each quality. If the images were compressed before, that is least near their quality.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.data import DATASETS
from tfrobust.errors import UserError
from tfrobust.report.text import markdown_table

SHIFT = 4  # half a block of JPEG, so that the blocks of the compression before are cut
SOME = 200  # images by which the quality is estimated
QUALITIES = range(60, 100)


def compressed(images: np.ndarray, quality: int, shift: int = 0) -> np.ndarray:
    """Return images, uint8 [N, H, W, 3], after a compression as JPEG.

    Args:
        images: The images, uint8 [N, H, W, 3].
        quality: The quality, 1 to 100.
        shift: The number of pixels by which the blocks are shifted.
    """

    def one(image: tf.Tensor) -> tf.Tensor:
        padded = tf.pad(image, [(shift, shift), (shift, shift), (0, 0)], "SYMMETRIC")
        out = tf.image.adjust_jpeg_quality(padded, quality)
        return out[shift : shift + images.shape[1], shift : shift + images.shape[2]]

    stream = tf.data.Dataset.from_tensor_slices(images).map(one)
    return np.stack(list(stream.as_numpy_iterator()))


def change(images: np.ndarray, others: np.ndarray) -> float:
    """Return the mean absolute difference of two sets of images, in grey levels of 255."""
    return float(np.abs(images.astype(int) - others.astype(int)).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the .npz file to write")
    parser.add_argument("--quality", type=int, choices=range(1, 101), default=75, metavar="1-100")
    args = parser.parse_args()
    if not args.path.parent.is_dir():
        parser.error(f"path: expected a file in a folder that exists, received {args.path}")
    try:
        splits = {split: DATASETS["cifar10"]().load(split) for split in ("train", "test")}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    some = splits["test"].images[:SOME]
    changes = {quality: change(some, compressed(some, quality)) for quality in QUALITIES}
    print(markdown_table(["quality", "change"], [[str(q), f"{c:.2f}"] for q, c in changes.items()]))
    arrays: dict[str, Any] = {}
    for split, examples in splits.items():
        arrays[f"x_{split}"] = compressed(examples.images, args.quality, SHIFT)
        arrays[f"y_{split}"] = examples.labels
    np.savez(args.path, **arrays)
    changed = change(splits["test"].images, arrays["x_test"])
    print(f"{args.path}: the test images are changed by {changed:.2f} on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
