"""Two processes of one cluster give the result of one process, and all stop if one dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.e2e.conftest import ROOT

COMMAND = [sys.executable, "-m", "pipelines.run", "digits_atlas"]
FEW = ["train.epochs=3", "train.epsilon_ramp_epochs=1", "train.schedule=constant"]


def cluster(count: int) -> list[str]:
    """Return the TF_CONFIG of each worker, on free ports."""
    sockets = [socket.socket() for _ in range(count)]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    workers = [f"127.0.0.1:{held.getsockname()[1]}" for held in sockets]
    for held in sockets:
        held.close()
    return [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        for index in range(count)
    ]


def started(workdir: Path, tf_config: str, overrides: list[str]) -> subprocess.Popen[str]:
    sets = [part for override in overrides for part in ("--set", override)]
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_CONFIG": tf_config,
    }
    return subprocess.Popen(
        [*COMMAND, "--workdir", str(workdir), *sets],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ended(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str]:
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


def weights(folder: Path) -> np.ndarray:
    network = keras.saving.load_model(folder / "model.keras", compile=False)
    return np.concatenate([w.ravel() for w in network.get_weights()])


@pytest.mark.slow
def test_two_workers_are_one(tmp_path: Path) -> None:
    few = [*FEW, "train.epochs=1", "train.steps_per_epoch=8", "data.validation=61"]
    few += ["attacks=[{name: pgd, steps: 5}, {name: square, queries: 20}]"]
    runs = [started(tmp_path / "two", config, few) for config in cluster(2)]
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
def test_when_one_dies_all_stop_and_go_on_together(tmp_path: Path) -> None:
    stages = [*FEW, "stages=[train]"]
    runs = [started(tmp_path, config, stages) for config in cluster(2)]
    folders = [tmp_path / name for name in ("digits_atlas", "digits_atlas.worker1")]
    until = time.monotonic() + 120
    while not all(list(folder.glob("checkpoints/step-*")) for folder in folders):
        assert time.monotonic() < until and runs[0].poll() is None
        time.sleep(0.2)
    runs[1].send_signal(signal.SIGKILL)
    code, out = ended(runs[0], 120)
    assert code == 2 and "Traceback" not in out
    assert "a worker has stopped or is out of reach" in out.splitlines()[-1]
    again = [ended(run) for run in [started(tmp_path, c, stages) for c in cluster(2)]]
    assert [code for code, _ in again] == [0, 0], again
    assert "train: going on after" in again[0][1]
    rows = (folders[0] / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "2"]
    np.testing.assert_array_equal(weights(folders[0]), weights(folders[1]))
