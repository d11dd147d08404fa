"""The paths and archives that users give."""

import io
import pwd
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tfrobust.backend import chosen
from tfrobust.data import DATASETS
from tfrobust.errors import UserError
from tfrobust.io import in_home, write_text
from tfrobust.models import load_network
from tfrobust.zoo import load

NOBODY = "~nobody-has-this-name/file.npz"


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
