"""A folder of images, one folder a class, read while training: nothing but the names is held."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tfrobust.data.files import RESIZES, Files, printable
from tfrobust.data.split import Dataset, Split
from tfrobust.errors import UserError, choose, require

ENDINGS = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Made by systems and archivers beside the folders of classes, as are all that are hidden.
NO_CLASSES = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")


@dataclass(frozen=True)
class Folder(Dataset):
    """Images below path/train and path/test (or path/val); see `open_folder`."""

    path: Path
    test_examples: int | None
    resize: str

    def load(self, split: str) -> Split:
        """A split whose images are read when they are used, empty for training where there are
        test images alone; the index is the place of a file in the sorted list of all."""
        places = split_folders(self.path)
        classes = images_of(places.get(split, places["test"]))[0].values()
        files = [os.fsencode(file) for files in classes for file in files]
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(f) for f in classes])
        images: Any = Files(np.array(files), self.image_shape, self.resize)
        whole = Split(images, labels, np.arange(len(files)))
        if split not in places:
            return whole.first(0)
        return whole if split == "train" else drawn(whole, self.test_examples)


def drawn(split: Split, count: int | None) -> Split:
    """So many of the examples, the same ones every time; None is all."""
    order = np.random.default_rng(0).permutation(len(split))
    return split.take(np.sort(order[:count]))


def split_folders(path: Path) -> dict[str, Path]:
    """The folders of "train" and "test", those that are there; val/ is "test" where no test/ is."""
    places = {"train": path / "train", "test": path / "test"}
    if not places["test"].is_dir():
        places["test"] = path / "val"
    return {split: place for split, place in places.items() if place.is_dir()}


def images_of(place: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The image files of each class folder in `place`, both in the order of their names; and all
    else that lies there and in the class folders. Links are followed."""
    classes, left_out = {}, []
    for entry in _entries(place):
        if not os.path.isdir(entry) or entry.name.startswith(".") or entry.name in NO_CLASSES:
            left_out.append(entry.path)
            continue
        files = _entries(entry.path)
        classes[entry.name] = [file.path for file in files if _is_image(file)]
        left_out += [file.path for file in files if not _is_image(file)]
    return classes, left_out


def _entries(place: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(place) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_image(file: os.DirEntry[str]) -> bool:
    # Not file.is_dir(), which raises for a link that leads to itself.
    named = file.name.lower().endswith(ENDINGS) and not file.name.startswith(".")
    return named and not os.path.isdir(file)


@functools.cache
def _warn(line: str) -> None:
    """Log a line once: a search opens its data for every trial."""
    logging.warning("%s", line)


def _count(root: Path, what: str, paths: Sequence[str]) -> None:
    """Warn of how many there are, if any, with an example."""
    if paths:
        example = printable(os.path.relpath(paths[0], root))
        _warn(f"{printable(str(root))}: {what}: {len(paths)}, such as {example}")


def open_folder(
    path: str, image_size: int = 224, test_examples: int | None = None, resize: str = "fit"
) -> Folder:
    """Looks at the folders, at no image.

    path: holds train/CLASS/IMAGE and test/CLASS/IMAGE (or val/), as ImageNet is commonly kept; to
    evaluate a network test/ (or val/) is enough. JPEG, PNG, BMP, GIF (its first picture), TIFF or
    WebP, turned as their EXIF data ask; of transparency only the colours count. All else, such as
    hidden files and folders within a class, is left out, and a warning says how many.
    image_size: of the square that is cut out of the middle. resize: before that the shorter side
    is made as long, so that an image of this size stays as it is ("fit"), or 256/224 as long, as
    networks for ImageNet are commonly evaluated ("imagenet").
    test_examples: attack so many of the test images, at random, which are then held in memory; None
    is all. Raises UserError for folders that are not there, differ in their classes, or are empty;
    a class may lack images in test alone.
    """
    root = Path(path).expanduser()
    require(image_size >= 1, "image_size", "int >= 1", image_size)
    count = test_examples
    require(count is None or count >= 1, "test_examples", "int >= 1", count)
    choose("resize", resize, RESIZES)
    places = split_folders(root)
    if "test" not in places:
        expected = "a folder with train/CLASS and test/CLASS (or val/CLASS), or with test alone"
        missing = "no test or val" if "train" in places else "no train, test or val"
        raise UserError(f"path: expected {expected}, received {printable(path)}: {missing}")
    classes, left_out = {}, []
    for split, place in places.items():
        classes[split], others = images_of(place)
        left_out += others
    _check_classes(classes, places)
    if places["test"].name == "test" and (root / "val").is_dir():
        left_out.append(str(root / "val"))
    _count(root, "left out as no images of a class, files and folders", left_out)
    names = tuple(printable(name) for name in classes["test"])
    return Folder((image_size, image_size, 3), names, root, count, resize)


def _check_classes(classes: dict[str, dict[str, list[str]]], places: dict[str, Path]) -> None:
    """Raises UserError unless the splits have the same classes, two or more, and images.

    classes: of each split, of each class the image files.
    """
    for split, place in places.items():
        names = classes[split]
        expected = f"at least 2 classes in {printable(str(place))}"
        require(len(names) >= 2, "path", expected, len(names))
        empty = [str(place / name) for name, files in names.items() if not files]
        missed = empty if split == "train" or len(empty) == len(names) else []
        require(not missed, "path", f"images in {printable(''.join(missed[:1]))}", "none")
        _count(place.parent, "classes without a test image", empty)
    of_splits = [set(names) for names in classes.values()]
    apart = ", ".join(printable(name) for name in sorted(of_splits[0] ^ of_splits[-1]))
    require(not apart, "path", f"the same classes in train and {places['test'].name}", apart)
