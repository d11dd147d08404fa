"""A real process that is killed at random moments and started again."""

from __future__ import annotations

import random
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.run_folder import RunFolder
from pipelines.runner import run
from tests.e2e.runs import assert_same_weights, last_checkpoint, measured, start, wait_until
from tests.products import slow_but
from tfrobust.errors import UserError

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


def started(workdir: Path, stages: str) -> subprocess.Popen[str]:
    """Return the process that runs stages of digits_atlas."""
    return start("digits_atlas", "--stages", stages, workdir=workdir, overrides=SETTINGS)


def stopped(workdir: Path, stages: str, after: int, number: int) -> tuple[str, str, int]:
    """Send a signal once `after` steps are saved; return stdout, stderr and the exit code."""
    process = started(workdir, stages)
    wait_until(lambda: last_checkpoint(workdir / "digits_atlas") >= after, process)
    process.send_signal(number)
    out, err = process.communicate()
    return out, err, process.returncode


def finished(workdir: Path, stages: str) -> str:
    """Run to the end and return stdout."""
    process = started(workdir, stages)
    out, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    return out


def flags(folder: Path) -> dict[str, list[bool]]:
    """Return for each attack which examples are robust."""
    with np.load(folder / "flags.npz") as arrays:
        return {name: arrays[name].tolist() for name in arrays.files}


def resumed_from(out: str) -> int:
    """Return the number of steps after which a process resumed."""
    result = re.search(rf"going on after (\d+) of {EPOCHS} epochs and (\d+) batches", out)
    assert result is not None, out
    return int(result[1]) * STEPS + int(result[2])


KILLED = ("train", signal.SIGKILL)
STOPPED_TOO = (
    "train,attack_eval", signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM,
)  # fmt: skip


@pytest.mark.parametrize("case", slow_but([KILLED, STOPPED_TOO], [KILLED]))
def test_killed_training_resumes_to_the_uninterrupted_run(
    tmp_path: Path, case: tuple[Any, ...]
) -> None:
    stages, *signals = case
    straight, cut = (tmp_path / name / "digits_atlas" for name in ("straight", "cut"))
    run("digits_atlas", SETTINGS, straight.parent, stages.split(","), smoke=False)
    history, cuts, rows = cut / "history.csv", [0], b""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the moments: {seed}")  # pytest shows it if the test fails
    moments = np.random.default_rng(seed).integers(1, EPOCHS * STEPS - 40, len(signals))
    for moment, number in zip(sorted(moments.tolist()), signals, strict=True):
        out, err, code = stopped(cut.parent, stages, max(moment, *cuts) + 1, number)
        assert code == (128 + number if number == signal.SIGTERM else -number), err[-2000:]
        assert cuts == [0] or resumed_from(out) == cuts[-1]  # no step is repeated
        cuts.append(last_checkpoint(cut))
        before, rows = rows, history.read_bytes() if history.exists() else b""
        assert rows.startswith(before)
    if signals[-1] == signal.SIGTERM:
        assert "Traceback" not in err and "SIGTERM: saved after" in err.splitlines()[-1]
    assert resumed_from(finished(cut.parent, stages)) == cuts[-1]
    assert_same_weights(cut, straight)
    assert measured(cut) == measured(straight)
    assert history.read_bytes().startswith(rows)
    if "attack_eval" in stages:
        assert flags(cut) == flags(straight)


def test_a_second_run_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    message = "expected a folder that no other run is at work in"
    with RunFolder(tmp_path / "digits_atlas").locked():
        for stage in ("train", "attack_eval"):  # of a network that the other run is to train
            with pytest.raises(UserError, match=message):
                run("digits_atlas", SETTINGS, tmp_path, [stage], smoke=False)
    assert not last_checkpoint(tmp_path / "digits_atlas")
