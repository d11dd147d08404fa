"""ImageNet (ILSVRC 2012) as TensorFlow Datasets prepares it, which is read during training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.data.files import BROKEN, RESIZES, Files
from tfrobust.data.folder import drawn
from tfrobust.data.reading import untuned
from tfrobust.data.split import Split, numbered
from tfrobust.data.tfds import INFO, Tfds
from tfrobust.errors import require_at_least

FRAME = 16  # the bytes that a TFRecord file adds to a record: its length and two checksums
URL = "https://image-net.org/download-images"
ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


@dataclass(frozen=True, eq=False)
class Records(Files):
    """`Files` whose images are records of TFRecord files.

    A place is "FILE:BYTE", with the first byte of a record. All images are JPEG. TensorFlow decodes
    them, and they are resized by ImageNet's rule.
    """

    resize: str = "imagenet"

    def _image(self, place: tf.Tensor) -> tf.Tensor:
        """Return the image, or raise an error that names its place, as TensorFlow's does not."""
        empty = tf.data.Dataset.from_tensors(tf.zeros((0, *self.size[1:]), tf.uint8))
        decoded = tf.data.Dataset.from_tensors(place).map(self._decode).ignore_errors()
        image = decoded.concatenate(empty).take(1).get_single_element()
        message = tf.strings.join([BROKEN, " ", place])
        with tf.control_dependencies([tf.debugging.Assert(tf.size(image) > 0, [message])]):
            return tf.ensure_shape(tf.identity(image), self.size)

    def _decode(self, place: tf.Tensor) -> tf.Tensor:
        """Return the image [S, S, 3] uint8: the centre of the resized image."""
        height, width, channels = self.size
        image = tf.io.decode_image(_encoded(place), channels, expand_animations=False)
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        scale = tf.reduce_max(tf.constant([height, width], tf.float32) / shape)
        size = tf.cast(tf.math.ceil(shape * (RESIZES[self.resize] * scale)), tf.int32)
        resized = tf.image.resize(image, size, antialias=True)
        pixels = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return pixels[top : top + height, left : left + width]


def _encoded(place: tf.Tensor) -> tf.Tensor:
    """Return the JPEG in the record at a place, as a string tensor []."""
    parts = tf.strings.split(place, ":")
    start = tf.strings.to_number(parts[-1:], tf.int64)
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.strings.reduce_join(parts[:-1], separator=":", keepdims=True),
        compression_type="",
        buffer_size=0,
        byte_offsets=start,
    )
    form: Any = {"output_types": [tf.string], "output_shapes": [[]]}
    first = tf.raw_ops.TakeDataset(input_dataset=records, count=1, **form)
    (record,) = tf.raw_ops.DatasetToSingleElement(dataset=first, **form)
    features = {"image": tf.io.FixedLenFeature([], tf.string)}
    return tf.io.parse_single_example(record, features)["image"]


@dataclass(frozen=True)
class Imagenet(Tfds):
    """ImageNet; see `open_imagenet2012`."""

    test_examples: int | None = None

    @property
    def files(self) -> list[Path]:
        """The description of the set alone: to read 150 GB takes minutes."""
        info = Path(self._builder().data_dir, INFO)
        return [info] if info.exists() else []

    def _hindrance(self, root: Path) -> str | None:
        manual = root / "downloads" / "manual"  # TFDS expects the archives there
        if all((manual / name).is_file() for name in ARCHIVES):
            return None
        return f"it is downloaded by hand: put {' and '.join(ARCHIVES)} from {URL} into {manual}"

    def _name_in_tfds(self, split: str) -> str:
        return "validation" if split == "test" else split

    def _read(self, builder: Any, split: str) -> Split:
        form = builder.info.file_format.value
        if form != "tfrecord":
            raise ValueError(f"records as {form}, not as tfrecord")
        info = builder.info.splits[split]
        files = [str(path) for path in info.filepaths]
        places, labels = _places_and_labels(files, info.shard_lengths)
        if len(labels) != info.num_examples:
            raise ValueError(f"{len(labels)} records of {info.num_examples}")
        images: Any = Records(places, self.image_shape)
        examples = Split(images, labels, np.arange(len(labels)))
        return examples if split == "train" else drawn(examples, self.test_examples)


def _places_and_labels(files: list[str], counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the places [N] and labels [N] of all records, in one pass over the files.

    `counts` is the number of records in each file.
    """
    features = {"label": tf.io.FixedLenFeature([], tf.int64)}

    def length_and_label(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        label = tf.io.parse_single_example(record, features)["label"]
        return tf.strings.length(record), label

    def scan(file: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        records = tf.data.TFRecordDataset(file).map(length_and_label)
        return records.batch(count).get_single_element()

    shards = tf.data.Dataset.from_tensor_slices((files, np.array(counts, np.int64)))
    scanned = shards.map(scan, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    places, labels = [], []
    numbers = untuned(scanned).as_numpy_iterator()
    for file, (lengths, shard_labels) in zip(files, numbers, strict=True):
        starts = np.cumsum(lengths.astype(np.int64) + FRAME) - lengths - FRAME
        places.append(np.char.add(f"{file}:".encode(), starts.astype("S")))
        labels.append(shard_labels.astype(np.int32))
    return np.concatenate(places), np.concatenate(labels)


def open_imagenet2012(
    dir: str | None = None, image_size: int = 224, test_examples: int | None = None
) -> Imagenet:
    """Open ImageNet as TFDS prepares it. Nothing is read yet.

    When a split is loaded, its files are read once for the labels and the positions of the images,
    and a UserError is raised if TFDS has not prepared the set. The index is the position in the
    order of the files. The test images are those of validation, in a random order that is always
    the same. Images are resized like those of a folder with `resize: imagenet`.

    Args:
        dir: As for the other sets of TFDS. TFDS prepares this one from the archives in
            dir/downloads/manual.
        image_size: The side of the square that is cut out of the centre, in pixels.
        test_examples: The number of test images to attack, the first in their random order, which
            are then held in memory; None for all.
    """
    require_at_least(1, image_size=image_size)
    if test_examples is not None:
        require_at_least(1, test_examples=test_examples)
    shape = (image_size, image_size, 3)
    return Imagenet(shape, numbered(1000), "imagenet2012", URL, dir, False, test_examples)
