"""A user's arrays in an .npz file, and every mistake in them."""

from __future__ import annotations

import io
import mmap
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipelines.network import check_fit
from tests.errors import error_line
from tests.unit.test_data import MISTAKES, X, Y
from tfrobust.data import DATASETS, Extra, Split, batches
from tfrobust.registry import build


def saved(path: Path, **changes: Any) -> str:
    """Return the file of four training and two test images; an array that is None is left out."""
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2], **changes}
    np.savez(path / "data.npz", **{k: v for k, v in arrays.items() if v is not None})
    return str(path / "data.npz")


def saved_with_bytes(path: Path, name: str, content: bytes) -> str:
    """Return the file in which an array has this content."""
    file = saved(path, **{name: None})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{name}.npy", content)
    return file


def test_an_npz_has_the_shape_classes_and_images_of_its_arrays(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 4 * 9).reshape(4, 3, 3)
    path = saved(tmp_path, x_train=x, y_test=np.array([[6], [0]], np.uint8))
    data = DATASETS["npz"](path=path)
    assert (data.image_shape, data.num_classes) == ((3, 3, 1), 7)
    assert data.class_names == ("0", "1", "2", "3", "4", "5", "6")
    line = error_line(lambda: check_fit("model.path", data, (3, 3, 1), 10))
    assert line.endswith("; set data.num_classes to 10 if the labels do not show all classes")
    line = error_line(lambda: check_fit("model.path", data, (3, 3, 1), 6))
    assert line.endswith("; subtract 1 from all labels if they begin at 1")
    line = error_line(lambda: check_fit("model.path", data, (3, 3), 7))
    assert line.endswith("; set data.layout to series")
    train, test = (data.load(split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images[..., 0], x.astype(np.float32))
    assert test.labels.tolist() == [6, 0]
    assert test.images.dtype == np.uint8


def test_an_npz_has_at_least_two_classes(tmp_path: Path) -> None:
    path = saved(tmp_path, y_train=0 * Y, y_test=0 * Y[:2])
    assert DATASETS["npz"](path=path).num_classes == 2


def test_the_hint_makes_two_logits_of_one(tmp_path: Path) -> None:
    """The code of the hint gives the probability of class 1 that the one logit has."""
    network = keras.Sequential([keras.Input((3, 3, 1)), keras.layers.Flatten()])
    network.add(keras.layers.Dense(1))
    data = DATASETS["npz"](path=saved(tmp_path, y_train=Y % 2, y_test=Y[:2] % 2))
    line = error_line(lambda: check_fit("model.path", data, (3, 3, 1), 1))
    code = line.partition("; ")[2].partition(" has the two logits")[0]
    *statements, expression = code.split("; ")
    names = {"network": network, "keras": keras}
    exec("; ".join(statements), names)
    two = eval(expression, names)
    x = np.linspace(0, 1, 18, dtype=np.float32).reshape(2, 3, 3, 1)
    odds = keras.ops.softmax(two(x))[:, 1]
    np.testing.assert_allclose(odds, keras.ops.sigmoid(network(x))[:, 0], rtol=1e-5)


def test_the_constructor_reads_the_labels_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = saved(tmp_path), []
    load = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(
        np.lib.npyio.NpzFile, "__getitem__", lambda self, key: read.append(key) or load(self, key)
    )
    DATASETS["npz"](path=path)
    assert read == ["y_train", "y_test"]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_arrays_is_named(tmp_path: Path, mistake: str, split: str) -> None:
    x, y, blamed, message = MISTAKES[mistake]
    path = saved(tmp_path, **{f"x_{split}": x, f"y_{split}": y})

    def load() -> None:
        data = DATASETS["npz"](path=path)
        # The constructor raises for all other mistakes, since they show without the images.
        assert mistake in ("NaN", "0 to 255", "below 0", "0 and 1")
        data.load(split)

    line = error_line(load)
    assert line.startswith(f"path: {blamed}_{split} of {path}: expected ")
    assert message in line


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_a_missing_array_is_named(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path, **{key: None}, extra=X)
    line = error_line(lambda: DATASETS["npz"](path=path))
    assert line.startswith(f"path: expected {key} in {path}, received extra, ")


def test_test_arrays_alone_suffice_with_more_classes_than_they_show(tmp_path: Path) -> None:
    path = saved(tmp_path, x_train=None, y_train=None, y_test=np.array([3, 0]))
    data = DATASETS["npz"](path=path, num_classes=7)
    assert data.num_classes == 7
    train, test = (data.load(split) for split in ("train", "test"))
    assert (len(train), test.labels.tolist()) == (0, [3, 0])
    line = error_line(lambda: DATASETS["npz"](path=path, num_classes=3))
    assert line.startswith("num_classes: expected from 4, the greatest label plus one")


def test_training_labels_from_1_are_refused_unless_the_classes_are_counted(tmp_path: Path) -> None:
    path = saved(tmp_path, y_train=np.array([1, 3, 2, 1]))
    line = error_line(lambda: DATASETS["npz"](path=path))
    assert line.startswith(
        f"path: y_train of {path}: expected class numbers from 0, received 1 to 3"
    )
    assert "subtract 1 from all labels, or set num_classes to 4" in line
    assert DATASETS["npz"](path=path, num_classes=4).num_classes == 4


def is_mapped(array: Any) -> bool:
    """Return whether an array is mapped to a file instead of read into memory."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", "CF")
def test_files_of_generated_images_are_mapped_and_mixed_into_batches(
    tmp_path: Path, save: Any, order: str
) -> None:
    """Published files hold `image` and `label`. A compressed file cannot be mapped."""
    x = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    y = np.arange(50) % 10
    save(tmp_path / "1m.npz", image=np.asarray(x, order=order), label=y)
    data = DATASETS["npz"](path=str(tmp_path / "1m.npz"))
    assert (data.image_shape, data.num_classes) == ((4, 4, 3), 10)
    train = data.load("train")
    assert is_mapped(train.images) == (save is np.savez)
    np.testing.assert_array_equal(train.images, x)
    line = error_line(lambda: data.load("test"))
    assert line.startswith("path: expected x_test and y_test to evaluate on in")
    split = Split.of(x[:10] // 2, y[:10])
    stream = batches(split, 10, training=True, extra=Extra(train, share=0.7), steps_per_epoch=7)
    for batch in stream.take(7).as_numpy_iterator():
        assert (batch["index"] >= 10).sum() == 7
        for image, label, index in zip(*map(batch.get, ("image", "label", "index")), strict=True):
            expected = x[index - 10] if index >= 10 else x[index] // 2
            np.testing.assert_array_equal(image, expected.astype(np.float32) / np.float32(255))
            assert label == index % 10


def test_training_arrays_alone_suffice_but_need_both_images_and_labels(tmp_path: Path) -> None:
    data = DATASETS["npz"](path=saved(tmp_path, x_test=None, y_test=None))
    np.testing.assert_array_equal(data.load("train").images, X)
    path = saved(tmp_path, **dict.fromkeys(("x_train", "y_train", "x_test", "y_test")), image=X)
    assert error_line(lambda: DATASETS["npz"](path=path)).startswith("path: expected label in")


@pytest.mark.parametrize(("name", "array"), [("x_train", X), ("y_train", Y)])
def test_an_array_that_is_cut_short_is_named(tmp_path: Path, name: str, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    path = saved_with_bytes(tmp_path, name, buffer.getvalue()[:-8])
    line = error_line(lambda: DATASETS["npz"](path=path).load("train"))
    assert line.startswith(f"path: {name} of {path}: expected a readable array, received ")


def test_images_of_channels_first_are_transposed(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 5), np.uint8)
    path = saved(tmp_path, x_train=x, x_test=x[:2])
    data = DATASETS["npz"](path=path, layout="channels_first")
    assert data.image_shape == (6, 5, 3)
    np.testing.assert_array_equal(data.load("test").images, x[:2].transpose(0, 2, 3, 1))
    data = DATASETS["npz"](path=path, layout="channels_last")
    assert data.image_shape == data.load("train").images.shape[1:] == (3, 6, 5)


def test_tables_and_series_keep_their_shape(tmp_path: Path) -> None:
    """Without the layout "series" an array of three axes has grey images."""
    table = np.random.default_rng(0).random((4, 7))
    data = DATASETS["npz"](path=saved(tmp_path, x_train=table, x_test=table[:2]))
    assert data.image_shape == (7,)
    np.testing.assert_allclose(data.load("test").images, table[:2], rtol=1e-6)
    series = table.reshape(4, 7, 1).repeat(3, axis=2)
    path = saved(tmp_path, x_train=series, x_test=series[:2])
    assert DATASETS["npz"](path=path).image_shape == (7, 3, 1)
    data = DATASETS["npz"](path=path, layout="series")
    assert data.image_shape == data.load("train").images.shape[1:] == (7, 3)


def test_integer_tables_are_not_taken_for_pixels(tmp_path: Path) -> None:
    table = np.zeros((4, 7), np.uint8)
    path = saved(tmp_path, x_train=table, x_test=table[:2])
    assert error_line(lambda: DATASETS["npz"](path=path)) == (
        f"path: x_train of {path}: expected float inputs in [0, 1], received 'uint8'; scale each "
        "feature by its range in the training data"
    )


def test_test_images_of_another_shape_than_the_training_images_are_an_error(
    tmp_path: Path,
) -> None:
    path = saved(tmp_path, x_test=np.zeros((2, 3, 4, 1), np.uint8))
    assert error_line(lambda: DATASETS["npz"](path=path)) == (
        f"path: x_test of {path}: expected images of (3, 3, 1) as in x_train, received (3, 4, 1)"
    )


def test_a_file_that_is_not_an_npz_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    assert error_line(lambda: DATASETS["npz"](path=str(path))) == (
        f"path: expected an .npz file, received {path}: no such file"
    )
    path.write_bytes(b"not a zip")
    assert "File is not a zip file" in error_line(lambda: DATASETS["npz"](path=str(path)))
    np.save(tmp_path / "one.npy", X)
    assert "not a zip" in error_line(lambda: DATASETS["npz"](path=str(tmp_path / "one.npy")))
    assert "directory" in error_line(lambda: DATASETS["npz"](path=str(tmp_path)))
    file = saved_with_bytes(tmp_path, "x_train", b"not an array at all")
    assert "magic string" in error_line(lambda: DATASETS["npz"](path=file))


def test_a_mistake_names_the_key_of_the_config(tmp_path: Path) -> None:
    spec = {"name": "npz", "path": str(tmp_path / "no.npz")}
    assert error_line(lambda: build(DATASETS, spec, "data")).startswith(
        "data.path: expected an .npz"
    )
