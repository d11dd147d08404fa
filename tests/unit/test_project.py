"""The repository: its documents agree and its files are fit to publish."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEST_COMMAND = (
    "python3 -m venv .venv && . .venv/bin/activate"
    " && pip install -c constraints.txt -e '.[test]' && pytest"
)
# Written so that they do not match themselves.
MACHINE_PATH = re.compile(r"(?<![A-Za-z0-9_.\-/])/(?:home|mnt|opt|root|srv|work|Users)/|file:/+\w")
HEADER_KEYS = ("Paper:", "Command:", "Cost:", "Score:")
MAX_BYTES = 1024 * 1024
MAX_LINES = 400


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def version() -> str:
    match = re.search(r'^__version__ = "([^"]+)"$', read("tfrobust/__init__.py"), re.MULTILINE)
    assert match, 'tfrobust/__init__.py: expected a line __version__ = "..."'
    return match[1]


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Return the files that git tracks or would track if they were added now."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project is not known")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def test_citation_has_the_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == version()
    assert citation["license"] == tomllib.loads(read("pyproject.toml"))["project"]["license"]


def test_changelog_has_the_version() -> None:
    heads = [line for line in read("CHANGELOG.md").splitlines() if line.startswith("## ")]
    assert re.search(rf"(?<![\d.]){re.escape(version())}(?![\d.])", heads[0])


def fenced_lines(text: str) -> list[str]:
    return [
        line
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
        for line in block.splitlines()
    ]


def test_readme_has_both_commands() -> None:
    lines = fenced_lines(read("README.md"))
    assert lines.count(TEST_COMMAND) == 1
    runs = [name for line in lines for name in re.findall(r"-m pipelines\.run ([a-z]\w+)", line)]
    assert runs, "README.md: expected a command that runs a config"
    names = {path.stem for path in (ROOT / "configs").rglob("*.yaml")}
    missing = [name for name in runs if name not in names]
    assert not missing


def test_no_machine_paths(tracked: list[Path]) -> None:
    matches = []
    for path in tracked:
        text = path.read_bytes().decode("utf-8", errors="ignore")
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                matches.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not matches, "\n".join(matches)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("data_dir: /" + "work/data", True),
        ("/" + "root/x", True),
        ("file:/" + "//opt" + "/pypi/simple", True),
        ("https://example.org/work/x", False),
        ("the workshop", False),
    ],
)
def test_machine_path_pattern(line: str, expected: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is expected


def test_configs_say_what_they_are() -> None:
    poor = {}
    for path in sorted((ROOT / "configs").glob("**/*.yaml")):
        if path.relative_to(ROOT / "configs").parts[0] == "base":
            continue
        header = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            header.append(line.lstrip("# "))
        absent = [key for key in HEADER_KEYS if not any(line.startswith(key) for line in header)]
        if absent:
            poor[str(path.relative_to(ROOT))] = absent
    assert not poor


def test_the_results_are_rendered_from_their_records() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    import render_results

    assert not render_results.outdated(ROOT / "docs")


def test_no_document_waits_for_a_number() -> None:
    names = ["README.md", *(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml"))]
    # Written so that it does not match itself.
    assert not [name for name in names if "TO" + "DO" in read(name)]


def test_files_are_small(tracked: list[Path]) -> None:
    large = [str(p.relative_to(ROOT)) for p in tracked if p.stat().st_size > MAX_BYTES]
    assert not large


def test_python_files_are_short(tracked: list[Path]) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked
        if path.suffix == ".py"
    }
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
