"""Where compiled programs are kept, and how many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tensorflow as tf

from pipelines.stages.training import STEPS_AT_ONCE, _steps_at_once
from pipelines.xla_cache import FLAGS, forget_old, keep_programs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(FLAGS, raising=False)
    return tmp_path


def test_programs_are_kept_in_the_users_cache(home: Path) -> None:
    keep_programs()
    (folder,) = (home / "tfrobust" / "xla").iterdir()
    assert folder.name.startswith(tf.__version__)
    assert os.environ[FLAGS] == f"--tf_xla_persistent_cache_directory={folder}"


def test_flags_of_the_users_own_stay(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FLAGS, "--tf_xla_max_cluster_size=9")
    keep_programs()
    assert os.environ[FLAGS] == "--tf_xla_max_cluster_size=9"
    assert not list(home.iterdir())


def test_without_a_place_nothing_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow would otherwise end the run."""
    (home / "file").touch()
    for place in (home / "file", home / "with space"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        keep_programs()
        assert FLAGS not in os.environ


def test_the_oldest_programs_go(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(b"1234")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    forget_old(tmp_path, most=9)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("steps", "first", "expected"), [(40, 0, 20), (43, 0, 1), (391, 0, 17), (40, 44, 4), (40, 7, 1)]
)
def test_steps_that_follow_each_other_end_with_the_epoch(
    steps: int, first: int, expected: int
) -> None:
    at_once = _steps_at_once(steps, first)
    assert at_once == expected <= STEPS_AT_ONCE
    assert steps % at_once == 0 and (steps - first % steps) % at_once == 0
