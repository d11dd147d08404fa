"""A made-up ImageNet of TFDS: its images, their order, and how it can be missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.test_data import fails
from tfrobust.data import DATASETS, Split, batches
from tfrobust.data.imagenet import ARCHIVES, URL, Records, _places_and_labels
from tfrobust.errors import UserError

SIZES = np.random.default_rng(0).integers(9, 30, (14, 2))


def shade(number: int) -> np.ndarray:
    """Return an image of one shade, which JPEG keeps, in its own size."""
    return np.full((*SIZES[number], 3), 10 * number, np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write ten training and four validation images. Their class is 100 times their number."""
    import tensorflow_datasets as tfds

    def examples(first: int, last: int) -> tf.data.Dataset:
        def each() -> Any:
            for number in range(first, last):
                named = {"label": 50 * number, "file_name": f"{number}.JPEG"}
                yield {"image": shade(number), **named}

        form = {
            "image": tf.TensorSpec((None, None, 3), tf.uint8),
            "label": tf.TensorSpec((), tf.int64),
            "file_name": tf.TensorSpec((), tf.string),
        }
        return tf.data.Dataset.from_generator(each, output_signature=form)

    folder = tmp_path_factory.mktemp("tfds")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet2012",
        version="5.1.0",
        data_dir=folder,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=1000),
                "file_name": tfds.features.Text(),
            }
        ),
        split_datasets={"train": examples(0, 10), "validation": examples(10, 14)},
    )
    return folder


def opened(folder: Path, **options: Any) -> Any:
    return DATASETS["imagenet2012"](dir=str(folder), image_size=8, **options)


def test_it_is_known_before_anything_is_read(tmp_path: Path) -> None:
    source = DATASETS["imagenet2012"](dir=str(tmp_path))
    assert source.image_shape == (224, 224, 3) and source.num_classes == 1000


def test_records_are_read_in_the_order_of_the_files(prepared: Path) -> None:
    """The order is that of TFDS, however it shuffled the records when it wrote them."""
    import tensorflow_datasets as tfds

    source = opened(prepared)
    for split, current in (("train", "train"), ("test", "validation")):
        result = source.load(split)
        builder = tfds.builder("imagenet2012", data_dir=prepared)
        written = list(builder.as_dataset(split=current).as_numpy_iterator())
        np.testing.assert_array_equal(result.labels, [row["label"] for row in written])
        np.testing.assert_array_equal(result.index, np.arange(len(written)))
        images = np.asarray(result.images)
        assert images.shape == (len(written), 8, 8, 3)
        shades = [row["image"].mean() for row in written]
        np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), shades, atol=2)


def test_batches_are_those_of_the_arrays(prepared: Path) -> None:
    """Batches have the order, augmentation and index of arrays. A resumed stream is their tail."""
    train = opened(prepared).load("train")
    held = Split(np.asarray(train.images), train.labels, train.index)
    options: Any = {"seed": 1, "training": True, "augment": "crop_flip"}
    streams = [batches(s, 4, **options).take(5).as_numpy_iterator() for s in (train, held)]
    for lazy, kept in zip(*streams, strict=True):
        for key in kept:
            np.testing.assert_array_equal(lazy[key], kept[key])
    tail = next(batches(train, 4, first_step=4, **options).as_numpy_iterator())
    np.testing.assert_array_equal(tail["image"], lazy["image"])


def test_only_some_of_the_test_images(prepared: Path) -> None:
    few = opened(prepared, test_examples=2).load("test")
    assert len(few) == 2 and len(opened(prepared, test_examples=2).load("train")) == 10
    dataset = opened(prepared).load("test")
    np.testing.assert_array_equal(few.as_float(), dataset.take(few.index).as_float())


def test_a_place_is_a_file_and_a_byte(tmp_path: Path) -> None:
    """The places of records cover several files, in folders of any name."""
    folder = tmp_path / "a:1 [é]"
    folder.mkdir()
    files = [str(folder / f"{name}.tfrecord") for name in "ab"]
    for start, file in zip((0, 3), files, strict=True):
        with tf.io.TFRecordWriter(file) as writer:
            for number in range(start, start + 3):
                jpeg = tf.io.encode_jpeg(shade(number), quality=100).numpy()
                features = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg])),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
    places, labels = _places_and_labels(files, [3, 3])
    np.testing.assert_array_equal(labels, np.arange(6))
    assert places[0] == f"{files[0]}:0".encode() and places[3] == f"{files[1]}:0".encode()
    result = np.asarray(Records(places, (8, 8, 3))[[4, 1]])
    np.testing.assert_allclose(result.mean(axis=(1, 2, 3)), [40, 10], atol=1)
    content = Path(files[1]).read_bytes()
    at = int(places[4].decode().rpartition(":")[2])
    Path(files[1]).write_bytes(content[: at + 60] + b"!" + content[at + 61 :])
    with pytest.raises(UserError) as caught:
        np.asarray(Records(places, (8, 8, 3)))
    broken = "expected an image that can be read, received a broken one"
    assert str(caught.value) == f"{places[4].decode()}: {broken}"


def test_absent_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    line = fails(lambda: opened(tmp_path).load("train"))
    absent = f"dir: expected imagenet2012 5.1.0 prepared in {tmp_path}, received none, and it was"
    assert line.startswith(absent)
    manual = tmp_path / "downloads" / "manual"
    assert f"put {' and '.join(ARCHIVES)} from {URL} into {manual})" in line

    def stop(self: Any) -> None:
        raise OSError("no archive")

    manual.mkdir(parents=True)
    for name in ARCHIVES:
        (manual / name).touch()
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", stop)
    assert "(OSError: no archive)" in fails(lambda: opened(tmp_path).load("train"))


@pytest.mark.parametrize("change", [('"10"', '"11"'), ('"tfrecord"', '"array_record"')])
def test_a_damaged_folder(prepared: Path, tmp_path: Path, change: tuple[str, str]) -> None:
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    for path in (prepared / "imagenet2012" / "5.1.0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    info = folder / "dataset_info.json"
    assert change[0] in info.read_text()
    info.write_text(info.read_text().replace(*change))
    line = fails(lambda: opened(tmp_path).load("train"))
    assert line.startswith(f"dir: expected imagenet2012 readable in {folder}, received ValueError")


@pytest.mark.parametrize("name", ["image_size", "test_examples"])
def test_mistakes_of_a_number(name: str) -> None:
    assert fails(lambda: DATASETS["imagenet2012"](**{name: 0})).startswith(f"{name}: expected int")
