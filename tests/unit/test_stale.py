"""A result is stale if statements that computed it have changed, but not if comments have."""

import subprocess
import sys
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
    ],
)
def test_code_has_changed_if_one_of_its_statements_is_gone(after: str, changed: bool) -> None:
    assert (not stale.statements(CODE) <= stale.statements(after)) is changed


def test_the_files_of_a_run_are_those_that_its_config_uses() -> None:
    files = stale.files_of(summary())
    used = ("methods/adv", "methods/base", "attacks/square", "models/cnn", "data/digits", "losses")
    assert {f"tfrobust/{name}.py" for name in used} <= files
    unused = ("methods/atlas", "attacks/fab", "models/resnets", "data/tfds", "record", "io")
    assert not {f"tfrobust/{name}.py" for name in unused} & files
    nested = {"name": "awp", "method": {"name": "trades"}}
    files = stale.files_of(summary() | {"config": {"method": nested}})
    assert {"tfrobust/methods/awp.py", "tfrobust/methods/trades.py"} <= files


def test_changed_files_are_those_since_the_commit_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        """Return the output of a git command in tmp_path."""
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.check_output(command, cwd=tmp_path, text=True).strip()

    git("init", "-q")
    (tmp_path / "a.py").write_text(CODE)
    git("add", "-A")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "a.py").write_text(CODE.replace("2 * x", "3 * x"))
    (tmp_path / "b.py").write_text(CODE)
    monkeypatch.setattr(stale, "ROOT", tmp_path)
    monkeypatch.setattr(stale, "files_of", lambda summary: {"a.py", "b.py"})
    assert stale.changed_files(summary(commit=commit)) == ["a.py", "b.py"]
    assert stale.changed_files(summary(commit=f"{commit}-dirty")) == ["a.py", "b.py"]
    assert stale.changed_files(summary(commit="f" * 12)) is None
    assert stale.changed_files(summary(commit=None)) is None
    (tmp_path / "a.py").write_text(CODE.replace("twice x", "x + x"))
    (tmp_path / "b.py").unlink()
    monkeypatch.setattr(stale, "files_of", lambda summary: {"a.py"})
    stale.has_changed.cache_clear()
    assert stale.changed_files(summary(commit=commit)) == []
