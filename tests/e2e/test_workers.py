"""Two processes of one cluster give the result of one process, and all stop if one dies."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.e2e.runs import free_ports, history, last_checkpoint, start, wait_until

FEW = ["train.epochs=3", "train.epsilon_ramp_epochs=1", "train.schedule=constant"]


def cluster() -> list[str]:
    """Return the TF_CONFIG of each of two workers."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    return [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        for index in range(2)
    ]


def started(workdir: Path, tf_config: str, overrides: list[str]) -> subprocess.Popen[str]:
    """Return the process of one worker."""
    return start("digits_atlas", workdir=workdir, overrides=overrides, TF_CONFIG=tf_config)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code of a process and what it wrote to stdout and then to stderr."""
    out, err = process.communicate(timeout=200)
    return process.returncode, out + err


def weights(folder: Path) -> np.ndarray:
    """Return all weights of the network in a run folder as one vector."""
    network = keras.saving.load_model(folder / "model.keras", compile=False)
    return np.concatenate([w.ravel() for w in network.get_weights()])


@pytest.mark.slow
def test_two_workers_train_what_one_process_trains(tmp_path: Path) -> None:
    few = [*FEW, "train.epochs=1", "train.steps_per_epoch=8", "data.validation=61"]
    few += ["attacks=[{name: pgd, steps: 5}, {name: square, queries: 20}]"]
    runs = [started(tmp_path / "two", config, few) for config in cluster()]
    runs.append(started(tmp_path / "one", "", few))
    for run in runs:
        code, out = ended(run)
        assert code == 0, out
    first, second = (tmp_path / "two" / n for n in ("digits_atlas", "digits_atlas.worker1"))
    one = tmp_path / "one" / "digits_atlas"
    np.testing.assert_array_equal(weights(first), weights(second))
    np.testing.assert_allclose(weights(first), weights(one), atol=1e-6)
    flags = [np.load(folder / "flags.npz") for folder in (first, second, one)]
    for name in flags[0].files:
        np.testing.assert_array_equal(flags[0][name], flags[1][name])
        assert np.mean(flags[0][name] == flags[2][name]) > 0.99  # the weights differ by rounding


@pytest.mark.slow
def test_workers_stop_when_one_dies_and_resume_together(tmp_path: Path) -> None:
    stages = [*FEW, "stages=[train]"]
    runs = [started(tmp_path, config, stages) for config in cluster()]
    folders = [tmp_path / name for name in ("digits_atlas", "digits_atlas.worker1")]
    wait_until(lambda: all(last_checkpoint(folder) for folder in folders), runs[0])
    runs[1].send_signal(signal.SIGKILL)
    code, out = ended(runs[0])
    assert code == 2 and "Traceback" not in out
    assert "a worker has stopped or is out of reach" in out.splitlines()[-1]
    again = [ended(run) for run in [started(tmp_path, config, stages) for config in cluster()]]
    assert [code for code, _ in again] == [0, 0], again
    assert "train: going on after" in again[0][1]
    assert [row["epoch"] for row in history(folders[0])] == ["0", "1", "2"]
    np.testing.assert_array_equal(weights(folders[0]), weights(folders[1]))


@pytest.mark.slow
def test_workers_evaluate_together_what_one_of_them_has_lost(tmp_path: Path) -> None:
    """A worker that reused its own results attacked other images than the rest."""
    few = [*FEW, "train.epochs=1", "train.steps_per_epoch=8", "data.validation=61"]
    folders = [tmp_path / name for name in ("digits_atlas", "digits_atlas.worker1")]
    found = []
    for attacks in (
        "[{name: pgd, steps: 5}]",
        "[{name: pgd, steps: 5}, {name: square, queries: 20}]",
    ):
        overrides = [*few, f"attacks={attacks}"]
        for run in [started(tmp_path, config, overrides) for config in cluster()]:
            code, out = ended(run)
            assert code == 0, out
        found.append([dict(np.load(folder / "flags.npz")) for folder in folders])
        (folders[1] / "eval.json").unlink()
    (before, _), (first, second) = found
    assert len(first) == len(before) + 1
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    for name in before:
        np.testing.assert_array_equal(first[name], before[name])
