"""A real process that is killed at random moments and started again."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.folder import Folder
from tests.products import slow_but
from tfrobust.models import load_keras

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, STEPS = 6, 12
SETTINGS = [
    f"train.epochs={EPOCHS}",
    f"train.steps_per_epoch={STEPS}",
    "train.epsilon_ramp_epochs=2",
    "train.schedule={name: guided, patience: 1}",
    "train.checkpoint_minutes=0",  # after every batch
    "train.validation_attack={name: pgd, steps: 2}",
    "model={name: small_cnn, filters: [4], kernel: 3, units: 16}",
    "attacks={name: pgd, steps: 2}",
]


def start(workdir: Path) -> subprocess.Popen[str]:
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    options += ["--workdir", str(workdir), "--stages", "train,attack_eval"]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", "digits_atlas", *options],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def saved(workdir: Path) -> int:
    """Return the step of the newest checkpoint."""
    folder = workdir / "digits_atlas" / "checkpoints"
    return max((int(path.name[5:]) for path in folder.glob("step-*")), default=0)


def stopped(workdir: Path, after: int, number: int) -> tuple[str, str, int]:
    """Send a signal once `after` steps are saved; return the output and exit code."""
    process = start(workdir)
    while saved(workdir) < after:
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate()
    return out, err, process.returncode


def gone_on_after(out: str) -> int:
    """Return the number of steps that a process resumed from."""
    result = re.search(rf"going on after (\d+) of {EPOCHS} epochs and (\d+) batches", out)
    assert result is not None, out
    return int(result[1]) * STEPS + int(result[2])


KILLED = (signal.SIGKILL,)
STOPPED_TOO = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)


@pytest.mark.parametrize("signals", slow_but([KILLED, STOPPED_TOO], [KILLED]))
def test_killed_and_started_again_is_the_uninterrupted_run(
    tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    out, err = (process := start(straight)).communicate()
    assert process.returncode == 0, err[-2000:]

    history, cuts, rows = cut / "digits_atlas" / "history.csv", [], b""
    moments = np.random.default_rng().integers(1, EPOCHS * STEPS - 40, len(signals))
    for moment, number in zip(sorted(moments.tolist()), signals, strict=True):
        out, err, code = stopped(cut, max(moment, *cuts, 0) + 1, number)
        assert code == (128 + number if number == signal.SIGTERM else -number), err[-2000:]
        assert not cuts or gone_on_after(out) == cuts[-1]  # nothing done is done again
        cuts.append(saved(cut))
        before, rows = rows, history.read_bytes() if history.exists() else b""
        assert rows.startswith(before)
    if signals[-1] == signal.SIGTERM:
        assert "Traceback" not in err and "SIGTERM: saved after" in err.splitlines()[-1]
    out, err = (process := start(cut)).communicate()
    assert process.returncode == 0, err[-2000:]
    assert gone_on_after(out) == cuts[-1]

    def network(workdir: Path) -> list[np.ndarray]:
        return load_keras(workdir / "digits_atlas").get_weights()

    for ours, theirs in zip(network(cut), network(straight), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=f"cut at {cuts}")

    def measured(workdir: Path) -> list[dict[str, str]]:
        with (workdir / "digits_atlas" / "history.csv").open() as file:
            lines = list(csv.DictReader(file))
        skip = ("finished_at", "seconds_per_batch", "validation_share")
        return [{k: v for k, v in line.items() if k not in skip} for line in lines]

    assert measured(cut) == measured(straight)
    assert history.read_bytes().startswith(rows)

    def flags(workdir: Path) -> dict[str, list[bool]]:
        with np.load(workdir / "digits_atlas" / "flags.npz") as arrays:
            return {name: arrays[name].tolist() for name in arrays.files}

    assert flags(cut) == flags(straight)


def test_a_second_run_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with Folder(tmp_path / "digits_atlas").locked():
        process = start(tmp_path)
        _, err = process.communicate()
    assert process.returncode == 2 and "Traceback" not in err
    assert "expected a folder that no other run is at work in" in err.splitlines()[-1]
    assert not saved(tmp_path)
