"""The data sets: published facts about them, and error lines where they are missing or damaged."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipelines.fingerprints import fingerprint
from tests.errors import error_line
from tests.unit.test_data import CLASSES, split_of
from tfrobust.corruptions import CORRUPTIONS
from tfrobust.data import DATASETS, Dataset, Split
from tfrobust.data import tfds as tfds_module
from tfrobust.data.corrupted import EXTRA, MNIST_C, TFDS_NAMES
from tfrobust.errors import UserError
from tfrobust.registry import build

# Digits and synthetic images


def test_digits_are_sixteenths_in_two_stratified_splits() -> None:
    data = build(DATASETS, "digits", "data")
    assert (data.image_shape, data.num_classes) == ((8, 8, 1), 10)
    train, test = (data.load(split) for split in ("train", "test"))
    assert (train.images.shape, test.images.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert train.images.dtype == np.float32
    assert (train.images.min(), train.images.max()) == (0, 1)
    np.testing.assert_array_equal(train.images * 16, np.round(train.images * 16))
    assert np.bincount(test.labels).min() >= 34  # an equal number of each class would be 36
    assert train.index.tolist() == list(range(1437))
    np.testing.assert_array_equal(test.images, data.load("test").images)


def test_breast_cancer_is_scaled_by_its_training_rows() -> None:
    data = build(DATASETS, "breast_cancer", "data")
    assert (data.image_shape, data.class_names) == ((30,), ("malignant", "benign"))
    train, test = (data.load(split) for split in ("train", "test"))
    assert (train.images.shape, test.images.shape) == ((398, 30), (171, 30))
    assert train.images.dtype == np.float32
    np.testing.assert_array_equal(train.images.min(axis=0), np.zeros(30))
    np.testing.assert_array_equal(train.images.max(axis=0), np.ones(30))
    assert test.images.min() >= 0 and test.images.max() <= 1
    assert np.bincount(test.labels).tolist() == [64, 107]


@pytest.mark.parametrize("shape", [[7], [12, 3]])
def test_synthetic_tables_and_series_can_be_learned(shape: list[int]) -> None:
    data = DATASETS["synthetic"](image_shape=shape, num_classes=3, train=60, test=60)
    train, test = (data.load(split) for split in ("train", "test"))
    assert train.images.shape == (60, *shape) and train.images.dtype == np.float32
    means = np.stack([train.images[train.labels == label].mean(0) for label in range(3)])
    distance = ((test.images[:, None] - means) ** 2).reshape(60, 3, -1).sum(-1)
    assert (distance.argmin(1) == test.labels).mean() > 0.8  # chance is 0.33


@pytest.mark.parametrize("like", ["digits", *CLASSES])
def test_synthetic_images_imitate_a_data_set(like: str) -> None:
    data = build(DATASETS, {"name": "synthetic", "like": like, "train": 12, "test": 5}, "data")
    real = DATASETS[like]()
    assert data.image_shape == real.image_shape
    assert data.class_names == real.class_names
    train, test = (data.load(split) for split in ("train", "test"))
    assert (train.images.shape, len(test)) == ((12, *real.image_shape), 5)
    assert train.images.dtype == np.uint8
    np.testing.assert_array_equal(train.images, data.load("train").images)


def test_synthetic_images_are_smooth_and_can_be_learned() -> None:
    data = DATASETS["synthetic"](image_shape=[16, 16, 1], num_classes=4, train=80, test=80)
    train, test = (data.load(split) for split in ("train", "test"))
    x = train.as_float()
    assert np.abs(np.diff(x, axis=2)).mean() < 0.5 * x.std()
    means = np.stack([x[train.labels == label].mean(0) for label in range(4)])
    distance = ((test.as_float()[:, None] - means) ** 2).sum((2, 3, 4))
    assert (distance.argmin(1) == test.labels).mean() > 0.9  # chance is 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "like: expected a data set, or image_shape and num_classes, received None"),
        ({"image_shape": [8, 8, 1]}, "like: expected a data set, or image_shape and"),
        ({"like": "npz"}, "like: expected one of breast_cancer, cifar10,"),
        ({"like": "mnist", "num_classes": 3}, "like: expected no image_shape or num_classes"),
        ({"image_shape": [0, 8], "num_classes": 2}, "image_shape: expected [H, W, C], [T, C] or"),
        ({"image_shape": [8, 8, 1], "num_classes": 1}, "num_classes: expected int >= 2"),
        ({"like": "mnist", "test": 0}, "test: expected int >= 1, received 0"),
    ],
)
def test_wrong_arguments_of_synthetic_are_one_line(arguments: dict[str, Any], message: str) -> None:
    assert error_line(lambda: DATASETS["synthetic"](**arguments)).startswith(message)


# TensorFlow Datasets


@pytest.mark.parametrize("name", CLASSES)
def test_shape_and_classes_are_known_before_a_file_is_read(name: str, tmp_path: Path) -> None:
    data = build(DATASETS, {"name": name, "dir": str(tmp_path), "download": False}, "data")
    assert isinstance(data, Dataset)
    assert data.num_classes == len(set(data.class_names)) == CLASSES[name]
    assert data.image_shape == {"mnist": (28, 28, 1), "stl10": (96, 96, 3)}.get(name, (32, 32, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of data sets, which has none; no download may begin."""
    import tensorflow_datasets as tfds

    def begun(self: Any) -> None:
        raise AssertionError("a download was begun, in which TFDS retries for minutes")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", begun)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def loading_error(name: str, **options: Any) -> str:
    """Return the error line of loading a data set."""
    return error_line(lambda: DATASETS[name](**options).load("train"))


