"""A small imitation of TFDS's ImageNet: its images, their order, and errors where it is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tests.unit.test_data import assert_batches_equal_those_of_arrays
from tfrobust.data import DATASETS
from tfrobust.data.imagenet import ARCHIVES, URL, Records, _places_and_labels

SIZES = np.random.default_rng(0).integers(9, 30, (14, 2))


def shade(number: int) -> np.ndarray:
    """Return an image [H, W, 3] of one shade, which JPEG keeps."""
    return np.full((*SIZES[number], 3), 10 * number, np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of ten training and four validation images; their class is 50 * number."""
    import tensorflow_datasets as tfds

    def examples(first: int, last: int) -> tf.data.Dataset:
        def rows() -> Any:
            for number in range(first, last):
                name = f"{number}.JPEG"
                yield {"image": shade(number), "label": 50 * number, "file_name": name}

        signature = {
            "image": tf.TensorSpec((None, None, 3), tf.uint8),
            "label": tf.TensorSpec((), tf.int64),
            "file_name": tf.TensorSpec((), tf.string),
        }
        return tf.data.Dataset.from_generator(rows, output_signature=signature)

    folder = tmp_path_factory.mktemp("tfds")
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=1000),
        "file_name": tfds.features.Text(),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet2012",
        version="5.1.0",
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": examples(0, 10), "validation": examples(10, 14)},
    )
    return folder


def opened(folder: Path, **options: Any) -> Any:
    """Return the data set of a folder with images [8, 8, 3]."""
    return DATASETS["imagenet2012"](dir=str(folder), image_size=8, **options)


def test_shape_and_classes_are_known_before_a_file_is_read(tmp_path: Path) -> None:
    source = DATASETS["imagenet2012"](dir=str(tmp_path))
    assert source.image_shape == (224, 224, 3) and source.num_classes == 1000
    assert source.files == []


def test_the_set_is_known_by_its_description_not_by_its_records(prepared: Path) -> None:
    assert [file.name for file in opened(prepared).files] == ["dataset_info.json"]


def test_records_are_read_in_the_order_of_the_files(prepared: Path) -> None:
    """TFDS shuffled the records when it wrote them; its reader gives them in the same order."""
    import tensorflow_datasets as tfds

    source = opened(prepared)
    for split, split_of_tfds in (("train", "train"), ("test", "validation")):
        result = source.load(split)
        builder = tfds.builder("imagenet2012", data_dir=prepared)
        written = list(builder.as_dataset(split=split_of_tfds).as_numpy_iterator())
        result = result.take(np.argsort(result.index))  # test images have a random order
        np.testing.assert_array_equal(result.labels, [row["label"] for row in written])
        np.testing.assert_array_equal(result.index, np.arange(len(written)))
        images = np.asarray(result.images)
        assert images.shape == (len(written), 8, 8, 3)
        shades = [row["image"].mean() for row in written]
        np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), shades, atol=2)


def test_batches_of_records_equal_those_of_arrays(prepared: Path) -> None:
    assert_batches_equal_those_of_arrays(opened(prepared).load("train"))


def test_test_examples_takes_the_first_test_images(prepared: Path) -> None:
    few = opened(prepared, test_examples=2).load("test")
    assert len(few) == 2 and len(opened(prepared, test_examples=2).load("train")) == 10
    test = opened(prepared).load("test")
    np.testing.assert_array_equal(few.as_float(), test.first(2).as_float())


def test_place_of_a_record_is_its_file_and_its_first_byte(tmp_path: Path) -> None:
    """The records are in several files, in a folder with an unusual name."""
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
    start = int(places[4].decode().rpartition(":")[2])
    Path(files[1]).write_bytes(content[: start + 60] + b"!" + content[start + 61 :])
    line = error_line(lambda: np.asarray(Records(places, (8, 8, 3))))
    broken = "expected an image that can be read, received a broken one"
    assert line == f"{places[4].decode()}: {broken}"


def test_absent_imagenet_says_which_archives_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow_datasets as tfds

    line = error_line(lambda: opened(tmp_path).load("train"))
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
    assert "(OSError: no archive)" in error_line(lambda: opened(tmp_path).load("train"))


@pytest.mark.parametrize("change", [('"10"', '"11"'), ('"tfrecord"', '"array_record"')])
def test_damaged_folder_is_one_line(
    prepared: Path, tmp_path: Path, change: tuple[str, str]
) -> None:
    version = Path("imagenet2012") / "5.1.0"
    folder = shutil.copytree(prepared / version, tmp_path / version)
    info = folder / "dataset_info.json"
    assert change[0] in info.read_text()
    info.write_text(info.read_text().replace(*change))
    line = error_line(lambda: opened(tmp_path).load("train"))
    assert line.startswith(f"dir: expected imagenet2012 readable in {folder}, received ValueError")


@pytest.mark.parametrize("name", ["image_size", "test_examples"])
def test_numbers_below_one_are_refused(name: str) -> None:
    line = error_line(lambda: DATASETS["imagenet2012"](**{name: 0}))
    assert line.startswith(f"{name}: expected int")
