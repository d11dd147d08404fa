"""Folders of images: which files are read, in which order, and how mistakes are reported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from pipelines.network import check_fit
from pipelines.runner import run
from tests.errors import error_line
from tests.unit.test_data import assert_batches_equal_those_of_arrays
from tfrobust.data import Extra, Split, batches, open_folder, readable
from tfrobust.errors import UserError

SHADES = {"a": 40, "b": 200}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of twelve training and six test images of one shade, in several sizes."""
    rng, tmp_path = np.random.default_rng(0), tmp_path / "images"
    for split, count in (("train", 6), ("val", 3)):
        for name, shade in SHADES.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(9, 30, 2)
                image = np.full((height, width, 3), shade + number, np.uint8)
                ending = ("png", "JPEG")[number % 2]
                file = tmp_path / split / name / f"{number}.{ending}"
                imsave(file, image, format=ending.lower())
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_folder_has_its_images_labels_and_classes_in_order(folder: Path) -> None:
    source = open_folder(str(folder), image_size=8)
    assert source.image_shape == (8, 8, 3) and source.class_names == ("a", "b")
    train, test = source.load("train"), source.load("test")
    assert (len(train), len(test)) == (12, 6)
    expected = np.repeat([SHADES["a"], SHADES["b"]], 6) + np.tile(np.arange(6), 2)
    images = train.as_float()
    assert images.shape == (12, 8, 8, 3)
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)) * 255, expected, atol=2)
    np.testing.assert_array_equal(train.labels, np.repeat([0, 1], 6))
    few = train.take([7, 2])
    np.testing.assert_array_equal(few.as_float(), images[[7, 2]])
    np.testing.assert_array_equal(few.index, [7, 2])


def test_batches_of_files_equal_those_of_arrays(folder: Path) -> None:
    assert_batches_equal_those_of_arrays(open_folder(str(folder), image_size=8).load("train"))


def test_test_examples_takes_the_first_test_images(folder: Path) -> None:
    source = open_folder(str(folder), image_size=8, test_examples=4)
    test = source.load("test")
    of_all = open_folder(str(folder), image_size=8).load("test")
    np.testing.assert_array_equal(test.index, of_all.index[:4])


def test_test_images_of_all_classes_come_first(folder: Path) -> None:
    """An attack with a limit takes the first ones. Their order is always the same."""
    source = open_folder(str(folder), image_size=8)
    test = source.load("test")
    assert sorted(test.index) == list(range(6)) and set(test.labels[:3]) == {0, 1}
    shades = np.array([SHADES["a"], SHADES["b"]])[test.labels] + test.index % 3
    np.testing.assert_allclose(test.as_float().mean(axis=(1, 2, 3)) * 255, shades, atol=2)
    np.testing.assert_array_equal(source.load("test").index, test.index)


def test_broken_image_is_named_wherever_it_is_read(folder: Path, tmp_path: Path) -> None:
    """The image is decoded by itself, in a batch, in an evaluation or in training."""
    options = [
        f"data={{name: folder, path: {folder}, image_size: 16, batch_size: 4}}",
        "model={name: small_cnn, filters: [2], kernel: 3, units: 4}",
        "train={epochs: 1, schedule: {name: constant}}", "attacks=fgsm",
    ]  # fmt: skip

    def damage(file: Path) -> str:
        """Cut a file short and return the pattern of its error line."""
        file.write_bytes(file.read_bytes()[:40])
        return f"^{file}: expected an image that can be read, received a broken one \\(.*\\)$"

    message = damage(folder / "val" / "a" / "2.png")
    test = open_folder(str(folder), image_size=8).load("test")
    with pytest.raises(UserError, match=message):
        test.as_float()
    with pytest.raises(UserError, match=message), readable():
        list(batches(test, 4))
    with pytest.raises(UserError, match=message):
        run("digits_adv", options, tmp_path / "runs", None, smoke=False)
    message = damage(folder / "train" / "b" / "1.JPEG")
    with pytest.raises(UserError, match=message):
        run("digits_adv", [*options, "seed=1"], tmp_path / "runs", None, smoke=False)


def test_table_of_iaat_has_a_row_for_each_file(folder: Path, tmp_path: Path) -> None:
    """Four of the twelve files are held out for validation."""
    options = [
        f"data={{name: folder, path: {folder}, image_size: 16, batch_size: 4, validation: 4}}",
        "model={name: small_cnn, filters: [2], units: 4}",
        "train={epochs: 2, epsilon_ramp_epochs: 0, schedule: {name: constant}}",
        "method.warmup_epochs=1",
    ]
    run_folder = run("digits_iaat", options, tmp_path / "runs", ["train"], smoke=False)
    with np.load(run_folder / "extremes.npz") as table:
        assert table["values"].shape == (8,) and set(table["index"]) < set(range(12))
        assert (table["values"] > 0).any()


def remove(folder: Path, pattern: str) -> None:
    """Remove the files and folders that a pattern matches."""
    for path in list(folder.glob(pattern)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "val").rename(f / "tset"), "received .*: no test or val"),
        (lambda f: f.rename(f.parent / "moved"), "received .*: no such folder"),
        (lambda f: remove(f, "*"), "received .*: no train, test or val"),
        (
            lambda f: (f / "val" / "b").rename(f / "val" / "c"),
            "the same classes in train and val .empty .*, received 'train/b, val/c'",
        ),
        (lambda f: remove(f, "train/a/*"), "images in .*train/a, received none"),
        (lambda f: remove(f, "val/a"), "at least 2 classes in .*val, received 1"),
        (lambda f: remove(f, "val/*/*"), "images in .*val/a, received none"),
    ],
)
def test_mistakes_are_one_line(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=f"path: expected .*{message}"):
        open_folder(str(folder))