def test_absent_data_set_without_download_is_one_line(empty: Path) -> None:
    line = loading_error("mnist", download=False)
    assert line.startswith(f"dir: expected mnist 3.0.1 prepared in {empty}, received none, ")
    assert "(download is off); set TFDS_DATA_DIR or data.dir" in line


def test_dir_takes_precedence_over_the_environment(empty: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    assert f"prepared in {chosen}, " in loading_error("mnist", dir=str(chosen), download=False)


@pytest.mark.timeout(60)
def test_absent_data_set_without_network_is_one_line_within_seconds(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port refuses connections
    line = loading_error("cifar10")
    assert "cifar-10-binary.tar.gz: ProxyError); set TFDS_DATA_DIR" in line
    assert list(empty.iterdir()) == []


@pytest.mark.timeout(60)
def test_absent_data_set_with_a_silent_server_is_one_line_within_seconds(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfds_module, "PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        line = loading_error("stl10")
    assert "it was not downloaded (" in line and "ai.stanford.edu" in line


def test_interrupted_download_is_one_line(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    def break_off(self: Any) -> None:
        raise ConnectionError("connection reset\nby peer")

    monkeypatch.setattr(tfds_module, "_unreachable", lambda url: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", break_off)
    assert "(ConnectionError: connection reset by peer)" in loading_error("cifar100")


def test_a_set_that_another_process_prepares_meanwhile_is_read(
    empty: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the runs of a suite begin at the same time. All but the first one failed."""
    import tensorflow_datasets as tfds

    def lose_the_race(self: Any) -> None:
        copied(prepared, empty)
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), self.data_dir)

    monkeypatch.setattr(tfds_module, "_unreachable", lambda url: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lose_the_race)
    assert len(DATASETS["mnist"]().load("test")) == 20


IMAGES = split_of(1500, 28, 28).images[..., :1]  # more than one read batch


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a prepared mnist: 1,500 training and 20 test images, labels i % 10."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    def examples(n: int) -> tf.data.Dataset:
        arrays = {"image": IMAGES[:n], "label": np.arange(n, dtype=np.int64) % 10}
        return tf.data.Dataset.from_tensor_slices(arrays)

    image = tfds.features.Image(shape=(28, 28, 1))
    label = tfds.features.ClassLabel(num_classes=10)

    tfds.dataset_builders.store_as_tfds_dataset(
        name="mnist",
        version="3.0.1",
        data_dir=folder,
        disable_shuffling=True,
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        split_datasets={"train": examples(1500), "test": examples(20)},
    )
    return folder


def test_prepared_images_are_decoded_in_order(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    train, test = (DATASETS["mnist"](download=False).load(split) for split in ("train", "test"))
    assert train.images.dtype == np.uint8
    np.testing.assert_array_equal(train.images, IMAGES)
    np.testing.assert_array_equal(train.labels, np.arange(1500) % 10)
    np.testing.assert_array_equal(train.index, np.arange(1500))
    np.testing.assert_array_equal(test.images, IMAGES[:20])


def copied(prepared: Path, to: Path) -> Path:
    """Copy the data set into another folder, and return the folder of its version."""
    version = Path("mnist") / "3.0.1"
    return shutil.copytree(prepared / version, to / version)


def test_a_prepared_set_is_known_by_its_records(prepared: Path, tmp_path: Path) -> None:
    """Another folder with the same records is the same set; one that was prepared anew is not."""

    def digest(folder: Path) -> str:
        return fingerprint({}, (), DATASETS["mnist"](dir=str(folder), download=False).files)

    assert digest(tmp_path) == fingerprint({})  # nothing is prepared, and nothing downloaded
    folder = copied(prepared, tmp_path)
    assert digest(tmp_path) == digest(prepared) != fingerprint({})
    (records,) = folder.glob("mnist-test*")
    records.write_bytes(records.read_bytes()[::-1])
    assert digest(tmp_path) != digest(prepared)


def test_other_prepared_version_is_named(prepared: Path, tmp_path: Path) -> None:
    folder = copied(prepared, tmp_path)
    folder.rename(folder.parent / "3.0.0")
    line = error_line(lambda: DATASETS["mnist"](dir=str(tmp_path), download=False).load("train"))
    assert f"expected mnist 3.0.1 prepared in {tmp_path}, received version 3.0.0, " in line


@pytest.mark.parametrize("damage", ["cut", "no records", "no json", "fewer"])
def test_damaged_folder_is_one_line(prepared: Path, tmp_path: Path, damage: str) -> None:
    folder = copied(prepared, tmp_path)
    (records,) = folder.glob("mnist-train*")
    if damage == "cut":
        records.write_bytes(records.read_bytes()[:5000])
    elif damage == "no records":
        records.unlink()
    elif damage == "no json":
        (folder / "dataset_info.json").write_text("{")
    else:
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace('"1500"', '"1501"'))
    line = error_line(lambda: DATASETS["mnist"](dir=str(tmp_path)).load("train"))
    assert line.startswith("dir: expected mnist readable in ")
    assert str(tmp_path / "mnist") in line


@pytest.mark.parametrize(
    ("spec", "config", "version"),
    [
        ({"name": "cifar10_corrupted", "corruption": "fog", "severity": 3}, "fog_3", "1.0.0"),
        (
            {"name": "cifar10_corrupted", "corruption": "glass_blur", "severity": 5},
            "frosted_glass_blur_5",
            "1.0.0",
        ),
        ({"name": "mnist_corrupted", "corruption": "zigzag"}, "zigzag", "1.0.0"),
    ],
)
def test_published_corruptions_are_read_where_they_are_prepared(
    spec: dict[str, Any], config: str, version: str, tmp_path: Path
) -> None:
    """TFDS names a prepared set NAME/CONFIG/VERSION; the stand-in has 4 test images."""
    import tensorflow_datasets as tfds

    data = build(DATASETS, spec | {"dir": str(tmp_path), "download": False}, "data")
    line = error_line(lambda: data.load("test"))
    assert f"expected {spec['name']}/{config} {version} prepared in {tmp_path}, received " in line
    images = split_of(4, *data.image_shape[:2]).images[..., : data.image_shape[2]]
    rows = {"image": images, "label": np.arange(4, dtype=np.int64)}
    tfds.dataset_builders.store_as_tfds_dataset(
        name=spec["name"],
        config=config,
        version=version,
        data_dir=tmp_path,
        disable_shuffling=True,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=data.image_shape),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        split_datasets={"test": tf.data.Dataset.from_tensor_slices(rows)},
    )
    test = data.load("test")
    np.testing.assert_array_equal(test.images, images)
    np.testing.assert_array_equal(test.labels, np.arange(4))
    line = error_line(lambda: data.load("train"))
    assert line.startswith("name: expected a data set with a split train, received ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"corruption": "fogg", "severity": 1}, "data.corruption: expected one of .*'fog'"),
        ({"corruption": "fog", "severity": 0}, "data.severity: expected an int from 1 to 5"),
        ({"corruption": "fog"}, "data: expected a value for severity"),
    ],
)
def test_mistakes_in_a_published_corruption(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(DATASETS, {"name": "cifar10_corrupted", **values}, "data")


def test_every_name_of_a_published_corruption_is_one_of_tfds() -> None:
    import tensorflow_datasets as tfds

    names = {f"{TFDS_NAMES.get(name, name)}_1" for name in (*CORRUPTIONS, *EXTRA)}
    configs = tfds.builder_cls("cifar10_corrupted").builder_configs
    assert names == {name for name in configs if name.endswith("_1")}
    assert set(MNIST_C) == set(tfds.builder_cls("mnist_corrupted").builder_configs)


def real(tfds_dir: Path, name: str) -> tuple[Split, Split]:
    """Return the training and the test split; skip the test where they are not prepared."""
    if not (tfds_dir / name).is_dir():
        pytest.skip(f"no prepared {name} in {tfds_dir}")
    data = DATASETS[name](dir=str(tfds_dir), download=False)
    return data.load("train"), data.load("test")


def test_real_mnist_has_its_published_statistics(tfds_dir: Path) -> None:
    train, test = real(tfds_dir, "mnist")
    assert (len(train), len(test)) == (60_000, 10_000)
    # Published are the count of every digit and the mean and deviation of the pixels.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(train.labels).tolist() == counts
    share, level = np.bincount(train.images.ravel()) / train.images.size, np.arange(256) / 255
    mean = share @ level
    deviation = np.sqrt(share @ (level - mean) ** 2)
    assert (mean, deviation) == pytest.approx((0.1307, 0.3081), abs=1e-4)


def test_real_cifar10_has_its_published_statistics(tfds_dir: Path) -> None:
    train, test = real(tfds_dir, "cifar10")
    assert (len(train), len(test)) == (50_000, 10_000)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    # The mean is published; that of copies compressed as JPEG is 0.005 off.
    mean = train.images.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=6e-3)
