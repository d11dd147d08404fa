"""Documents: their Python runs, their commands name existing configs, generated ones are fresh."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from pipelines import config as configs
from pipelines.early_check import check
from pipelines.runner import run
from tests.e2e.runs import ROOT
from tests.products import slow_but

sys.path.insert(0, str(ROOT / "tools"))
import render_configuration

DOCUMENTS = {"README.md": ROOT / "README.md"} | {
    path.relative_to(ROOT / "docs").as_posix(): path
    for path in sorted((ROOT / "docs").rglob("*.md"))
}


def blocks(language: str) -> dict[str, list[str]]:
    """Return the code blocks of a language by document; documents without one are left out."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.M | re.S)
    texts = {name: path.read_text(encoding="utf-8") for name, path in DOCUMENTS.items()}
    return {name: code for name, text in texts.items() if (code := pattern.findall(text))}


PYTHON, BASH = blocks("python"), blocks("bash")


def test_documents_have_python_blocks() -> None:
    names = {"README.md", "quickstart.md", "your_own.md", "add_a_method.md", "evaluation.md"}
    assert names <= PYTHON.keys()


FAST = ("README.md", "add_a_method.md", "add_an_attack.md")


@pytest.mark.parametrize("name", slow_but(PYTHON, FAST))
def test_python_of_a_document_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "\n".join(PYTHON[name])
    monkeypatch.chdir(tmp_path)
    for config in dict.fromkeys(re.findall(r"\bruns/(\w+)", code)):
        if config in configs.available():  # the code itself makes the other folders
            run(config, [], tmp_path / "runs", None, smoke=True)
    document = types.ModuleType("document")
    monkeypatch.setitem(sys.modules, "document", document)  # dataclasses look it up there
    exec(compile(code, name, "exec"), vars(document))
    if name == "README.md":
        assert "PGD-20" in capsys.readouterr().out
        assert (tmp_path / "saved_model" / "saved_model.pb").is_file()


@pytest.mark.parametrize("name", BASH)
def test_commands_of_a_document_have_existing_configs_and_keys(name: str, tmp_path: Path) -> None:
    for line in "".join(BASH[name]).splitlines():
        check_command(line, tmp_path)


def test_commands_of_the_configs_have_existing_configs_and_keys(tmp_path: Path) -> None:
    commands = [
        line
        for path in (ROOT / "configs").rglob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("# Command: ")
    ]
    assert len(commands) > 100
    for line in commands:
        check_command(line, tmp_path)


def check_command(line: str, workdir: Path) -> None:
    """Check the names and keys of a command that runs a config, unless words stand for others."""
    match = re.search(r"(?:python -m pipelines\.run|tfrobust run) (.*)", line)
    if match is None:
        return
    words = shlex.split(re.split(r"&&|, then", match[1])[0], comments=True)
    if re.search(r"NAME|PATH|\.yaml$", words[0]):  # the user's own file
        return
    settings = [after for word, after in zip(words, words[1:], strict=False) if word == "--set"]
    check(words[0], [text for text in settings if "NAME" not in text], workdir)


def test_rendered_configuration_page_is_up_to_date(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["render_configuration.py", "--check"])
    assert render_configuration.main() == 0, capsys.readouterr().err
