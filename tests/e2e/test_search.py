"""Small searches: their files, resumption after a kill, and several processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines import config as configs
from pipelines.runner import run
from tests.e2e.conftest import ROOT
from tfrobust.errors import UserError
from tfrobust.models import load_keras

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
    return run(NAME, [*SMALL, *overrides], workdir, stages, smoke=False)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "search" / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> list[np.ndarray]:
    return load_keras(folder).get_weights()


def equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def events(folder: Path) -> EventAccumulator:
    """Return what TensorBoard reads in a folder."""
    return EventAccumulator(str(next(folder.glob("events*")))).Reload()


def best(listed: list[dict[str, str]]) -> dict[str, str]:
    return max(listed, key=lambda r: (float(r["val_robust_accuracy"]), float(r["val_accuracy"])))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("finished"))


def test_what_a_search_leaves(finished: Path) -> None:
    listed = rows(finished)
    assert [row["trial"] for row in listed] == ["0", "1", "2"]
    for row in listed:
        assert row["status"] == "completed" and row["epochs"] == "3"
        assert 1e-4 <= float(row["method.alpha"]) <= 1e-1 and 0 <= float(row["method.beta"]) <= 10
        history = list(
            csv.DictReader((finished / f"search/trial_{row['trial']}/history.csv").open())
        )
        kept = max(history, key=lambda e: (float(e["val_robust_accuracy"]), int(e["epoch"])))
        for column in ("val_accuracy", "val_robust_accuracy"):
            assert float(row[column]) == float(kept[column])
    top = best(listed)
    config = configs.read(finished / "search" / "best.yaml")
    assert config["method"]["alpha"] == float(top["method.alpha"]) and "search" not in config
    assert config["stages"] == ["train", "attack_eval", "report", "export"]

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


@pytest.mark.usefixtures("short_closing")
def test_the_best_is_a_config_that_trains_to_the_same_network(
    finished: Path, tmp_path: Path
) -> None:
    folder = run(
        str(finished / "search" / "best.yaml"), [], tmp_path, ["train", "attack_eval"], smoke=False
    )
    assert folder.name == f"{NAME}_best"
    top = best(rows(finished))
    equal(weights(folder), weights(finished / "search" / f"trial_{top['trial']}"))
    assert json.loads((folder / "eval.json").read_text())["examples"] == 360


def start(workdir: Path, *overrides: str, **env: str) -> subprocess.Popen[str]:
    sets = [word for setting in [*SMALL, *overrides] for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", NAME, *sets, "--workdir", str(workdir)],
        cwd=ROOT,
        env={**os.environ, "no_proxy": "127.0.0.1", **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def saved(folder: Path) -> int:
    """Return the step of a trial's newest checkpoint."""
    return max((int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*")), default=0)


@pytest.mark.slow
def test_killed_and_started_again_it_goes_on(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A killed search reaches the same trials.

    The trial that was running resumes from its last checkpoint.
    """
    process, folder = start(tmp_path), tmp_path / NAME
    second = folder / "search" / "trial_1"
    until = time.monotonic() + 240
    while saved(second) < 5:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1][-2000:]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [row["status"] for row in rows(folder)] == ["completed"]
    first = (folder / "search" / "trial_0" / "model.keras").stat().st_mtime_ns
    small(tmp_path)
    out = capfd.readouterr().out
    assert "search: going on after 1 trials" in out and "3 of 3: trial 2" in out
    assert "1 of 3" not in out
    assert "train: going on after" in (second / "train.log").read_text()
    assert (folder / "search" / "trial_0" / "model.keras").stat().st_mtime_ns == first
    assert rows(folder) == rows(finished)
    for trial in ("trial_0", "trial_1", "trial_2"):
        equal(weights(folder / "search" / trial), weights(finished / "search" / trial))


def test_more_trials_go_on_and_another_space_is_another_search(
    finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = rows(finished)
    small(finished.parent, "search.trials=4", stages=["search"])
    assert "search: 4 of 4: trial " in capfd.readouterr().out
    more = rows(finished)
    assert len(more) == 4
    assert [{**row, "pareto": ""} for row in more[:3]] == [{**row, "pareto": ""} for row in before]
    small(finished.parent, "search.trials=4", stages=["search"])
    assert "search: done before, skipped" in capfd.readouterr().out
    small(finished.parent, "search.trials=1", "search.space.method.beta=null", stages=["search"])
    assert "the former run is kept in" in capfd.readouterr().out
    assert "method.beta" not in rows(finished)[0]


def test_a_trial_that_diverges_fails_and_the_search_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rates = "search.space={optimizer.learning_rate: {choice: [0.05, 1.0e+35]}}"
    folder = small(tmp_path, rates)
    failed, done = sorted(rows(folder), key=lambda row: row["status"], reverse=True)
    assert (failed["status"], done["status"]) == ("failed", "completed")
    assert "the loss is not finite" in failed["reason"] and "\n" not in failed["reason"]
    assert "failed: train: the loss is not finite" in capfd.readouterr().out
    assert "1 of them failed" in (folder / "report" / "index.html").read_text()
    # The two choices are all there is: KerasTuner ends before the third trial.
    with pytest.raises(UserError, match="expected a trial that ends, all failed: train: the loss"):
        small(tmp_path / "all", rates.replace("0.05", "1.0e+36"))


def test_a_least_clean_accuracy_that_no_trial_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search.min_clean: expected at most the 0\.\d+ that tri"):
        small(tmp_path, "search.trials=2", "search.min_clean=1.0")
    assert not (tmp_path / NAME / "search" / "best.yaml").exists()
    small(tmp_path, "search.trials=2", "search.min_clean=1.0", stages=["report"])
    page = (tmp_path / NAME / "report" / "index.html").read_text()
    assert "none of at least 100.0 % clean that is complete" in page


@pytest.mark.slow
def test_hyperband_goes_on_with_the_best_of_a_bracket(tmp_path: Path) -> None:
    """Hyperband continues the best trial of a bracket.

    Three trials train for one epoch and the best of them to three; then two trials train for three
    at once.
    """
    folder = small(tmp_path, "search.tuner=hyperband", "search.trials=null")
    listed = rows(folder)
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
    equal(weights(first), weights(uncut))


def free_port() -> str:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return str(held.getsockname()[1])


@pytest.mark.slow
def test_two_workers_share_the_trials_and_one_that_dies_goes_on(
    finished: Path, tmp_path: Path
) -> None:
    port: dict[str, Any] = {"KERASTUNER_ORACLE_PORT": free_port()}

    def join(name: str) -> subprocess.Popen[str]:
        return start(tmp_path, "search.trials=4", **port, KERASTUNER_TUNER_ID=name)

    chief, one, two = (join(name) for name in ("chief", "one", "two"))
    folder, until = tmp_path / NAME, time.monotonic() + 240
    while not (saved(folder / "search/trial_0") and saved(folder / "search/trial_1")):
        assert chief.poll() is None and time.monotonic() < until, chief.communicate()
        time.sleep(0.01)
    one.send_signal(signal.SIGKILL)
    one.communicate()
    again = join("one")
    (output, chief_errors), *others = (p.communicate(timeout=500) for p in (chief, again, two))
    assert [process.returncode for process in (chief, again, two)] == [0, 0, 0], others
    assert "Traceback" not in chief_errors and "search: 4 of 4: trial" in output
    assert all("Traceback" not in err and "completed" in out for out, err in others)
    # The values are drawn in the order of the trials, whoever runs them.
    for ours, theirs in zip(rows(folder)[:3], rows(finished)[:3], strict=True):
        assert {**ours, "pareto": ""} == {**theirs, "pareto": ""}
    assert len(rows(folder)) == 4 and (folder / "report" / "index.html").is_file()
