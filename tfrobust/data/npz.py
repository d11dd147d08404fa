"""A user's own data in one .npz file."""

import os
import zipfile
from dataclasses import dataclass
from typing import IO

import numpy as np

from tfrobust.data.split import Dataset, Split, numbered
from tfrobust.errors import UserError, require
from tfrobust.gate import MOST_CLASSES, check_image_form, check_label_form, check_labels
from tfrobust.io import UNREADABLE

KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Npz(Dataset):
    """The arrays x_train, y_train, x_test and y_test of a file; see `open_npz`."""

    path: str
    trains: bool = True
    layout: str | None = None

    def load(self, split: str) -> Split:
        """Return a split. "train" is empty if the file has only test arrays.

        Raises UserError for NaN and for float images outside [0, 1].
        """
        stored = split if self.trains else "test"
        x, y = (_read(self.path, f"{kind}_{stored}") for kind in "xy")
        examples = Split.of(x, y, _names(self.path, stored), self.layout)
        return examples if stored == split else examples.first(0)


def open_npz(path: str, num_classes: int | None = None, layout: str | None = None) -> Npz:
    """Open arrays in an .npz file. Headers and labels are checked, no image is read.

    x_train and x_test are [N, H, W, C] or [N, H, W], uint8 or float in [0, 1]; y_train and y_test
    are class numbers from 0, [N] or [N, 1]. To evaluate a network, x_test and y_test are enough.

    Args:
        path: The file.
        num_classes: Number of classes. None for the greatest label plus one, at least two.
        layout: "channels_first" for images [N, C, H, W], which are transposed; "channels_last" for
            images that only look so. None raises an error for images that look channels first.

    Raises:
        UserError: The file is missing or unreadable, an array is missing, holds pickled objects or
            has a wrong shape or dtype, or a label is negative or beyond num_classes.
    """
    path = os.path.expanduser(path)
    headers, names_in_file = _headers(path)
    splits = ("train", "test") if "x_train" in headers or "y_train" in headers else ("test",)
    for split in splits:
        for key in (f"x_{split}", f"y_{split}"):
            if key not in headers:
                raise UserError(f"path: expected {key} in {path}, received {names_in_file}")
        images, labels = (headers[f"{kind}_{split}"] for kind in "xy")
        names = _names(path, split)
        check_image_form(images, names[0], stored=True, layout=layout)
        check_label_form(labels, len(images), names[1])
    shapes = [_image_shape(headers[f"x_{split}"].shape, layout) for split in splits]
    expected = f"images of {shapes[0]} as in x_train"
    require(shapes[0] == shapes[-1], _name(path, "x_test"), expected, shapes[-1])
    greatest = 1
    for split in splits:
        key = f"y_{split}"
        labels = check_labels(_read(path, key), where=_name(path, key))
        greatest = max(greatest, int(labels.max()))
    classes = greatest + 1 if num_classes is None else num_classes
    expected = f"from {greatest + 1}, the greatest label plus one, up to {MOST_CLASSES}"
    require(greatest < classes <= MOST_CLASSES, "num_classes", expected, classes)
    return Npz(shapes[0], numbered(classes), path, trains=len(splits) == 2, layout=layout)


def _image_shape(shape: tuple[int, ...], layout: str | None) -> tuple[int, int, int]:
    """Return (H, W, C) for the shape [N, H, W], [N, H, W, C] or, channels first, [N, C, H, W]."""
    if layout == "channels_first" and len(shape) == 4:
        return shape[2], shape[3], shape[1]
    return (*shape[1:], 1)[:3]  # type: ignore[return-value]


def _name(path: str, key: str) -> str:
    return f"path: {key} of {path}"


def _names(path: str, split: str) -> tuple[str, str]:
    return _name(path, f"x_{split}"), _name(path, f"y_{split}")


def _headers(path: str) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays that the file has of the four, as stand-ins, and the names of all arrays.

    A stand-in has the shape and the dtype of its array, but takes no memory.
    """
    stand_ins = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            for key in KEYS:
                if f"{key}.npy" in members:
                    with archive.open(f"{key}.npy") as file:
                        shape, dtype = _header(file)
                    stand_ins[key] = np.broadcast_to(np.empty((), dtype), shape)
    except FileNotFoundError:
        raise UserError(f"path: expected an .npz file, received {path}: no such file") from None
    except UNREADABLE as error:
        raise UserError(f"path: expected an .npz file, received {path}: {_line(error)}") from None
    names = ", ".join(sorted(name.removesuffix(".npy") for name in members)) or "no array"
    return stand_ins, names


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and the dtype of an .npy file."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _read(path: str, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[key]
            return array
    except UNREADABLE as error:
        raise UserError(
            f"{_name(path, key)}: expected a readable array, received {_line(error)}"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
