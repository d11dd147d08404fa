"""Real commands on small inputs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.runner import run
from tests.e2e.runs import start

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small run of digits_adv with every stage finished.

    Its attacks are FGSM; a test changes a copy.
    """
    return run("digits_adv", ["attacks=fgsm"], tmp_path_factory.mktemp("smoke"), None, smoke=True)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Return a function that runs `python -m pipelines.run ARGS --workdir TMP` to its end."""

    def complete(*args: str) -> subprocess.CompletedProcess[str]:
        process = start(*args, workdir=tmp_path / "runs")
        out, err = process.communicate()
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    return complete
