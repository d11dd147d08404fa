"""The paths and archives that users give."""

import io
import pwd
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfrobust
from tests.errors import error_line
from tfrobust.backend import chosen
from tfrobust.data import DATASETS
from tfrobust.errors import UserError
from tfrobust.evaluation import Flags, Record
from tfrobust.exporting import export
from tfrobust.io import in_home, write_text
from tfrobust.models import keras_application, load_keras, load_network, model_files
from tfrobust.report import write_report, write_search_report
from tfrobust.training.checkpoint import Checkpoints
from tfrobust.training.monitors import History
from tfrobust.zoo import load

NOBODY = "~nobody-has-this-name/file.npz"
NOTHING: Any = None
# What users give a file to read, by the name of the argument.
READS: list[tuple[str, Callable[[Any], Any]]] = [
    ("path", load_network),
    ("path", load_keras),
    ("path", model_files),
    ("path", lambda path: load(path, "resnet_18")),
    ("path", lambda path: DATASETS["npz"](path=path)),
    ("path", lambda path: DATASETS["folder"](path=path)),
    ("dir", lambda path: DATASETS["mnist"](dir=path)),
    ("weights", lambda path: keras_application((32, 32, 3), 2, application="VGG16", weights=path)),
]
# What users give a folder of a run, or a place to write to.
FOLDERS: list[tuple[str, Callable[[Any], Any]]] = [
    ("folder", lambda path: evaluated(folder=path)),
    ("folder", write_report),
    ("folder", write_search_report),
    ("folder", Record.load),
    ("folder", Flags.load),
    ("folder", Checkpoints),
    ("path", lambda path: History(path, [], path)),
    ("path", lambda path: export(NOTHING, path, NOTHING)),
    ("filepath", lambda path: method().export(path)),
    ("run", lambda path: tfrobust.push_to_hub(path, "me/net")),
]


def evaluated(**options: Any) -> Any:
    return tfrobust.evaluate(NOTHING, NOTHING, NOTHING, tfrobust.Threat("linf", 0.1), **options)


def method() -> Any:
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    return tfrobust.Natural(network, threat=tfrobust.Threat("linf", 0.1))


def test_the_home_is_put_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert in_home("~/x") == tmp_path / "x"
    assert in_home(NOBODY) == Path(NOBODY)


def test_a_text_about_a_path_that_is_not_utf_8_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a.md", "--set data.path=caf\udce9")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "--set data.path=caf\\udce9"


def test_the_backend_of_keras_is_found_without_a_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Containers have users without an entry in the password database."""

    def no_user(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", no_user)
    for name in ("HOME", "KERAS_BACKEND", "KERAS_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.chdir(tmp_path)  # where nothing is called "~"
    assert chosen()[1] == "/tmp/.keras/keras.json"


@pytest.mark.parametrize(("argument", "call"), [*READS, *FOLDERS])
def test_what_is_no_path_is_refused(argument: str, call: Callable[[Any], Any]) -> None:
    assert error_line(lambda: call(3)) == f"{argument}: expected a path, received 3"


@pytest.mark.parametrize(("argument", "call"), FOLDERS)
def test_the_home_of_an_unknown_user_is_no_folder(
    argument: str, call: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    line = error_line(lambda: call(NOBODY))
    assert line == f"{argument}: expected a path in the home of a known user, received {NOBODY!r}"
    assert not list(tmp_path.iterdir())


def test_a_folder_may_be_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Checkpoints("~/x").folder == tmp_path / "x"


@pytest.mark.parametrize("flag", ["check", "images", "progress", "rerun"])
def test_evaluate_takes_flags_alone_for_flags(flag: str) -> None:
    line = error_line(lambda: evaluated(**{flag: "no"}))
    assert line == f"{flag}: expected True or False, received 'no'"


@pytest.mark.parametrize("name", ["folder", "npz"])
def test_the_home_of_an_unknown_user_is_no_data(name: str) -> None:
    with pytest.raises(UserError, match="no such f"):
        DATASETS[name](path=NOBODY)


def test_the_home_of_an_unknown_user_is_no_network() -> None:
    with pytest.raises(UserError, match="expected a .keras or .h5 file"):
        load_network(NOBODY)
    with pytest.raises(UserError, match="no such file"):
        load(NOBODY, "resnet_18")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("flag_bits", 1, "encrypted"), ("compress_type", 9, "compression method is not supported")],
)
def test_an_archive_that_python_cannot_unpack_is_no_data(
    field: str, value: int, reason: str, tmp_path: Path
) -> None:
    """Other archivers write such files: with a password, or by Deflate64."""
    file = tmp_path / "data.npz"
    np.savez(file, x_test=np.zeros((2, 8, 8, 1), np.uint8), y_test=np.arange(2))
    content = bytearray(file.read_bytes())
    # The places of both fields in the header of a member and in the list of members.
    places = {"flag_bits": (6, 8), "compress_type": (8, 10)}[field]
    for mark, place in zip((b"PK\3\4", b"PK\1\2"), places, strict=True):
        for found in re.finditer(re.escape(mark), bytes(content)):
            content[found.start() + place] = value
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"expected an .npz file, received .*{reason}"):
        DATASETS["npz"](path=str(file))


def test_a_damaged_archive_of_lzma_is_no_data(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    array = io.BytesIO()
    np.save(array, np.arange(1000))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x_test.npy", array.getvalue())
        start = archive.infolist()[0].header_offset + 30 + len("x_test.npy")
    content = bytearray(file.read_bytes())
    content[start + 9 : start + 40] = b"\xff" * 31
    file.write_bytes(content)
    with pytest.raises(UserError, match="expected an .npz file, received "):
        DATASETS["npz"](path=str(file))
