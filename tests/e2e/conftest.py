"""Real commands on small inputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.runner import run

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small run of digits_adv with every stage finished.

    Its attacks are FGSM; a test changes a copy.
    """
    return run("digits_adv", ["attacks=fgsm"], tmp_path_factory.mktemp("smoke"), None, smoke=True)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Return a function that runs `python -m pipelines.run ARGS --workdir TMP` from the root."""

    def start(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines.run", *args, "--workdir", str(tmp_path / "runs")],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    return start
