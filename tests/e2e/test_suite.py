"""Small suites and comparisons by their commands."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.e2e.conftest import Command

SUITE = """
surrogate: {config: digits_adv, set: {seed: 9}}
set:
  attacks:
    - {name: transfer, source: "${surrogate.folder}", attack: fgsm, label: Black box}
    - {name: pgd, steps: 2, label: PGD-2}
  stages: [train, attack_eval]
runs:
  - digits_adv
  - {config: digits_natural, set: {optimizer.learning_rate: 1.0e+30}}
"""


@pytest.mark.slow
def test_suite_runs_every_member_and_marks_the_failed_one(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE)
    process = command(str(path), "--smoke")
    assert process.returncode == 1 and "Traceback" not in process.stderr
    message = process.stderr.splitlines()[-1]
    assert message.startswith("error: 1 of 2 runs failed: digits_natural (") and "loss" in message
    assert "Black box" in process.stdout and "PGD-2" in process.stdout

    folder = tmp_path / "runs" / "mine"
    (row,) = csv.DictReader((folder / "table.csv").open())
    assert list(row) == ["method", "seed", "examples", "clean", "Black box", "PGD-2"]
    assert row["method"] == "adv" and row["examples"] == "32"
    page = (folder / "report" / "index.html").read_text()
    assert "digits_natural failed: " in page
    assert (folder / "surrogate" / "model.keras").is_file()
    assert not (folder / "surrogate" / "eval.json").exists()
    assert "loss" in (folder / "logs" / "digits_natural.log").read_text()

    # Run again, the suite skips its finished member.
    before = (folder / "digits_adv" / "eval.json").stat().st_mtime_ns
    again = command(str(path), "--smoke", "--set", "runs=[digits_adv]")
    assert again.returncode == 0, again.stderr
    assert "digits_adv: done before" in again.stdout
    assert (folder / "digits_adv" / "eval.json").stat().st_mtime_ns == before


def test_suite_refuses_a_mistake_before_any_member_runs(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("runs: [digits_adv, {config: digits_atlas, set: {method.alhpa: 1.0}}]")
    process = command(str(path))
    assert process.returncode == 2
    (message,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert "atlas: " in message and "did you mean 'alpha'" in message
    path.write_text("runs: [digits_adv, digits_atlas_search]")
    process = command(str(path))
    assert process.returncode == 2 and "stages: expected attack_eval among them" in process.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_suite_whose_runs_are_all_refused_writes_nothing(
    command: Command, tmp_path: Path
) -> None:
    """Each run finds only after reading the data that its batches are larger than the data set."""
    path = tmp_path / "mine.yaml"
    path.write_text("set: {data.batch_size: 5000}\nruns: [digits_adv, digits_natural]")
    process = command(str(path))
    assert process.returncode == 2
    message = process.stderr.splitlines()[-1]
    assert message.startswith("error: mine: every run is refused; digits_adv: ")
    assert "data.batch_size: expected at most the" in message
    assert not (tmp_path / "runs").exists()
