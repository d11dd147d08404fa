"""Arrays from the files in which weights are published, without running any code in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tfrobust.errors import UserError, nearest_path, one_line, path_text, require
from tfrobust.io import in_home

Arrays = dict[str, np.ndarray]
TORCH = (".pt", ".pth", ".ckpt", ".tar")
SUFFIXES = (*TORCH, ".safetensors", ".npz", ".npy")
EXTRA = "{0} reads {1}: pip install 'tfrobust[{2}]', or save the arrays as .npz"
CODE = (
    "it holds more than tensors, which only code could read; if you trust it, "
    "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pt')"
)
ONE = "one dictionary of arrays by their names in torch"
# All that a pickle of arrays in dictionaries names.
HARMLESS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    ("collections", "OrderedDict"),
}


def weights_file(path: str | Path, where: str = "path") -> Path:
    """Return the file at a path. Raises a UserError unless it is there and of one of SUFFIXES."""
    file = in_home(path_text(where, path))
    expected = f"weights in a file that ends in {', '.join(SUFFIXES)}"
    require(file.suffix.lower() in SUFFIXES, where, expected, str(path))
    if not file.is_file():
        raise UserError(f"{where}: {str(path)!r}: no such file{nearest_path(path)}")
    return file


def read_arrays(path: str | Path, where: str = "path") -> Arrays:
    """Return the arrays of a file by name.

    The names in nested dictionaries are joined by dots; what is no array is left out.

    Args:
        path: A file of torch (.pt, .pth, .ckpt, .tar), .safetensors, .npz, or .npy of one
            dictionary.
        where: The name of the path in errors.

    Raises:
        UserError: The file does not load, it asks for code to be run, or the package that reads it
            is not installed.
    """
    file = weights_file(path, where)
    suffix = file.suffix.lower()
    try:
        if suffix in TORCH:
            return flat(_torch(file, where))
        if suffix == ".safetensors":
            return _safetensors(file, where)
        if suffix == ".npz":
            with np.load(file) as arrays:
                return flat(arrays)
        return flat(_npy(file, where))
    except pickle.UnpicklingError as error:
        reason = CODE if suffix in TORCH else str(error)
        raise UserError(f"{where}: {file} was not read: {reason}") from None
    except UserError:
        raise
    except Exception as error:
        reason = one_line(error)
        raise UserError(f"{where}: expected weights, {file} does not load: {reason}") from None


def flat(values: Any, name: str = "") -> Arrays:
    """Return the arrays in nested dictionaries, under their keys joined by dots."""
    if isinstance(values, Mapping):
        arrays: Arrays = {}
        for key in values:
            arrays |= flat(values[key], f"{name}.{key}" if name else str(key))
        return arrays
    return {name: values} if isinstance(values, np.ndarray) and values.dtype != object else {}


def _torch(file: Path, where: str) -> Any:
    try:
        import torch
    except ImportError:
        _missing(where, "torch", file.suffix, "torch")

    def arrays(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to(torch.float32).numpy()
        return {k: arrays(v) for k, v in value.items()} if isinstance(value, Mapping) else None

    return arrays(torch.load(file, map_location="cpu", weights_only=True))


def _safetensors(file: Path, where: str) -> Arrays:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        _missing(where, "safetensors", file.suffix, "zoo")
    return dict(load_file(file))


def _missing(where: str, package: str, suffix: str, extra: str) -> NoReturn:
    raise UserError(f"{where}: {EXTRA.format(package, suffix, extra)}") from None


class _Harmless(pickle.Unpickler):
    """Unpickles arrays in dictionaries, lists and tuples, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and may hold arrays alone")
        return super().find_class(module, name)


def _npy(file: Path, where: str) -> Any:
    """Return the dictionary that NumPy saved in an array without dimensions."""
    with file.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        _, _, dtype = read(stream)
        require(dtype.hasobject, where, ONE, f"an array of {dtype}")
        array = _Harmless(stream).load()
    received = f"{array.size} objects (of a network in JAX there is a .pt too)"
    require(array.size == 1, where, ONE, received)
    return array.item()
