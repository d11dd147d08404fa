"""The folder of programs that XLA has compiled, and how many steps a program makes at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tensorflow as tf

from pipelines.stages.training import STEPS_AT_ONCE, _steps_at_once
from pipelines.xla_cache import FLAGS, forget_old, keep_programs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's cache folder, with no flags of XLA set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(FLAGS, raising=False)
    return tmp_path


def test_programs_are_kept_in_the_users_cache(home: Path) -> None:
    keep_programs()
    (folder,) = (home / "tfrobust" / "xla").iterdir()
    assert folder.name.startswith(tf.__version__)
    assert os.environ[FLAGS] == f"--tf_xla_persistent_cache_directory={folder}"


def test_flags_that_the_user_has_set_are_not_changed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FLAGS, "--tf_xla_max_cluster_size=9")
    keep_programs()
    assert os.environ[FLAGS] == "--tf_xla_max_cluster_size=9"
    assert not list(home.iterdir())


def test_programs_are_not_kept_where_the_folder_cannot_be_used(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow would end the run there."""
    (home / "file").touch()
    for place in (home / "file", home / "with space"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        keep_programs()
        assert FLAGS not in os.environ


def test_the_oldest_programs_are_removed(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(b"1234")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    forget_old(tmp_path, most=9)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("steps", "first", "expected"), [(40, 0, 20), (43, 0, 1), (391, 0, 17), (40, 44, 4), (40, 7, 1)]
)
def test_the_number_of_steps_at_once_divides_the_rest_of_the_epoch(
    steps: int, first: int, expected: int
) -> None:
    at_once = _steps_at_once(steps, first)
    assert at_once == expected <= STEPS_AT_ONCE
    assert steps % at_once == 0 and (steps - first % steps) % at_once == 0
