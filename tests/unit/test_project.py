"""The documents of the repository agree, and its files are fit to be published."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from statistics import mean

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEST_COMMAND = (
    "python3 -m venv .venv && . .venv/bin/activate"
    " && pip install -c constraints.txt -e '.[test]' && pytest"
)
# The pattern does not match itself.
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
        pytest.skip("not a git checkout, so which files belong to the project is unknown")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [ROOT / name for name in names.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_citation_has_the_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == version()
    assert citation["license"] == tomllib.loads(read("pyproject.toml"))["project"]["license"]


def test_changelog_has_the_version() -> None:
    heads = [line for line in read("CHANGELOG.md").splitlines() if line.startswith("## ")]
    assert re.search(rf"(?<![\d.]){re.escape(version())}(?![\d.])", heads[0])


def test_readme_has_the_test_command_and_runs_existing_configs() -> None:
    code = "".join(re.findall(r"^```\w*\n(.*?)^```", read("README.md"), re.M | re.S))
    assert code.splitlines().count(TEST_COMMAND) == 1
    runs = set(re.findall(r"-m pipelines\.run ([a-z]\w+)", code))
    assert runs, "README.md: expected a command that runs a config"
    assert runs <= {path.stem for path in (ROOT / "configs").rglob("*.yaml")}


def test_no_file_names_a_path_of_a_machine(tracked: list[Path]) -> None:
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
def test_the_pattern_matches_paths_of_a_machine_alone(line: str, expected: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is expected


def test_every_config_opens_with_paper_command_cost_and_score() -> None:
    missing = []
    for path in sorted((ROOT / "configs").glob("**/*.yaml")):
        if path.relative_to(ROOT / "configs").parts[0] == "base":
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        comments = itertools.takewhile(lambda line: line.startswith("#"), lines)
        header = "\n".join(line.lstrip("# ") for line in comments)
        missing += [
            f"{path.relative_to(ROOT)}: {key}"
            for key in HEADER_KEYS
            if not re.search(f"^{key}", header, re.MULTILINE)
        ]
    assert not missing


def test_the_results_are_rendered_from_their_records() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    import render_results

    assert not render_results.outdated(ROOT / "docs")


def test_scores_under_autoattack_in_configs_are_those_of_the_records() -> None:
    shares: dict[str, list[tuple[float, float]]] = {}
    for row in json.loads(read("docs/results/leaderboard.json")):
        if row["autoattack_acc"] is not None:
            name = re.sub("^digits_methods/|_seed-?[0-9]+$", "", row["name"])
            accuracies = float(row["clean_acc"]), float(row["autoattack_acc"])
            shares.setdefault(name, []).append(accuracies)
    score = re.compile(r"^# Score: ([\d.]+) % clean, ([\d.]+) % under AutoAttack", re.MULTILINE)
    checked = 0
    for name, accuracies in shares.items():
        path = ROOT / "configs" / f"{name}.yaml"
        if path.is_file() and (match := score.search(path.read_text(encoding="utf-8"))):
            means = [mean(column) for column in zip(*accuracies, strict=True)]
            assert [float(share) for share in match.groups()] == pytest.approx(means, abs=0.06)
            checked += 1
    assert checked


def test_no_document_leaves_a_number_open() -> None:
    paths = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    names = ["README.md", *(str(path.relative_to(ROOT)) for path in paths)]
    assert not [name for name in names if "TO" + "DO" in read(name)]


def test_no_file_is_larger_than_a_mebibyte(tracked: list[Path]) -> None:
    large = [str(path.relative_to(ROOT)) for path in tracked if path.stat().st_size > MAX_BYTES]
    assert not large


def test_no_python_file_is_longer_than_400_lines(tracked: list[Path]) -> None:
    files = [path for path in tracked if path.suffix == ".py"]
    assert files
    assert not [
        str(path.relative_to(ROOT))
        for path in files
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES
    ]
