"""ImageNet (ILSVRC 2012) as TensorFlow Datasets prepares it, its records read while training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.data.files import BROKEN, RESIZES, Files
from tfrobust.data.folder import drawn
from tfrobust.data.split import Split, numbered
from tfrobust.data.tfds import Tfds
from tfrobust.errors import require

FRAME = 16  # bytes that a TFRecord file adds to each record: its length and two checksums
URL = "https://image-net.org/download-images"
ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


@dataclass(frozen=True, eq=False)
class Records(Files):
    """Images that lie in TFRecord files, as `Files`; a place is "FILE:BYTE", where its record
    begins. All are JPEG, which TensorFlow decodes, and resized by ImageNet's rule."""

    resize: str = "imagenet"

    def _image(self, place: tf.Tensor) -> tf.Tensor:
        """As that of `Files`; TensorFlow's own errors have no name in them."""
        none = tf.data.Dataset.from_tensors(tf.zeros((0, *self.size[1:]), tf.uint8))
        tried = tf.data.Dataset.from_tensors(place).map(self._decode).ignore_errors()
        image = tried.concatenate(none).take(1).get_single_element()
        named = tf.strings.join([BROKEN, " ", place])
        with tf.control_dependencies([tf.debugging.Assert(tf.size(image) > 0, [named])]):
            return tf.ensure_shape(tf.identity(image), self.size)

    def _decode(self, place: tf.Tensor) -> tf.Tensor:
        height, width, channels = self.size
        image = tf.io.decode_image(_encoded(place), channels, expand_animations=False)
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        scale = tf.reduce_max(tf.constant([height, width], tf.float32) / shape)
        size = tf.cast(tf.math.ceil(shape * (RESIZES[self.resize] * scale)), tf.int32)
        resized = tf.image.resize(image, size, antialias=True)
        whole = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return whole[top : top + height, left : left + width]


def _encoded(place: tf.Tensor) -> tf.Tensor:
    """The bytes of the JPEG in a record."""
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
    return tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature([], tf.string)})[
        "image"
    ]


@dataclass(frozen=True)
class Imagenet(Tfds):
    """See `open_imagenet2012`."""

    test_examples: int | None = None

    def _hindrance(self, root: Path) -> str | None:
        manual = root / "downloads" / "manual"  # where TFDS looks
        if all((manual / name).is_file() for name in ARCHIVES):
            return None
        return f"that is done by hand: put {' and '.join(ARCHIVES)} from {URL} into {manual}"

    def _read(self, builder: Any, split: str) -> Split:
        form = builder.info.file_format.value
        if form != "tfrecord":
            raise ValueError(f"records as {form}, not as tfrecord")
        held = builder.info.splits["validation" if split == "test" else split]
        files = [str(path) for path in held.filepaths]
        places, labels = _listed(files, held.shard_lengths)
        if len(labels) != held.num_examples:
            raise ValueError(f"{len(labels)} records of {held.num_examples}")
        images: Any = Records(places, self.image_shape)
        whole = Split(images, labels, np.arange(len(labels)))
        return whole if split == "train" else drawn(whole, self.test_examples)


def _listed(files: list[str], counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of all records, in the order of the files, the place and the label: one pass over them.

    counts: the records of each file.
    """
    feature = {"label": tf.io.FixedLenFeature([], tf.int64)}

    def look(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        label = tf.io.parse_single_example(record, feature)["label"]
        return tf.strings.length(record), label

    def scan(file: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.data.TFRecordDataset(file).map(look).batch(count).get_single_element()

    shards = tf.data.Dataset.from_tensor_slices((files, np.array(counts, np.int64)))
    scanned = shards.map(scan, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    places, labels = [], []
    for file, (lengths, own) in zip(files, scanned.as_numpy_iterator(), strict=True):
        starts = np.cumsum(lengths.astype(np.int64) + FRAME) - lengths - FRAME
        places.append(np.char.add(f"{file}:".encode(), starts.astype("S")))
        labels.append(own.astype(np.int32))
    return np.concatenate(places), np.concatenate(labels)


def open_imagenet2012(
    dir: str | None = None, image_size: int = 224, test_examples: int | None = None
) -> Imagenet:
    """Looks at nothing. To load a split its files are read once, for the labels and the places.

    dir: as for the other sets of TFDS, which prepares this one from the archives that lie in
    dir/downloads/manual. image_size, test_examples: as for a folder of images that
    are resized by the rule "imagenet"; the test images are those of validation. The index is the
    place in the order of the files. Raises UserError, when it is loaded, where TFDS has not
    prepared it.
    """
    require(image_size >= 1, "image_size", "int >= 1", image_size)
    count = test_examples
    require(count is None or count >= 1, "test_examples", "int >= 1", count)
    shape = (image_size, image_size, 3)
    return Imagenet(shape, numbered(1000), "imagenet2012", URL, dir, False, count)
