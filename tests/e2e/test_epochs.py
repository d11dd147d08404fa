"""A higher `train.epochs` continues a finished run where the schedule allows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.runner import run
from tests.e2e.runs import assert_same_weights, measured
from tests.products import slow_but

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
COSINE, CYCLIC = (
    f"the rates of {name} depend on how many epochs there are" for name in ("cosine", "cyclic")
)
STOPS = ["train.schedule={name: guided, stop: 1}", "optimizer.learning_rate=1e-9"]


def trained(workdir: Path, epochs: int, *overrides: str, stages: str = "train") -> Path:
    """Run some stages of digits_adv with so many epochs, and return its folder."""
    settings = [*SETTINGS, f"train.epochs={epochs}", *overrides]
    return run("digits_adv", settings, workdir, stages.split(","), smoke=False)


@pytest.mark.parametrize("schedule", slow_but([CONSTANT, GUIDED, PIECEWISE], [GUIDED]))
def test_more_epochs_later_equal_one_longer_run(
    tmp_path: Path, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = trained(tmp_path / "straight", 4, schedule)
    trained(tmp_path / "more", 2, schedule)
    first = (tmp_path / "more" / "digits_adv" / "history.csv").read_bytes()
    for name in ("eval.json", "model.onnx"):
        (tmp_path / "more" / "digits_adv" / name).write_text("of the first network")
    more = trained(tmp_path / "more", 4, schedule)
    assert (more / "evaluation.1" / "eval.json").read_text() == "of the first network"
    assert (more / "evaluation.1" / "model.onnx").exists() and not (more / "model.onnx").exists()
    assert not (more / "eval.json").exists() and (more / "evaluation.1" / "config.yaml").exists()
    assert "going on after 2 of 4 epochs and 0 batches" in capsys.readouterr().out
    assert_same_weights(more, straight)
    assert measured(more) == measured(straight) and len(measured(more)) == 4
    assert (more / "history.csv").read_bytes().startswith(first)
    assert [path.name for path in (tmp_path / "more").iterdir() if path.is_dir()] == ["digits_adv"]
    trained(tmp_path / "more", 4, schedule)
    assert "train: done before, skipped" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "epochs", "message"),
    [
        ("train.schedule=cosine", 3, COSINE),
        ("train.schedule=cyclic", 3, CYCLIC),
        (CONSTANT, 1, "more than 1 are trained: 1 begin anew"),
        (CONSTANT, 3, "there is no checkpoint to go on from: 3 begin anew"),
    ],
)
def test_run_that_cannot_be_continued_starts_over_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schedule: str, epochs: int, message: str
) -> None:
    folder = trained(tmp_path, 2, schedule)
    model = (folder / "model.keras").read_bytes()
    if "no checkpoint" in message:
        (folder / "checkpoints").rename(tmp_path / "elsewhere")
    trained(tmp_path, epochs, schedule)
    out = capsys.readouterr().out
    assert f"train.epochs: {message}" in out and "the former run is kept in" in out
    assert (tmp_path / "digits_adv.1" / "model.keras").read_bytes() == model
    assert len(measured(folder)) == epochs


@pytest.mark.slow
@pytest.mark.usefixtures("short_closing")
def test_more_epochs_leave_a_run_that_its_schedule_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path, 5, *STOPS, stages="train,attack_eval")
    files = [folder / name for name in ("model.keras", "eval.json")]
    before = [file.read_bytes() for file in files]
    assert len(measured(folder)) < 5
    capsys.readouterr()
    trained(tmp_path, 9, *STOPS, stages="train,attack_eval")
    out = capsys.readouterr().out
    epochs = len(measured(folder))
    assert f"train.schedule ended the run after {epochs}, more change nothing" in out
    assert "train: done before, skipped" in out and "attack_eval: done before, skipped" in out
    assert [file.read_bytes() for file in files] == before


@pytest.mark.usefixtures("short_closing")
def test_more_epochs_are_not_evaluated_before_they_are_trained(tmp_path: Path) -> None:
    trained(tmp_path, 1, CONSTANT)
    with pytest.raises(ValueError, match="one that was trained with another; add the stage train"):
        trained(tmp_path, 2, CONSTANT, stages="attack_eval")