def test_network_of_another_size_is_answered_with_the_size_to_set(folder: Path) -> None:
    source = open_folder(str(folder))
    line = error_line(lambda: check_fit("model.path", source, (32, 32, 3), 2))
    assert line.endswith("received ((32, 32, 3), 2); set data.image_size to 32")
    line = error_line(lambda: check_fit("model.path", source, (224, 224, 1), 2))
    assert line.endswith("network = keras.Model(x, network(x[..., :1]))")


def test_files_and_arrays_may_be_each_others_extra_images(folder: Path) -> None:
    files = open_folder(str(folder), image_size=8).load("train")
    arrays = Split.of(np.full((9, 8, 8, 3), 7, np.uint8), np.ones(9, int))
    for split, extra in ((files, arrays), (arrays, files)):
        images = np.concatenate([split.as_float(), extra.as_float()])
        batch = next(iter(batches(split, 4, training=True, extra=Extra(extra))))
        np.testing.assert_array_equal(batch["image"], images[batch["index"]])


def test_folder_may_have_only_a_test_split(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    source = open_folder(str(folder), image_size=8)
    assert (len(source.load("train")), len(source.load("test"))) == (0, 6)
    assert source.load("train").images.shape == (0, 8, 8, 3)


def test_class_without_test_images_keeps_its_number(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remove(folder, "val/a/*")
    source = open_folder(str(folder), image_size=8)
    assert source.class_names == ("a", "b")
    np.testing.assert_array_equal(source.load("test").labels, [1, 1, 1])
    assert f"{folder}: classes without a test image: 1, such as val/a" in caplog.messages


def test_files_that_are_left_out_are_counted_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line counts them, however often the folder is opened."""
    image = (folder / "train" / "a" / "0.png").read_bytes()
    (folder / "train" / "a" / "notes.txt").unlink()
    open_folder(str(folder), image_size=8)
    assert caplog.messages == []
    for name in ("train/.git", "train/__MACOSX", "val/.ipynb_checkpoints", "val/@eaDir"):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(image)
    (folder / "train" / "b" / "deeper").mkdir()
    for name in ("train/loose.png", "train/b/deeper/0.png", "val/a/Thumbs.db", "val/b/._0.png"):
        (folder / name).write_bytes(image)
    for _ in range(2):
        source = open_folder(str(folder), image_size=8)
    assert source.class_names == ("a", "b")
    assert (len(source.load("train")), len(source.load("test"))) == (12, 6)
    line = f"{folder}: files and folders left out, not images of a class: 8, such as train/.git"
    assert caplog.messages == [line]
    shutil.copytree(folder / "train", folder / "test")
    open_folder(str(folder), image_size=8)
    assert "class: 9, " in caplog.messages[-1]  # 4 of train, 4 of its copy test, and val


def test_folder_names_may_have_any_encoding(folder: Path) -> None:
    """Latin-1 and control characters are shown as escapes, other scripts unchanged."""
    names = {b"a": b"caf\xe9\n", b"b": "猫 $1 <b>".encode()}
    for split in (b"train", b"val"):
        for before, after in names.items():
            parent = os.path.join(os.fsencode(folder), split)
            os.rename(os.path.join(parent, before), os.path.join(parent, after))
    source = open_folder(str(folder), image_size=8)
    assert source.class_names == ("caf\\xe9\\n", "猫 $1 <b>")
    first = source.load("test").take(np.flatnonzero(source.load("test").index == 0))
    np.testing.assert_allclose(first.as_float() * 255, SHADES["a"], atol=2)
    test = os.path.join(os.fsencode(folder), b"val", b"caf\xe9\n", b"2.png")
    Path(os.fsdecode(test)).write_bytes(b"")
    with pytest.raises(UserError, match=r"val/caf\\xe9\\n/2.png: expected an image") as caught:
        source.load("test").as_float()
    assert str(caught.value).isprintable()


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    (linked / "val" / "a").mkdir(parents=True)
    (linked / "train").symlink_to(folder / "train")
    (linked / "val" / "b").symlink_to(folder / "val" / "b")
    (linked / "val" / "a" / "0.png").symlink_to(folder / "val" / "a" / "0.png")
    (linked / "val" / "a" / "1.png").symlink_to(tmp_path / "nowhere")
    source = open_folder(str(linked), image_size=8)
    assert len(source.load("train")) == 12
    test = source.load("test")
    np.testing.assert_array_equal(test.labels[np.argsort(test.index)], [0, 0, 1, 1, 1])
    assert test.take(np.flatnonzero(np.isin(test.index, [0, 2]))).as_float().shape == (2, 8, 8, 3)
    (linked / "val" / "loop").symlink_to("loop")  # a link to itself is neither folder nor image
    (linked / "val" / "a" / "2.png").symlink_to("2.png")
    assert len(open_folder(str(linked), image_size=8).load("test")) == 6
    with pytest.raises(UserError, match=f"^{linked}/val/a/1.png: .*no file, or a link to none"):
        test.as_float()


def test_unknown_rule_of_resizing_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="resize: expected one of fit, imagenet, .*'imagnet'"):
        open_folder(str(folder), resize="imagnet")
