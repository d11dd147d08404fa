"""A folder of images: which are read, in which order, and how its mistakes are reported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from pipelines.runner import run
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
                place = tmp_path / split / name / f"{number}.{ending}"
                imsave(place, image, format=ending.lower())
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_images_are_read_when_they_are_used(folder: Path) -> None:
    source = open_folder(str(folder), image_size=8)
    assert source.image_shape == (8, 8, 3) and source.class_names == ("a", "b")
    train, test = source.load("train"), source.load("test")
    assert (len(train), len(test)) == (12, 6)
    expected = np.repeat([SHADES["a"], SHADES["b"]], 6) + np.tile(np.arange(6), 2)
    images = train.as_float()
    assert images.shape == (12, 8, 8, 3)
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)) * 255, expected, atol=2)  # of JPEG
    np.testing.assert_array_equal(train.labels, np.repeat([0, 1], 6))
    few = train.take([7, 2])
    np.testing.assert_array_equal(few.as_float(), images[[7, 2]])
    np.testing.assert_array_equal(few.index, [7, 2])


def test_batches_are_those_of_the_arrays(folder: Path) -> None:
    """Batches have the order, augmentation and index of arrays. A resumed stream is their tail."""
    train = open_folder(str(folder), image_size=8).load("train")
    held = type(train)(np.asarray(train.images), train.labels, train.index)
    options = {"seed": 1, "training": True, "augment": "crop_flip"}
    streams = [batches(s, 4, **options).take(7).as_numpy_iterator() for s in (train, held)]
    for lazy, kept in zip(*streams, strict=True):
        for key in kept:
            np.testing.assert_array_equal(lazy[key], kept[key])
    tail = next(batches(train, 4, first_step=6, **options).as_numpy_iterator())
    np.testing.assert_array_equal(tail["image"], lazy["image"])


def test_only_some_of_the_test_images(folder: Path) -> None:
    source = open_folder(str(folder), image_size=8, test_examples=4)
    test = source.load("test")
    assert len(test) == 4 and len(set(test.index)) == 4
    np.testing.assert_array_equal(source.load("test").index, test.index)


def test_a_broken_image_is_named(folder: Path, tmp_path: Path) -> None:
    """A broken image is named when decoded, in a batch, in training and in evaluation."""
    options = [
        f"data={{name: folder, path: {folder}, image_size: 16, batch_size: 4}}",
        "model={name: small_cnn, filters: [2], kernel: 3, units: 4}",
        "train={epochs: 1, schedule: {name: constant}}", "attacks=fgsm",
    ]  # fmt: skip

    def broken(file: Path) -> str:
        file.write_bytes(file.read_bytes()[:40])
        return f"^{file}: expected an image that can be read, received a broken one \\(.*\\)$"

    named = broken(folder / "val" / "a" / "2.png")
    test = open_folder(str(folder), image_size=8).load("test")
    with pytest.raises(UserError, match=named):
        test.as_float()
    with pytest.raises(UserError, match=named), readable():
        list(batches(test, 4))
    with pytest.raises(UserError, match=named):
        run("digits_adv", options, tmp_path / "runs", None, smoke=False)
    named = broken(folder / "train" / "b" / "1.JPEG")
    with pytest.raises(UserError, match=named):
        run("digits_adv", [*options, "seed=1"], tmp_path / "runs", None, smoke=False)


def test_iaat_on_a_folder(folder: Path, tmp_path: Path) -> None:
    """The table has a row for each file."""
    out = run(
        "digits_iaat",
        [
            f"data={{name: folder, path: {folder}, image_size: 16, batch_size: 4, validation: 4}}",
            "model={name: small_cnn, filters: [2], units: 4}",
            "train.epochs=2", "train.epsilon_ramp_epochs=0", "method.warmup_epochs=1",
            "train.schedule={name: constant}",
        ],
        tmp_path / "runs",
        ["train"],
        smoke=False,
    )  # fmt: skip
    with np.load(out / "extremes.npz") as table:
        assert table["values"].shape == (8,) and set(table["index"]) < set(range(12))
        assert (table["values"] > 0).any()


def emptied(folder: Path) -> None:
    for file in (folder / "train" / "a").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "val").rename(f / "tset"), "received .*: no test or val"),
        (lambda f: f.rename(f.parent / "moved"), "received .*: no such folder"),
        (
            lambda f: [shutil.rmtree(path) for path in f.iterdir()],
            "received .*: no train, test or val",
        ),
        (
            lambda f: (f / "val" / "b").rename(f / "val" / "c"),
            "the same classes in train and val, received 'train/b, val/c'",
        ),
        (emptied, "images in .*train/a, received none"),
        (lambda f: shutil.rmtree(f / "val" / "a"), "at least 2 classes in .*val, received 1"),
        (
            lambda f: [file.unlink() for file in f.glob("val/*/*")],
            "images in .*val/a, received none",
        ),
    ],
)
def test_mistakes_are_one_line(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=f"path: expected .*{message}"):
        open_folder(str(folder))


def test_images_in_files_beside_extra_arrays(folder: Path) -> None:
    """Images in files take extra arrays, and arrays take extra images in files."""
    files = open_folder(str(folder), image_size=8).load("train")
    arrays = Split.of(np.full((9, 8, 8, 3), 7, np.uint8), np.ones(9, int))
    for main, others in ((files, arrays), (arrays, files)):
        batch = next(iter(batches(main, 4, training=True, extra=Extra(others))))
        for image, index in zip(batch["image"], batch["index"].numpy(), strict=True):
            split, at = (main, index) if index < len(main) else (others, index - len(main))
            np.testing.assert_array_equal(image, split.take([at]).as_float()[0])


def test_a_test_split_is_enough_to_evaluate(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    source = open_folder(str(folder), image_size=8)
    assert (len(source.load("train")), len(source.load("test"))) == (0, 6)
    assert source.load("train").images.shape == (0, 8, 8, 3)


def test_a_class_without_test_images_keeps_its_number(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in (folder / "val" / "a").iterdir():
        file.unlink()
    source = open_folder(str(folder), image_size=8)
    assert source.class_names == ("a", "b")
    np.testing.assert_array_equal(source.load("test").labels, [1, 1, 1])
    assert f"{folder}: classes without a test image: 1, such as val/a" in caplog.messages


def test_what_is_left_out_is_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files that are left out are reported once, however often the folder is opened."""
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
    assert "class: 9, " in caplog.messages[-1]  # 4 and 4 of the copy, and val


