"""Runs in processes of their own, and what a run leaves in its folder."""

from __future__ import annotations

import contextlib
import csv
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfrobust.models import load_keras

ROOT = Path(__file__).resolve().parents[2]
# The columns of history.csv that depend on the clock.
TIMES = ("finished_at", "seconds_per_batch", "training_seconds", "validation_share")


def start(
    *args: str, workdir: Path, overrides: Iterable[str] = (), **env: str
) -> subprocess.Popen[str]:
    """Start `python -m pipelines.run ARGS --workdir WORKDIR --set ...` from the root.

    Args:
        args: Words of the command line.
        workdir: The folder of the runs.
        overrides: Settings, `key=value`.
        env: Variables of the environment beside those of this process.
    """
    sets = [word for override in overrides for word in ("--set", override)]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", *args, "--workdir", str(workdir), *sets],
        cwd=ROOT,
        env=os.environ | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that no process listened at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait until the condition holds; fail if the process ends before, or after four minutes."""
    end = time.monotonic() + 240
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(str(process.communicate())[-3000:])
        time.sleep(0.005)


def last_checkpoint(folder: Path) -> int:
    """Return the step of the newest checkpoint in a run folder, or 0."""
    return max((int(path.name[5:]) for path in folder.glob("checkpoints/step-*")), default=0)


def history(folder: Path) -> list[dict[str, str]]:
    """Return the rows of history.csv by the names of their columns."""
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def measured(folder: Path) -> list[dict[str, str]]:
    """Return the rows of history.csv without the columns that depend on the clock."""
    return [{k: row[k] for k in row.keys() - TIMES} for row in history(folder)]


def assert_same_weights(ours: Path, theirs: Path) -> None:
    """Assert that the networks in two run folders are equal to the bit."""
    networks = [load_keras(folder).get_weights() for folder in (ours, theirs)]
    for one, other in zip(*networks, strict=True):
        np.testing.assert_array_equal(one, other)
