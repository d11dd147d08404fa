"""Real commands on small inputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.run import run

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `digits_adv --smoke` with every stage finished; a test changes a copy."""
    return run("digits_adv", [], tmp_path_factory.mktemp("smoke"), None, smoke=True)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `python -m pipelines.run ARGS --workdir TMP` as a user does, from the root."""

    def start(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines.run", *args, "--workdir", str(tmp_path / "runs")],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    return start
