"""A user's own data in one .npz file."""

import os
import zipfile
from dataclasses import dataclass

import numpy as np

from tfrobust.data.split import Dataset, Split, check_form, check_labels, numbered
from tfrobust.io import UNREADABLE
from tfrobust.registry import UserError, require

KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Npz(Dataset):
    """Arrays x_train, y_train, x_test, y_test of the file at `path`; see `open_npz`."""

    path: str

    def load(self) -> tuple[Split, Split]:
        """The two splits. Raises ValueError for NaN or float images outside [0, 1]."""
        x_train, y_train, x_test, y_test = (_read(self.path, key) for key in KEYS)
        return (
            Split.of(x_train, y_train, _names(self.path, "train")),
            Split.of(x_test, y_test, _names(self.path, "test")),
        )


def open_npz(path: str) -> Npz:
    """Checks a file by its headers and labels, reading no image.

    x_train, x_test: [N, H, W, C] or [N, H, W], uint8 or float in [0, 1]; y_train, y_test: [N] or
    [N, 1] class numbers from 0; the number of classes is the greatest plus one, at least two.
    Raises ValueError for a missing or unreadable file, a missing array, a wrong shape or dtype,
    a negative label, and pickled objects.
    """
    path = os.path.expanduser(path)
    headers = _headers(path)
    for split in ("train", "test"):
        x, y = headers[f"x_{split}"], headers[f"y_{split}"]
        check_form(x, y, _names(path, split))
    shapes = [(headers[key].shape + (1,))[1:4] for key in ("x_train", "x_test")]
    expected = f"images of {shapes[0]} as in x_train"
    require(shapes[0] == shapes[1], _name(path, "x_test"), expected, shapes[1])
    greatest = 1
    for key in ("y_train", "y_test"):
        labels = _read(path, key)
        check_labels(labels, _name(path, key))
        greatest = max(greatest, int(labels.max()))
    return Npz(shapes[0], numbered(greatest + 1), path)


def _name(path: str, key: str) -> str:
    return f"path: {key} of {path}"


def _names(path: str, split: str) -> tuple[str, str]:
    return _name(path, f"x_{split}"), _name(path, f"y_{split}")


def _headers(path: str) -> dict[str, np.ndarray]:
    """Stand-ins of no size for the four arrays: their shape and dtype."""
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
    for key in KEYS:
        if key not in stand_ins:
            held = ", ".join(sorted(name.removesuffix(".npy") for name in members)) or "no array"
            raise UserError(f"path: expected {key} in {path}, received {held}")
    return stand_ins


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
