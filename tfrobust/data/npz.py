"""A user's own data in one .npz file."""

import os
import zipfile
from dataclasses import dataclass

import numpy as np

from tfrobust.data.split import Dataset, Split, numbered
from tfrobust.errors import UserError, require
from tfrobust.gate import MOST_CLASSES, check_image_form, check_label_form, check_labels
from tfrobust.io import UNREADABLE

KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Npz(Dataset):
    """Arrays x_train, y_train, x_test, y_test of the file at `path`; see `open_npz`."""

    path: str
    trains: bool = True
    layout: str | None = None

    def load(self, split: str) -> Split:
        """A split; empty for training where the file has test arrays alone. Raises ValueError for
        NaN or float images outside [0, 1]."""
        held = split if self.trains else "test"
        x, y = (_read(self.path, f"{kind}_{held}") for kind in "xy")
        whole = Split.of(x, y, _names(self.path, held), self.layout)
        return whole if held == split else whole.first(0)


def open_npz(path: str, num_classes: int | None = None, layout: str | None = None) -> Npz:
    """Checks a file by its headers and labels, reading no image.

    x_train, x_test: [N, H, W, C] or [N, H, W], uint8 or float in [0, 1]; y_train, y_test: [N] or
    [N, 1] class numbers from 0. To evaluate a network x_test and y_test are enough. num_classes:
    None is the greatest label plus one, at least two. layout: "channels_first" for images
    [N, C, H, W], which are transposed; None asks, by an error, where they look like it, and
    "channels_last" is the answer that they are not. Raises ValueError for a missing or
    unreadable file, a missing array, a wrong shape or dtype, a label that is negative or beyond
    num_classes, and pickled objects.
    """
    path = os.path.expanduser(path)
    headers, held = _headers(path)
    splits = ("train", "test") if "x_train" in headers or "y_train" in headers else ("test",)
    for split in splits:
        for key in (f"x_{split}", f"y_{split}"):
            if key not in headers:
                raise UserError(f"path: expected {key} in {path}, received {held}")
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
    """(H, W, C) of images [N, H, W], [N, H, W, C] or, with that layout, [N, C, H, W]."""
    if layout == "channels_first" and len(shape) == 4:
        return shape[2], shape[3], shape[1]
    return (*shape[1:], 1)[:3]  # type: ignore[return-value]


def _name(path: str, key: str) -> str:
    return f"path: {key} of {path}"


def _names(path: str, split: str) -> tuple[str, str]:
    return _name(path, f"x_{split}"), _name(path, f"y_{split}")


def _headers(path: str) -> tuple[dict[str, np.ndarray], str]:
    """Stand-ins of no size for those of the four arrays that are there, with their shape and
    dtype; and the names of all that is there."""
    stand_ins = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            for key in KEYS:
                if f"{key}.npy" in members:
                    with archive.open(f"{key}.npy") as file:
                        version = np.lib.format.read_magic(file)
                        read = np.lib.format.read_array_header_1_0
                        if version != (1, 0):
                            read = np.lib.format.read_array_header_2_0
                        shape, _, dtype = read(file)
                    stand_ins[key] = np.broadcast_to(np.empty((), dtype), shape)
    except FileNotFoundError:
        raise UserError(f"path: expected an .npz file, received {path}: no such file") from None
    except UNREADABLE as error:
        raise UserError(f"path: expected an .npz file, received {path}: {_line(error)}") from None
    held = ", ".join(sorted(name.removesuffix(".npy") for name in members)) or "no array"
    return stand_ins, held


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
