"""A result is stale if statements that computed it have changed, but not if comments have."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tfrobust.record import Record

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import stale

CODE = '''"""A module."""

import os


def double(x):
    """Return twice x."""
    return 2 * x
'''


def summary(method: str = "adv", commit: str | None = "abc123") -> dict[str, Any]:
    """Return the summary of a run of a method that Square attacked."""
    config = {"name": "square"}
    row = {"name": "Square", "examples": 10, "robust_accuracy": 0.5, "config": config}
    evaluation = {
        "examples": 10,
        "clean_accuracy": 0.8,
        "attacks": [row],
        "threat": {"norm": "linf", "eps": 0.1},
        "commit": commit,
        "training_commit": commit,
    }
    names = {"method": method, "model": "small_cnn", "data": "digits"}
    sections = {section: {"name": name} for section, name in names.items()}
    return {"config": sections, "evaluation": Record.parse(evaluation)}


@pytest.mark.parametrize(
    ("after", "changed"),
    [
        (CODE.replace("Return twice x.", "Return x + x.").replace("import os", "# text"), False),
        (CODE + "\n\ndef new():\n    return 1\n", False),
        (CODE.replace("2 * x", "3 * x"), True),
        (CODE.replace("double", "twice"), True),
        (None, True),
    ],
)
def test_code_has_changed_if_one_of_its_statements_is_gone(
    after: str | None, changed: bool
) -> None:
    assert stale.loses_statements(CODE, after) is changed


def test_the_files_of_a_run_are_those_that_its_config_uses() -> None:
    files = stale.files_of(summary())
    used = ("methods/adv", "methods/base", "attacks/square", "models/cnn", "data/digits", "losses")
    assert {f"tfrobust/{name}.py" for name in used} <= files
    unused = ("methods/atlas", "attacks/fab", "models/resnets", "data/tfds", "record", "io")
    assert not {f"tfrobust/{name}.py" for name in unused} & files
    nested = {"name": "awp", "method": {"name": "trades"}}
    files = stale.files_of(summary() | {"config": {"method": nested}})
    assert {"tfrobust/methods/awp.py", "tfrobust/methods/trades.py"} <= files


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """A function that runs git in an empty repository, which stands for the project's."""

    def run(*words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.check_output(command, cwd=tmp_path, text=True).strip()

    run("init", "-q")
    (tmp_path / stale.REVIEWED).parent.mkdir(parents=True)
    (tmp_path / stale.REVIEWED).write_text("# Nothing yet\n")
    monkeypatch.setattr(stale, "ROOT", tmp_path)
    forget()
    yield run
    forget()


def forget() -> None:
    """Empty the caches of the tool."""
    for cached in (stale.git, stale.has_changed, stale.reviewed):
        cached.cache_clear()


def commit_of(git: Callable[..., str], file: Path, text: str) -> str:
    """Return the commit that gives a file a text."""
    file.write_text(text)
    git("add", "-A")
    git("commit", "-qm", "a change")
    forget()
    return git("rev-parse", "HEAD")


def test_changed_files_are_those_since_the_commit_of_the_run(
    git: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = commit_of(git, tmp_path / "a.py", CODE)
    (tmp_path / "a.py").write_text(CODE.replace("2 * x", "3 * x"))
    (tmp_path / "b.py").write_text(CODE)
    monkeypatch.setattr(stale, "files_of", lambda summary: {"a.py", "b.py"})
    assert stale.changed_files(summary(commit=commit)) == ["a.py", "b.py"]
    assert stale.changed_files(summary(commit=f"{commit}-dirty")) == ["a.py", "b.py"]
    assert stale.changed_files(summary(commit="f" * 12)) is None
    assert stale.changed_files(summary(commit=None)) is None
    (tmp_path / "a.py").write_text(CODE.replace("twice x", "x + x"))
    (tmp_path / "b.py").unlink()
    monkeypatch.setattr(stale, "files_of", lambda summary: {"a.py"})
    forget()
    assert stale.changed_files(summary(commit=commit)) == []


def test_a_reviewed_change_does_not_count_but_the_next_one_does(
    git: Callable[..., str], tmp_path: Path
) -> None:
    file = tmp_path / "a.py"
    first = commit_of(git, file, CODE)
    second = commit_of(git, file, CODE.replace("2 * x", "x + x"))
    assert stale.has_changed(first, "a.py")
    (tmp_path / stale.REVIEWED).write_text(f"# Reasons\n{second} a.py the same sum\n")
    forget()
    assert not stale.has_changed(first, "a.py")
    file.write_text(CODE.replace("2 * x", "x + 3"))
    forget()
    assert stale.has_changed(first, "a.py")  # not committed, so not reviewed
    third = commit_of(git, file, CODE.replace("2 * x", "x + 3"))
    assert stale.has_changed(first, "a.py")
    assert stale.has_changed(second, "a.py")
    assert not stale.has_changed(third, "a.py")


def test_reviewed_changes_name_a_commit_and_a_file() -> None:
    pairs = stale.reviewed()
    assert pairs
    for commit, file in pairs:
        assert re.fullmatch("[0-9a-f]{40}", commit)
        assert (stale.ROOT / file).is_file()
