"""A result is stale if code that computed it has changed, and not if its text has."""

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
    evaluation = {
        "examples": 10,
        "clean_accuracy": 0.8,
        "attacks": [
            {
                "name": "Square",
                "examples": 10,
                "robust_accuracy": 0.5,
                "config": {"name": "square"},
            }
        ],
        "threat": {"norm": "linf", "eps": 0.1},
        "commit": commit,
        "training_commit": commit,
    }
    config = {
        "method": {"name": method},
        "model": {"name": "small_cnn"},
        "data": {"name": "digits"},
    }
    return {"config": config, "evaluation": Record.parse(evaluation)}


@pytest.mark.parametrize(
    ("after", "changed"),
    [
        (CODE.replace("Return twice x.", "Return x + x.").replace("import os", "# text"), False),
        (CODE + "\n\ndef new():\n    return 1\n", False),
        (CODE.replace("2 * x", "3 * x"), True),
        (CODE.replace("double", "twice"), True),
    ],
)
def test_only_a_statement_that_was_there_counts(after: str, changed: bool) -> None:
    assert (not stale.statements(CODE) <= stale.statements(after)) is changed


def test_files_are_those_of_the_run() -> None:
    files = stale.files_of(summary())
    used = ("methods/adv", "methods/base", "attacks/square", "models/cnn", "data/digits", "losses")
    assert {f"tfrobust/{name}.py" for name in used} <= files
    unused = ("methods/atlas", "attacks/fab", "models/resnets", "data/tfds", "record", "io")
    assert not {f"tfrobust/{name}.py" for name in unused} & files
    nested = {"name": "awp", "method": {"name": "trades"}}
    files = stale.files_of(summary() | {"config": {"method": nested}})
    assert {"tfrobust/methods/awp.py", "tfrobust/methods/trades.py"} <= files


def test_changes_are_those_since_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

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
