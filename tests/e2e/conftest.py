"""Real commands on small inputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `python -m pipelines.run ARGS --workdir TMP` as a user does, from the root."""

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines.run", *args, "--workdir", str(tmp_path / "runs")],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    return run