def test_names_in_any_encoding(folder: Path) -> None:
    """Latin-1 and control characters are shown as escapes, other scripts unchanged."""
    names = {b"a": b"caf\xe9\n", b"b": "猫 $1 <b>".encode()}
    for split in (b"train", b"val"):
        for before, after in names.items():
            place = os.path.join(os.fsencode(folder), split)
            os.rename(os.path.join(place, before), os.path.join(place, after))
    source = open_folder(str(folder), image_size=8)
    assert source.class_names == ("caf\\xe9\\n", "猫 $1 <b>")
    np.testing.assert_allclose(source.load("test").as_float()[0] * 255, SHADES["a"], atol=2)
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
    np.testing.assert_array_equal(test.labels, [0, 0, 1, 1, 1])
    assert test.take([0, 2]).as_float().shape == (2, 8, 8, 3)
    (linked / "val" / "loop").symlink_to("loop")  # to itself, as no folder and no image
    (linked / "val" / "a" / "2.png").symlink_to("2.png")
    assert len(open_folder(str(linked), image_size=8).load("test")) == 6
    with pytest.raises(UserError, match=f"^{linked}/val/a/1.png: .*no file, or a link to none"):
        test.as_float()


def test_a_rule_of_resizing_that_is_none(folder: Path) -> None:
    with pytest.raises(UserError, match="resize: expected one of fit, imagenet, .*'imagnet'"):
        open_folder(str(folder), resize="imagnet")
