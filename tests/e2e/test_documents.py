"""Documents: their Python runs, their commands name existing configs, generated ones are fresh."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pipelines import config as configs
from pipelines.runner import run
from tests.e2e.conftest import ROOT
from tests.products import slow_but

DOCUMENTS = {"README.md": ROOT / "README.md"} | {
    path.relative_to(ROOT / "docs").as_posix(): path
    for path in sorted((ROOT / "docs").rglob("*.md"))
}
LANGUAGES = {
    kind: {
        name: blocks
        for name, path in DOCUMENTS.items()
        if (
            blocks := re.findall(
                rf"^```{kind}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S
            )
        )
    }
    for kind in ("python", "bash")
}


def test_there_are_some() -> None:
    assert {"README.md", "quickstart.md", "your_own.md", "add_a_method.md", "evaluation.md"} <= set(
        LANGUAGES["python"]
    )


FAST = ("README.md", "quickstart.md", "add_a_method.md", "add_an_attack.md")


@pytest.mark.parametrize("name", slow_but(LANGUAGES["python"], FAST))
def test_python_of_a_document_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "\n".join(LANGUAGES["python"][name])
    monkeypatch.chdir(tmp_path)
    for needed in dict.fromkeys(re.findall(r"\bruns/(\w+)", code)):
        if needed in configs.available():  # the others are made by the code itself
            run(needed, [], tmp_path / "runs", None, smoke=True)
    document = types.ModuleType("document")
    monkeypatch.setitem(sys.modules, "document", document)  # dataclasses look it up there
    exec(compile(code, name, "exec"), vars(document))
    if name == "README.md":
        assert "PGD-20" in capsys.readouterr().out
        assert (tmp_path / "saved_model" / "saved_model.pb").is_file()


@pytest.mark.parametrize("name", LANGUAGES["bash"])
def test_commands_of_a_document_name_configs_that_there_are(name: str) -> None:
    lines = [line for block in LANGUAGES["bash"][name] for line in block.splitlines()]
    for line in lines:
        _, command, rest = line.partition("python -m pipelines.run ")
        words = shlex.split(rest.split("&&")[0])
        if not command or words[0] == "NAME|PATH":
            continue
        settings = [after for word, after in zip(words, words[1:], strict=False) if word == "--set"]
        configs.load(configs.find(words[0]), settings)


def test_the_keys_of_a_config_are_those_of_the_constructors() -> None:
    line = [sys.executable, "tools/render_configuration.py", "--check"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
