"""A user's arrays in an .npz file, and every mistake in them."""

from __future__ import annotations

import io
import mmap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.test_data import MISTAKES, X, Y, fails
from tfrobust.data import DATASETS, Extra, Split, batches
from tfrobust.registry import build


def saved(path: Path, **changes: Any) -> str:
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2], **changes}
    np.savez(path / "data.npz", **{k: v for k, v in arrays.items() if v is not None})
    return str(path / "data.npz")


def test_npz(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 4 * 9).reshape(4, 3, 3)
    path = saved(tmp_path, x_train=x, y_test=np.array([[6], [0]], np.uint8))
    data = DATASETS["npz"](path=path)
    assert (data.image_shape, data.num_classes) == ((3, 3, 1), 7)
    assert data.class_names == ("0", "1", "2", "3", "4", "5", "6")
    train, test = (data.load(split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images[..., 0], x.astype(np.float32))
    assert test.labels.tolist() == [6, 0]
    assert test.images.dtype == np.uint8


def test_npz_of_one_class_has_two(tmp_path: Path) -> None:
    path = saved(tmp_path, y_train=0 * Y, y_test=0 * Y[:2])
    assert DATASETS["npz"](path=path).num_classes == 2


def test_npz_constructor_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = saved(tmp_path), []
    load = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(
        np.lib.npyio.NpzFile, "__getitem__", lambda self, key: read.append(key) or load(self, key)
    )
    DATASETS["npz"](path=path)
    assert read == ["y_train", "y_test"]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistaken_npz(tmp_path: Path, mistake: str, split: str) -> None:
    x, y, blamed, message = MISTAKES[mistake]
    path = saved(tmp_path, **{f"x_{split}": x, f"y_{split}": y})
    values_of_images = mistake in ("NaN", "0 to 255", "below 0", "0 and 1")

    def call() -> None:
        data = DATASETS["npz"](path=path)
        assert values_of_images  # the others are found before any image is read
        data.load(split)

    line = fails(call)
    assert line.startswith(f"path: {blamed}_{split} of {path}: expected ")
    assert message in line


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_npz_without_an_array(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path, **{key: None}, extra=X)
    line = fails(lambda: DATASETS["npz"](path=path))
    assert line.startswith(f"path: expected {key} in {path}, received extra, ")


def test_an_npz_to_evaluate_on(tmp_path: Path) -> None:
    """Test arrays alone suffice, also with more classes than they show."""
    path = saved(tmp_path, x_train=None, y_train=None, y_test=np.array([3, 0]))
    data = DATASETS["npz"](path=path, num_classes=7)
    assert data.num_classes == 7
    train, test = (data.load(split) for split in ("train", "test"))
    assert (len(train), test.labels.tolist()) == (0, [3, 0])
    line = fails(lambda: DATASETS["npz"](path=path, num_classes=3))
    assert line.startswith("num_classes: expected from 4, the greatest label plus one")


def is_mapped(array: Any) -> bool:
    """Return whether the values of an array are in a file."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", "CF")
def test_generated_images(tmp_path: Path, save: Any, order: str) -> None:
    """Published files of `image` and `label` are uncompressed and are not read into memory."""
    x = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    y = np.arange(50) % 10
    save(tmp_path / "1m.npz", image=np.asarray(x, order=order), label=y)
    data = DATASETS["npz"](path=str(tmp_path / "1m.npz"))
    assert (data.image_shape, data.num_classes) == ((4, 4, 3), 10)
    train = data.load("train")
    assert is_mapped(train.images) == (save is np.savez)
    np.testing.assert_array_equal(train.images, x)
    line = fails(lambda: data.load("test"))
    assert line.startswith("path: expected x_test and y_test to evaluate on in")
    split = Split.of(x[:10] // 2, y[:10])
    stream = batches(split, 10, training=True, extra=Extra(train, share=0.7), steps_per_epoch=7)
    for batch in stream.take(7).as_numpy_iterator():
        assert (batch["index"] >= 10).sum() == 7
        for image, label, index in zip(*map(batch.get, ("image", "label", "index")), strict=True):
            expected = x[index - 10] if index >= 10 else x[index] // 2
            np.testing.assert_array_equal(image, expected.astype(np.float32) / np.float32(255))
            assert label == index % 10


def test_training_arrays_alone(tmp_path: Path) -> None:
    """Extra data need no test arrays, but a pair must be complete."""
    data = DATASETS["npz"](path=saved(tmp_path, x_test=None, y_test=None))
    np.testing.assert_array_equal(data.load("train").images, X)
    path = saved(tmp_path, **dict.fromkeys(("x_train", "y_train", "x_test", "y_test")), image=X)
    assert fails(lambda: DATASETS["npz"](path=path)).startswith("path: expected label in")


def test_npz_whose_array_has_another_length_than_its_header(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, X)
    path = saved(tmp_path, x_train=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", buffer.getvalue()[:-8])
    line = fails(lambda: DATASETS["npz"](path=path).load("train"))
    assert line.startswith(f"path: x_train of {path}: expected a readable array, received ")


def test_npz_of_channels_first(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 5), np.uint8)
    path = saved(tmp_path, x_train=x, x_test=x[:2])
    data = DATASETS["npz"](path=path, layout="channels_first")
    assert data.image_shape == (6, 5, 3)
    np.testing.assert_array_equal(data.load("test").images, x[:2].transpose(0, 2, 3, 1))
    data = DATASETS["npz"](path=path, layout="channels_last")
    assert data.image_shape == data.load("train").images.shape[1:] == (3, 6, 5)


def test_npz_of_two_image_shapes(tmp_path: Path) -> None:
    path = saved(tmp_path, x_test=np.zeros((2, 3, 4, 1), np.uint8))
    assert fails(lambda: DATASETS["npz"](path=path)) == (
        f"path: x_test of {path}: expected images of (3, 3, 1) as in x_train, received (3, 4, 1)"
    )


def test_npz_that_is_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    assert fails(lambda: DATASETS["npz"](path=str(path))) == (
        f"path: expected an .npz file, received {path}: no such file"
    )
    path.write_bytes(b"not a zip")
    assert "File is not a zip file" in fails(lambda: DATASETS["npz"](path=str(path)))
    np.save(tmp_path / "one.npy", X)
    assert "not a zip" in fails(lambda: DATASETS["npz"](path=str(tmp_path / "one.npy")))
    assert "directory" in fails(lambda: DATASETS["npz"](path=str(tmp_path)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", b"not an array at all")
    assert "magic string" in fails(lambda: DATASETS["npz"](path=str(path)))


def test_npz_cut_short_inside_an_array(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, Y)
    path = saved(tmp_path, y_train=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y_train.npy", buffer.getvalue()[:-8])
    line = fails(lambda: DATASETS["npz"](path=path))
    assert line.startswith(f"path: y_train of {path}: expected a readable array, received ")


def test_an_npz_mistake_names_the_key_of_the_config(tmp_path: Path) -> None:
    spec = {"name": "npz", "path": str(tmp_path / "no.npz")}
    assert fails(lambda: build(DATASETS, spec, "data")).startswith("data.path: expected an .npz")
