"""The search for the files of networks, and the loading of Keras networks from them."""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

import keras

from tfrobust.errors import UserError, nearest_path, path_text, require
from tfrobust.io import in_home
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.keras_layers import with_tfrobust_layers
from tfrobust.models.signatures import cut

KERAS = "a .keras or .h5 file, or a run folder with model.keras"
SUFFIXES = (".keras", ".h5", ".hdf5")
WEIGHTS = (
    "it holds weights alone: load_weights(FILE) of the network, or of the method, that saved it, "
    "then network.save('model.keras')"
)
COMPUTED_ELSEWHERE = (".onnx", ".tflite")
TORCH = (".pt", ".pth", ".ckpt", ".tar", ".safetensors", ".npy", ".npz")
PUBLISHED = (
    "tfrobust evaluate FILE --architecture NAME reads published weights, and so does "
    "tfrobust.zoo.load(FILE, NAME)"
)
# What a user can do with a network whose code is unknown here: to evaluate it, or to train it.
EXPORTED = "network.export(FOLDER) makes a SavedModel; give that folder"
TRAINED = "train it in Python: tfrobust.Adv(network, ...)"
UNSAFE = (
    "it holds code (Lambda); if you trust it, network = keras.saving.load_model({!r}, "
    "safe_mode=False), and "
)
HDF5 = b"\x89HDF\r\n\x1a\n"
UNKNOWN = re.compile(r"(?:Could not locate (?:class|function)|Unknown [\w ]+:) '(?:[^'>]+>)?(\w+)'")


def saved_model(path: str | Path) -> Path | None:
    """Return the folder of a SavedModel by its path or that of its saved_model.pb; else None."""
    folder = in_home(path)
    if folder.name == "saved_model.pb":
        folder = folder.parent
    return folder if (folder / "saved_model.pb").is_file() else None


def runtime_file(path: str | Path) -> Path | None:
    """Return the path of a file for ONNX Runtime or LiteRT; None for other paths."""
    file = in_home(path)
    return file if file.name.lower().endswith(COMPUTED_ELSEWHERE) and file.is_file() else None


def keras_file(path: str | Path, where: str = "path", also: str = "") -> Path:
    """Return the .keras or .h5 file at a path, or the one in a run folder.

    Args:
        path: A file, or a run folder with model.keras.
        where: The name of the path in errors.
        also: The other kinds of path that are accepted, for the error.

    Raises:
        UserError: There is no such file.
    """
    file = in_home(path_text(where, path))
    if file.is_dir():
        file = file / "model.keras"
    name = file.name.lower()
    hint = ""
    if name.endswith(".weights.h5"):
        hint = f"; {WEIGHTS}"
    elif name.endswith(COMPUTED_ELSEWHERE):
        hint = "; it has no gradients and cannot be trained: give the network that it was made from"
    elif file.is_file() and name.endswith(SUFFIXES):
        return file
    elif name.endswith(TORCH):
        hint = f"; {PUBLISHED}"
    elif in_home(path).is_dir():
        unfinished = (file.parent / "checkpoints").is_dir()
        hint = ": no model.keras in it" + ", the training has not ended" * unfinished
    elif not file.exists():
        hint = f": no such file{nearest_path(path)}"
    raise UserError(f"{where}: expected {KERAS}{also}, received {str(path)!r}{hint}")


def model_files(path: str | Path, where: str = "path") -> list[Path]:
    """Return the files that `load_network` reads. Raises UserError if there are none."""
    folder = saved_model(path_text(where, path))
    if folder is None:
        also = ", a SavedModel folder, or a .onnx or .tflite file"
        file = runtime_file(path)
        return [keras_file(path, where, also)] if file is None else [file, *_weights_beside(file)]
    walk = os.walk(folder, followlinks=True)
    return sorted(Path(parent, name) for parent, _, names in walk for name in names)


def _weights_beside(file: Path) -> list[Path]:
    """Return the files beside an .onnx file that hold its weights, as torch writes them."""
    if file.suffix.lower() != ".onnx":
        return []
    content, folder = file.read_bytes(), file.parent
    # An entry "location" of the protocol buffer: its length and text, then those of the name.
    names = [name for name in sorted(os.listdir(folder)) if len(os.fsencode(name)) < 128]
    mark = b"\x0a\x08location\x12"
    named = [n for n in names if mark + bytes([len(os.fsencode(n))]) + os.fsencode(n) in content]
    return [folder / name for name in named if (folder / name).is_file()]


def load_keras(
    path: str | Path, where: str = "path", *, output: str | None = None, code: str = TRAINED
) -> keras.Model:
    """Load the Keras network of a run folder or a file, for training.

    For a saved RobustModel, the network inside is loaded. A network that was saved with Keras's
    layers in place of ours (`with_keras_layers`), as in every run, gets ours back: they are faster,
    and their second-order gradients are right under XLA.

    Args:
        path: A .keras or .h5 file, or a run folder with model.keras.
        where: The name of the path in errors.
        output: The name of the output with the logits, for a network with several.
        code: What a user can do about layers whose code is unknown, for the error.

    Raises:
        UserError: The file does not load, or its network has no such output.
    """
    file = keras_file(path, where)
    with tempfile.TemporaryDirectory() as folder:
        # Keras goes by the suffix of the name, which need not be that of the content.
        link = Path(folder, f"network{_kind(file, where)}")
        link.symlink_to(file.resolve())
        try:
            with neutral():
                model = keras.saving.load_model(link, compile=False, safe_mode=True)
        except Exception as error:
            _does_not_load(file, where, str(error).replace(str(link), str(file)), code)
    require(isinstance(model, keras.Model), where, "a keras.Model", type(model).__name__)
    if hasattr(model, "evaluated_weights"):  # averages, if the model validated these
        weights, model = model.evaluated_weights(), model.network
        model.set_weights(weights)
    return cut(with_tfrobust_layers(model), output, where)


def _kind(file: Path, where: str) -> str:
    """Return ".keras" or ".h5", by the file's content. Raises UserError if it is neither."""
    with file.open("rb") as stream:
        start = stream.read(len(HDF5))
    if zipfile.is_zipfile(file):
        return ".keras"
    if start == HDF5:
        return ".h5"
    size = file.stat().st_size
    received = f"{size} bytes that are neither, perhaps cut short" if size else "an empty file"
    raise UserError(f"{where}: expected a .keras or .h5 file, {file} is {received}")


def _does_not_load(file: Path, where: str, text: str, code: str) -> NoReturn:
    """Raise a UserError with advice for a text by which Keras says why a file does not load."""
    unknown = UNKNOWN.search(text)
    if "Lambda" in text and "safe_mode" in text:
        line = UNSAFE.format(str(file)) + code
    elif unknown is not None:
        line = f"{unknown[1]} is not known here; where it is, {code}"
    elif "No model config found" in text:
        line = WEIGHTS
    else:
        line = " ".join(text.split())[:200]
    raise UserError(f"{where}: expected a network, {file} does not load: {line}") from None
