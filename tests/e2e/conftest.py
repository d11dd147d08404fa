"""Real commands on small inputs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import command_line
from pipelines.run_folder import RunFolder
from pipelines.runner import run

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def smoke_run(shared_folder: Path) -> Path:
    """Return the folder of a small run of digits_adv with every stage finished.

    Its attacks are FGSM; a test changes a copy.
    """
    workdir = shared_folder / "smoke"
    with RunFolder(workdir).locked(wait=True):  # a second process finds every stage done
        return run("digits_adv", ["attacks=fgsm"], workdir, None, smoke=True)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Return a function that runs `python -m pipelines.run ARGS --workdir TMP` in this process.

    TensorFlow is imported already, and the handlers of signals stay those of the tests.
    """
    monkeypatch.setattr(command_line, "stop_at_signals", lambda: None)

    def complete(*args: str) -> subprocess.CompletedProcess[str]:
        line, code = [*args, "--workdir", str(tmp_path / "runs")], 0
        capfd.readouterr()
        try:
            command_line.run_command("run", line, "python -m pipelines.run")
        except SystemExit as end:
            code = int(end.code or 0)
        return subprocess.CompletedProcess(line, code, *capfd.readouterr())

    return complete
