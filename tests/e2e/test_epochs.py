"""A higher `train.epochs` continues a finished run where the schedule allows it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from pipelines.runner import run
from tests.products import slow_but
from tfrobust.models import load_keras

SETTINGS = [
    "train.steps_per_epoch=3",
    "train.epsilon_ramp_epochs=1",
    "train.validation_attack={name: pgd, steps: 2}",
    "model={name: small_cnn, filters: [2], kernel: 3, units: 8}",
    "data.validation=100",
    "attacks=fgsm",
]
CONSTANT = "train.schedule=constant"
GUIDED = "train.schedule={name: guided, patience: 1}"
PIECEWISE = "train.schedule={name: piecewise, epochs: [2]}"
STOPS = ["train.schedule={name: guided, stop: 1}", "optimizer.learning_rate=1e-9"]


def trained(workdir: Path, epochs: int, *overrides: str, stages: str = "train") -> Path:
    settings = [*SETTINGS, f"train.epochs={epochs}", *overrides]
    return run("digits_adv", settings, workdir, stages.split(","), smoke=False)


def rows(folder: Path) -> list[dict[str, str]]:
    skip = ("finished_at", "seconds_per_batch", "validation_share")
    with (folder / "history.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in skip} for row in csv.DictReader(file)]


@pytest.mark.parametrize("schedule", slow_but([CONSTANT, GUIDED, PIECEWISE], [GUIDED]))
def test_more_epochs_are_those_of_a_run_that_was_asked_for_them(
    tmp_path: Path, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = trained(tmp_path / "straight", 4, schedule)
    trained(tmp_path / "more", 1, schedule)
    first = (tmp_path / "more" / "digits_adv" / "history.csv").read_bytes()
    trained(tmp_path / "more", 3, schedule)
    more = trained(tmp_path / "more", 4, schedule)
    assert "going on after 3 of 4 epochs and 0 batches" in capsys.readouterr().out
    for ours, theirs in zip(
        load_keras(more).get_weights(), load_keras(straight).get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert rows(more) == rows(straight) and len(rows(more)) == 4
    assert (more / "history.csv").read_bytes().startswith(first)
    assert [path.name for path in (tmp_path / "more").iterdir() if path.is_dir()] == ["digits_adv"]
    trained(tmp_path / "more", 4, schedule)
    assert "train: done before, skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("schedule", "epochs", "message"),
    [
        ("train.schedule=cosine", 3, "the rates of cosine depend on how many epochs there are"),
        pytest.param(
            "train.schedule=cyclic",
            3,
            "the rates of cyclic depend on how many epochs there are",
            marks=pytest.mark.slow,
        ),
        pytest.param(CONSTANT, 1, "more than 1 are trained: 1 begin anew", marks=pytest.mark.slow),
    ],
)
def test_others_begin_anew_and_say_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schedule: str, epochs: int, message: str
) -> None:
    folder = trained(tmp_path, 2, schedule)
    model = (folder / "model.keras").read_bytes()
    trained(tmp_path, epochs, schedule)
    out = capsys.readouterr().out
    assert f"train.epochs: {message}" in out and "the former run is kept in" in out
    assert (tmp_path / "digits_adv.1" / "model.keras").read_bytes() == model
    assert len(rows(folder)) == epochs


def test_without_checkpoints_nothing_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path, 1, CONSTANT)
    (folder / "checkpoints").rename(tmp_path / "elsewhere")
    trained(tmp_path, 2, CONSTANT)
    assert "there is no checkpoint to go on from: 2 begin anew" in capsys.readouterr().out
    assert (tmp_path / "digits_adv.1" / "model.keras").is_file()


@pytest.mark.usefixtures("short_closing")
def test_a_run_that_its_schedule_ended_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path, 5, *STOPS, stages="train,attack_eval")
    made = [(folder / name).read_bytes() for name in ("model.keras", "eval.json")]
    assert len(rows(folder)) < 5
    capsys.readouterr()
    trained(tmp_path, 9, *STOPS, stages="train,attack_eval")
    out = capsys.readouterr().out
    assert f"train.schedule ended the run after {len(rows(folder))}, more change nothing" in out
    assert "train: done before, skipped" in out and "attack_eval: done before, skipped" in out
    assert [(folder / name).read_bytes() for name in ("model.keras", "eval.json")] == made


@pytest.mark.usefixtures("short_closing")
def test_more_epochs_are_not_evaluated_before_they_are_trained(tmp_path: Path) -> None:
    trained(tmp_path, 1, CONSTANT)
    with pytest.raises(ValueError, match="one that was trained with another; add the stage train"):
        trained(tmp_path, 2, CONSTANT, stages="attack_eval")
