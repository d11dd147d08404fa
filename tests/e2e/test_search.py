"""Small searches: their files, resumption after a kill, and several processes."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines import config as configs
from pipelines.runner import run
from tests.e2e.runs import (
    assert_same_weights,
    free_ports,
    history,
    last_checkpoint,
    start,
    wait_until,
)
from tfrobust.errors import UserError

NAME = "digits_atlas_search"
SMALL = [
    "model={name: small_cnn, filters: [4], kernel: 3, units: 16}",
    "train.epochs=3",
    "train.steps_per_epoch=4",
    "train.epsilon_ramp_epochs=1",
    "train.validation_attack={name: pgd, steps: 2}",
    "train.checkpoint_minutes=0",
    "attacks={name: pgd, steps: 2}",
    "search.trials=3",
]


def small(workdir: Path, *overrides: str, stages: list[str] | None = None) -> Path:
    """Run the small search, or some of its stages, and return its folder."""
    return run(NAME, [*SMALL, *overrides], workdir, stages, smoke=False)


def trials(folder: Path) -> list[dict[str, str]]:
    """Return the rows of trials.csv by the names of their columns."""
    with (folder / "search" / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder: Path) -> EventAccumulator:
    """Return the events that TensorBoard reads in a folder."""
    return EventAccumulator(str(next(folder.glob("events*")))).Reload()


def best(listed: list[dict[str, str]]) -> dict[str, str]:
    """Return the row of the highest robust accuracy, and of those the highest clean accuracy."""
    return max(listed, key=lambda r: (float(r["val_robust_accuracy"]), float(r["val_accuracy"])))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a search that ran without interruption."""
    return small(tmp_path_factory.mktemp("finished"))


def test_files_and_page_of_a_finished_search(finished: Path) -> None:
    listed = trials(finished)
    assert [row["trial"] for row in listed] == ["0", "1", "2"]
    for row in listed:
        assert row["status"] == "completed" and row["epochs"] == "3"
        assert 1e-4 <= float(row["method.alpha"]) <= 1e-1 and 0 <= float(row["method.beta"]) <= 10
        epochs = history(finished / "search" / f"trial_{row['trial']}")
        last_best = max(epochs, key=lambda e: (float(e["val_robust_accuracy"]), int(e["epoch"])))
        for column in ("val_accuracy", "val_robust_accuracy"):
            assert float(row[column]) == float(last_best[column])
    top = best(listed)
    config = configs.read(finished / "search" / "best.yaml")
    assert config["method"]["alpha"] == float(top["method.alpha"]) and "search" not in config
    assert config["stages"] == ["train", "attack_eval", "export", "report"]

    page = (finished / "report" / "index.html").read_text()
    assert "https://" not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 4 and f"run trial {top['trial']} by itself" in page
    assert {path.name for path in (finished / "report" / "figures").iterdir()} == {
        "front.svg",
        "map-method.alpha-method.beta.svg",
        "over-method.alpha.svg",
        "over-method.beta.svg",
    }
    board = finished / "tensorboard"
    assert events(board).PluginTagToContent("hparams").keys() == {"_hparams_/experiment"}
    for row in listed:
        trial = events(board / f"trial_{row['trial']}")
        assert "_hparams_/session_start_info" in trial.PluginTagToContent("hparams")
        for column in ("val_accuracy", "val_robust_accuracy"):
            (shown,) = trial.Tensors(column)
            assert (
                tf.make_ndarray(shown.tensor_proto) == np.float32(row[column]) and shown.step == 3
            )


def test_a_damaged_table_of_trials_is_written_again(finished: Path, tmp_path: Path) -> None:
    """The search was skipped as done, and every start ended at the table."""
    folder = shutil.copytree(finished, tmp_path / NAME)
    for name in ("trials.csv", "best.yaml"):
        (folder / "search" / name).write_text("trial,method.al")
        small(tmp_path)
        content = (finished / "search" / name).read_text()
        assert (folder / "search" / name).read_text() == content


def test_the_best_config_has_the_attacks_of_the_config_as_it_is_now(
    finished: Path, tmp_path: Path
) -> None:
    """The search was skipped as done, and best.yaml kept the former attacks."""
    folder = shutil.copytree(finished, tmp_path / NAME)
    networks = {file: file.stat().st_mtime_ns for file in folder.rglob("model.keras")}
    small(tmp_path, "attacks=[autoattack]")
    config = configs.read(folder / "search" / "best.yaml")
    assert config["attacks"] == [{"name": "autoattack"}]
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("model.keras")} == networks
    assert trials(folder) == trials(finished)


@pytest.mark.slow
@pytest.mark.usefixtures("short_closing")
def test_best_config_trains_to_the_same_network(finished: Path, tmp_path: Path) -> None:
    folder = run(
        str(finished / "search" / "best.yaml"), [], tmp_path, ["train", "attack_eval"], smoke=False
    )
    assert folder.name == f"{NAME}_best"
    top = best(trials(finished))
    assert_same_weights(folder, finished / "search" / f"trial_{top['trial']}")
    assert json.loads((folder / "eval.json").read_text())["examples"] == 360


def started(workdir: Path, *overrides: str, **env: str) -> subprocess.Popen[str]:
    """Return the process of the small search."""
    sets = [*SMALL, *overrides]
    return start(NAME, workdir=workdir, overrides=sets, no_proxy="127.0.0.1", **env)


