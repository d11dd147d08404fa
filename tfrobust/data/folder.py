"""Images in one folder for each class, which are read during training.

Only the names of the files are held in memory.
"""

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
from tfrobust.errors import (
    UserError,
    choose,
    nearest_path,
    path_text,
    require,
    require_at_least,
)
from tfrobust.io import in_home

ENDINGS = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Folders, beside hidden ones, that operating systems and archivers put among the classes.
NO_CLASSES = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")


@dataclass(frozen=True)
class ImageFolder(Dataset):
    """The images in path/train and path/test (or path/val); see `open_folder`."""

    path: Path
    test_examples: int | None
    resize: str

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def load(self, split: str) -> Split:
        """Return a split whose images are read when they are used.

        The index is the position of a file in the sorted list of all files. "train" is empty if
        there are only test images.
        """
        folders = split_folders(self.path)
        classes, _ = images_of(folders.get(split, folders["test"]))
        files: list[bytes] = []
        labels: list[int] = []
        for label, names in enumerate(classes.values()):
            files += map(os.fsencode, names)
            labels += [label] * len(names)
        images: Any = Files(np.array(files), self.image_shape, self.resize)
        examples = Split(images, np.array(labels, np.int32), np.arange(len(files)))
        if split not in folders:
            return examples.first(0)
        return examples if split == "train" else drawn(examples, self.test_examples)


def drawn(split: Split, count: int | None) -> Split:
    """Return `count` random examples of a split, always the same ones, or all if it has fewer.

    None stands for all. Their order is random too: a split that is stored class by class would
    begin with images of one class, and these are what an attack with a limit takes.
    """
    order = np.random.default_rng(0).permutation(len(split))
    return split.take(order[:count])


def split_folders(path: Path) -> dict[str, Path]:
    """Return the existing folders of "train" and "test"; the latter is test/ or else val/."""
    folders = {"train": path / "train", "test": path / "test"}
    if not folders["test"].is_dir():
        folders["test"] = path / "val"
    return {split: folder for split, folder in folders.items() if folder.is_dir()}


def images_of(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """List the images of a folder that holds one folder for each class. Links are followed.

    Returns:
        The image files of each class, and the other files and folders at both levels. All are in
        the order of their names.
    """
    classes, left_out = {}, []
    for entry in _entries(folder):
        if not os.path.isdir(entry) or entry.name.startswith(".") or entry.name in NO_CLASSES:
            left_out.append(entry.path)
            continue
        files = _entries(entry.path)
        classes[entry.name] = [file.path for file in files if _is_image(file)]
        left_out += [file.path for file in files if not _is_image(file)]
    return classes, left_out


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, in the order of their names."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_image(file: os.DirEntry[str]) -> bool:
    if file.name.startswith(".") or not file.name.lower().endswith(ENDINGS):
        return False
    return not os.path.isdir(file)  # file.is_dir() raises for a link to itself


@functools.cache
def _warn(line: str) -> None:
    """Log a warning once, although a search opens its data for every trial."""
    logging.warning("%s", line)


def _warn_of(root: Path, what: str, paths: Sequence[str]) -> None:
    """Warn how many paths there are, if any, with one of them as an example."""
    if paths:
        example = printable(os.path.relpath(paths[0], root))
        _warn(f"{printable(str(root))}: {what}: {len(paths)}, such as {example}")


def open_folder(
    path: str, image_size: int = 224, test_examples: int | None = None, resize: str = "fit"
) -> ImageFolder:
    """Open a folder of images. The folders are listed, but no image is read.

    The images are JPEG, PNG, BMP, GIF (the first picture), TIFF or WebP. They are rotated by their
    EXIF data. Transparency is dropped and the colours are kept. All else, such as hidden files and
    folders within a class, is left out, and a warning tells how much that is. The test images are
    in a random order that is always the same.

    Args:
        path: The folder that holds train/CLASS/IMAGE and test/CLASS/IMAGE (or val/), as ImageNet is
            commonly stored. To evaluate a network, test/ (or val/) is enough.
        image_size: The side of the square that is cut out of the centre, in pixels.
        test_examples: The number of test images to attack, the first in their random order, which
            are then held in memory; None for all.
        resize: The length of the shorter side before the cut. "fit" is image_size, so that an image
            of this size stays as it is. "imagenet" is 256/224 times image_size, as networks for
            ImageNet are commonly evaluated.

    Raises:
        UserError: The folders do not exist, differ in their classes, or are empty. A class may
            lack images in test, but not in train.
    """
    path = path_text("path", path)
    root = in_home(path)
    require_at_least(1, image_size=image_size)
    if test_examples is not None:
        require_at_least(1, test_examples=test_examples)
    choose("resize", resize, RESIZES)
    folders = split_folders(root)
    if "test" not in folders:
        expected = "a folder with train/CLASS and test/CLASS (or val/CLASS), or with test alone"
        missing = "no test or val" if "train" in folders else "no train, test or val"
        if not root.is_dir():
            missing = f"no such folder{nearest_path(root)}"
        raise UserError(f"path: expected {expected}, received {printable(path)}: {missing}")
    classes, left_out = {}, []
    for split, folder in folders.items():
        classes[split], others = images_of(folder)
        left_out += others
    _check_classes(classes, folders)
    if folders["test"].name == "test" and (root / "val").is_dir():
        left_out.append(str(root / "val"))
    _warn_of(root, "files and folders left out, not images of a class", left_out)
    names = tuple(printable(name) for name in classes["test"])
    return ImageFolder((image_size, image_size, 3), names, root, test_examples, resize)


def _check_classes(classes: dict[str, dict[str, list[str]]], folders: dict[str, Path]) -> None:
    """Raise a UserError unless the splits have images and the same classes, two or more.

    `classes` are the image files of each class of each split, and `folders` the splits' folders.
    """
    for split, folder in folders.items():
        files = classes[split]
        expected = f"at least 2 classes in {printable(str(folder))}"
        require(len(files) >= 2, "path", expected, len(files))
        empty = [str(folder / name) for name in files if not files[name]]
        if empty and (split == "train" or len(empty) == len(files)):
            raise UserError(f"path: expected images in {printable(empty[0])}, received none")
        _warn_of(folder.parent, "classes without a test image", empty)
    shared = set.intersection(*(set(files) for files in classes.values()))
    alone = [
        f"{folders[split].name}/{printable(name)}"
        for split, files in classes.items()
        for name in files
        if name not in shared
    ]
    expected = f"the same classes in train and {folders['test'].name} (empty where it has no image)"
    require(not alone, "path", expected, ", ".join(alone))
