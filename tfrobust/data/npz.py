"""A user's own data in one .npz file."""

import math
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from tfrobust.data.split import Dataset, Split, numbered
from tfrobust.errors import UserError, nearest_path, one_line, path_text, require
from tfrobust.gate import MOST_CLASSES, check_image_form, check_label_form, check_labels
from tfrobust.io import UNREADABLE

# The names of images and labels in each split. Files of generated images have the last pair.
TRAIN, TEST, GENERATED = ("x_train", "y_train"), ("x_test", "y_test"), ("image", "label")
KEYS = (*TRAIN, *TEST, *GENERATED)
LENGTHS = 26  # the position, in a member's header of a zip file, of the lengths of its last parts


@dataclass(frozen=True)
class Npz(Dataset):
    """The arrays of a file; see `open_npz`. `keys` are the names of images and labels by split."""

    path: str
    keys: dict[str, tuple[str, str]]
    layout: str | None = None

    @property
    def files(self) -> list[Path]:
        return [Path(self.path)]

    def load(self, split: str) -> Split:
        """Return a split. "train" is empty if the file has only test arrays.

        Images that are stored uncompressed, as by np.savez, stay in the file, and the array is a
        memory map. Others are read into memory.

        Raises:
            UserError: Images are NaN or outside [0, 1], or there are no test arrays.
        """
        if split == "test" and "test" not in self.keys:
            expected = f"{' and '.join(TEST)} to evaluate on"
            raise UserError(f"path: expected {expected} in {self.path}, received none")
        x, y = self.keys.get(split, TEST)
        images, labels = _mapped(self.path, x), _read(self.path, y)
        names = _name(self.path, x), _name(self.path, y)
        examples = Split.of(images, labels, names, self.layout)
        return examples if split in self.keys else examples.first(0)


def open_npz(path: str, num_classes: int | None = None, layout: str | None = None) -> Npz:
    """Open arrays in an .npz file. Headers and labels are checked, but no image is read.

    x_train and x_test are [N, H, W, C] or [N, H, W], uint8 or float in [0, 1], or tables [N, F] or,
    with layout "series", series [N, T, C], float in [0, 1]. y_train and y_test are class numbers
    from 0, [N] or [N, 1]. To evaluate a network, x_test and y_test are enough;
    for `data.extra`, x_train and y_train, which may also be named image and label.

    Args:
        path: The path of the file.
        num_classes: The number of classes. None for the greatest label plus one, at least two.
        layout: "channels_first" for images [N, C, H, W], which are transposed; "channels_last" for
            images that only look channels first; None raises an error for both. "series" for
            arrays [N, T, C] that are no grey images.

    Raises:
        UserError: The file is missing or unreadable; an array is missing, holds pickled objects or
            has a wrong shape or dtype; a label is negative or beyond num_classes; or training
            labels begin above 0 and num_classes is None.
    """
    path = os.path.expanduser(path_text("path", path))
    headers, names_in_file = _headers(path)
    pairs = {"train": TRAIN, "test": TEST}
    keys = {split: pair for split, pair in pairs.items() if headers.keys() & {*pair}}
    if not keys:
        keys = {"train": GENERATED} if headers.keys() & {*GENERATED} else {"test": TEST}
    for pair in keys.values():
        for key in pair:
            if key not in headers:
                raise UserError(f"path: expected {key} in {path}, received {names_in_file}")
    shapes, greatest = {}, 1
    for x, y in keys.values():
        images = headers[x]
        check_image_form(images, _name(path, x), stored=True, layout=layout)
        check_label_form(headers[y], len(images), _name(path, y))
        shapes[x] = _image_shape(images.shape, layout)
    first, *_ = shapes
    for x, shape in shapes.items():
        expected = f"images of {shapes[first]} as in {first}"
        require(shape == shapes[first], _name(path, x), expected, shape)
    for _, y in keys.values():
        labels = check_labels(_read(path, y), where=_name(path, y))
        greatest = max(greatest, int(labels.max()))
        if num_classes is None and y == TRAIN[1] and "test" in keys:
            _check_start(labels, _name(path, y))
    classes = greatest + 1 if num_classes is None else num_classes
    expected = f"from {greatest + 1}, the greatest label plus one, up to {MOST_CLASSES}"
    require(greatest < classes <= MOST_CLASSES, "num_classes", expected, classes)
    return Npz(shapes[first], numbered(classes), path, keys, layout)


def _check_start(labels: np.ndarray, where: str) -> None:
    """Raise a UserError if training labels lack class 0, as those from 1 to K do."""
    least, greatest = labels.min(), labels.max()
    if least > 0:
        raise UserError(
            f"{where}: expected class numbers from 0, received {least} to {greatest}; subtract "
            f"{least} from all labels, or set num_classes to {greatest + 1} if classes are absent"
        )


def _image_shape(shape: tuple[int, ...], layout: str | None) -> tuple[int, ...]:
    """Return the shape of one input of an array.

    It is (H, W, C) for images [N, H, W], [N, H, W, C] or, channels first, [N, C, H, W]. For series
    and tables it is what follows N.
    """
    if layout == "channels_first" and len(shape) == 4:
        return shape[2], shape[3], shape[1]
    return (*shape[1:], 1) if len(shape) == 3 and layout != "series" else shape[1:]


def _name(path: str, key: str) -> str:
    """Return the name of an array in errors."""
    return f"path: {key} of {path}"


def _headers(path: str) -> tuple[dict[str, np.ndarray], str]:
    """Return stand-ins for the arrays of KEYS that the file has, and the names of all its arrays.

    A stand-in has the shape and the dtype of its array, but takes no memory.
    """
    stand_ins = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            for key in KEYS:
                if f"{key}.npy" in members:
                    with archive.open(f"{key}.npy") as file:
                        shape, _, dtype = _header(file)
                    stand_ins[key] = np.broadcast_to(np.empty((), dtype), shape)
    except FileNotFoundError:
        received = f"{path}: no such file{nearest_path(path)}"
        raise UserError(f"path: expected an .npz file, received {received}") from None
    except UNREADABLE as error:
        line = one_line(error, None)
        raise UserError(f"path: expected an .npz file, received {path}: {line}") from None
    names = ", ".join(sorted(name.removesuffix(".npy") for name in members)) or "no array"
    return stand_ins, names


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape, whether the order is that of Fortran, and the dtype of an .npy file."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _mapped(path: str, key: str) -> np.ndarray:
    """Return an array as a memory map, or in memory if it is stored compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{key}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return _read(path, key)
        with open(path, "rb") as file:
            file.seek(member.header_offset + LENGTHS)
            file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
            begin = file.tell()
            shape, in_columns, dtype = _header(file)
            size = file.tell() - begin + dtype.itemsize * math.prod(shape)
            if size != member.file_size:
                raise ValueError(f"{member.file_size} bytes instead of {size}")
            return np.memmap(file, dtype, "r", file.tell(), shape, "F" if in_columns else "C")
    except UNREADABLE as error:
        raise _unreadable(path, key, error) from None


def _read(path: str, key: str) -> np.ndarray:
    """Return an array in memory."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[key]
            return array
    except UNREADABLE as error:
        raise _unreadable(path, key, error) from None


def _unreadable(path: str, key: str, error: Exception) -> UserError:
    """Return the error about an array that cannot be read."""
    line = one_line(error, None)
    return UserError(f"{_name(path, key)}: expected a readable array, received {line}")
