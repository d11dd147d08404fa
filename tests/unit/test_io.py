"""The paths that users give."""

from pathlib import Path

import pytest

from tfrobust.data import DATASETS
from tfrobust.errors import UserError
from tfrobust.io import in_home
from tfrobust.models import load_network
from tfrobust.zoo import load

NOBODY = "~nobody-has-this-name/file.npz"


def test_the_home_is_put_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert in_home("~/x") == tmp_path / "x"
    assert in_home(NOBODY) == Path(NOBODY)


@pytest.mark.parametrize("name", ["folder", "npz"])
def test_the_home_of_an_unknown_user_is_no_data(name: str) -> None:
    with pytest.raises(UserError, match="no such f"):
        DATASETS[name](path=NOBODY)


def test_the_home_of_an_unknown_user_is_no_network() -> None:
    with pytest.raises(UserError, match="expected a .keras or .h5 file"):
        load_network(NOBODY)
    with pytest.raises(UserError, match="no such file"):
        load(NOBODY, "resnet_18")