@pytest.mark.slow
def test_killed_search_resumes_to_the_same_trials(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The trial that was running resumes from its last checkpoint."""
    process, folder = started(tmp_path), tmp_path / NAME
    second = folder / "search" / "trial_1"
    wait_until(lambda: last_checkpoint(second) >= 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [row["status"] for row in trials(folder)] == ["completed"]
    first = (folder / "search" / "trial_0" / "model.keras").stat().st_mtime_ns
    small(tmp_path)
    out = capfd.readouterr().out
    assert "search: going on after 1 trials" in out and "3 of 3: trial 2" in out
    assert "1 of 3" not in out
    assert "train: going on after" in (second / "train.log").read_text()
    assert (folder / "search" / "trial_0" / "model.keras").stat().st_mtime_ns == first
    assert trials(folder) == trials(finished)
    for trial in ("trial_0", "trial_1", "trial_2"):
        assert_same_weights(folder / "search" / trial, finished / "search" / trial)


@pytest.mark.slow
def test_more_trials_continue_a_search_and_another_space_starts_a_new_one(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished, tmp_path / NAME)
    before = trials(folder)
    small(tmp_path, "search.trials=4", stages=["search"])
    assert "search: 4 of 4: trial " in capfd.readouterr().out
    more = trials(folder)
    assert len(more) == 4
    assert [{**row, "pareto": ""} for row in more[:3]] == [{**row, "pareto": ""} for row in before]
    small(tmp_path, "search.trials=4", stages=["search"])
    assert "search: done before, skipped" in capfd.readouterr().out
    small(tmp_path, "search.trials=1", "search.space.method.beta=null", stages=["search"])
    assert "the former run is kept in" in capfd.readouterr().out
    assert "method.beta" not in trials(folder)[0]


def test_search_continues_after_a_trial_that_diverges(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rates = "search.space={optimizer.learning_rate: {choice: [0.05, 1.0e+35]}}"
    folder = small(tmp_path, rates)
    failed, completed = sorted(trials(folder), key=lambda row: row["status"], reverse=True)
    assert (failed["status"], completed["status"]) == ("failed", "completed")
    assert "the loss is not finite" in failed["reason"] and "\n" not in failed["reason"]
    assert "failed: train: the loss is not finite" in capfd.readouterr().out
    assert "1 of them failed" in (folder / "report" / "index.html").read_text()
    # With two choices KerasTuner ends before the third trial.
    with pytest.raises(UserError, match="expected a trial that ends, all failed: train: the loss"):
        small(tmp_path / "all", rates.replace("0.05, ", ""))


def test_min_clean_that_no_trial_reaches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search.min_clean: expected at most the 0\.\d+ that tri"):
        small(tmp_path, "search.trials=1", "search.min_clean=1.0")
    assert not (tmp_path / NAME / "search" / "best.yaml").exists()
    small(tmp_path, "search.trials=1", "search.min_clean=1.0", stages=["report"])
    page = (tmp_path / NAME / "report" / "index.html").read_text()
    assert "none of at least 100.0 % clean that is complete" in page
    search = tmp_path / NAME / "search"
    trained = (search / "trial_0" / "model.keras").stat().st_mtime_ns
    small(tmp_path, "search.trials=1", "search.min_clean=0.01")  # the trial is chosen, not repeated
    assert (search / "trial_0" / "model.keras").stat().st_mtime_ns == trained
    assert (search / "best.yaml").exists()
    with pytest.raises(UserError, match="search.min_clean: expected at most"):
        small(tmp_path, "search.trials=1", "search.min_clean=1.0")
    assert not (search / "best.yaml").exists()


@pytest.mark.slow
def test_hyperband_continues_the_best_trial_of_a_bracket(tmp_path: Path) -> None:
    """Three trials train for one epoch and the best of them for three; then two train for three."""
    folder = small(tmp_path, "search.tuner=hyperband", "search.trials=null")
    listed = trials(folder)
    assert [row["epochs"] for row in listed] == ["1", "1", "1", "3", "3", "3"]
    short = max(listed[:3], key=lambda row: float(row["val_robust_accuracy"]))
    keys = ("method.alpha", "method.beta")
    assert [listed[3][key] for key in keys] == [short[key] for key in keys]
    first = folder / "search" / f"trial_{short['trial']}"
    assert "going on after 1 of 3 epochs" in (first / "train.log").read_text()
    values = [f"{key}={short[key]}" for key in keys]
    uncut = run(
        "digits_atlas",
        [*SMALL[:-1], "train.schedule={name: guided, patience: 1, stop: 3}", *values],
        tmp_path,
        ["train"],
        smoke=False,
    )
    assert_same_weights(first, uncut)


@pytest.mark.slow
def test_two_workers_share_the_trials_and_a_killed_one_resumes(
    finished: Path, tmp_path: Path
) -> None:
    (port,) = free_ports(1)

    def join(name: str) -> subprocess.Popen[str]:
        env = {"KERASTUNER_ORACLE_PORT": str(port), "KERASTUNER_TUNER_ID": name}
        return started(tmp_path, "search.trials=4", **env)

    chief, one, two = (join(name) for name in ("chief", "one", "two"))
    folder = tmp_path / NAME
    both = [folder / "search" / name for name in ("trial_0", "trial_1")]
    wait_until(lambda: all(last_checkpoint(trial) for trial in both), chief)
    one.send_signal(signal.SIGKILL)
    one.communicate()
    again = join("one")
    (output, chief_errors), *workers = (p.communicate(timeout=500) for p in (chief, again, two))
    assert [process.returncode for process in (chief, again, two)] == [0, 0, 0], workers
    assert "Traceback" not in chief_errors and "search: 4 of 4: trial" in output
    assert all("Traceback" not in err and "completed" in out for out, err in workers)
    # The values are drawn in the order of the trials, whoever runs them.
    for row, expected in zip(trials(folder)[:3], trials(finished)[:3], strict=True):
        assert {**row, "pareto": ""} == {**expected, "pareto": ""}
    assert len(trials(folder)) == 4 and (folder / "report" / "index.html").is_file()
