"""Signals to a suite of real processes that take a while to save."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.run_folder import RunFolder
from tests.products import slow_but
from tfrobust.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

# A run that saves for a second once it is asked to stop, and fails if it is asked twice.
CHILD = """
import pathlib, signal, sys, time
folder, asked = pathlib.Path(sys.argv[1]), []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: asked.append(1))
(folder / "begun").touch()
while not asked:
    time.sleep(0.01)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    time.sleep(0.01)
(folder / f"saved-{len(asked)}").touch()
sys.exit(143)
"""

# A suite of three runs, two at a time, in a locked folder.
SUITE = """
import signal, sys
from pathlib import Path
from types import SimpleNamespace
from pipelines import suite_runner
from pipelines.run_folder import RunFolder
from tfrobust.training import Interrupted

# A process under nohup, or in the background of a script, is started with these ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
folder, seconds = Path(sys.argv[1]), sys.argv[2]

def line(member, *_):
    (folder / member.name).mkdir()
    return [sys.executable, folder / "child.py", folder / member.name, seconds]

suite_runner._command = line
suite = SimpleNamespace(name="suite", file=SimpleNamespace(jobs=2))
members = [SimpleNamespace(name=name) for name in ("a", "b", "c")]
try:
    with RunFolder(folder / "suite").locked():
        suite_runner._run_all(suite, members, folder, False, set())
except Interrupted as error:
    print(error)
    sys.exit(128 + error.number)
"""


@pytest.fixture
def start_suite(tmp_path: Path) -> Callable[[float], subprocess.Popen[str]]:
    """Return a function that starts the suite and waits until two of its runs are at work.

    Its argument is the number of seconds for which each run saves.
    """

    def start(seconds: float) -> subprocess.Popen[str]:
        (tmp_path / "child.py").write_text(CHILD)
        command = [sys.executable, "-c", SUITE, str(tmp_path), str(seconds)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes)
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("*/begun"))) < 2 and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        return process

    return start


@pytest.mark.parametrize(
    "number", slow_but([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], [signal.SIGTERM])
)
def test_second_signal_waits_for_the_running_members(
    start_suite: Callable[[float], subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    """The suite waits for its runs, and holds the lock of its folder until all have ended."""
    suite = start_suite(1.5)
    suite.send_signal(number)
    time.sleep(0.2)
    suite.send_signal(number)
    with pytest.raises(UserError, match="no other run is at work"):
        RunFolder(tmp_path / "suite").locked().__enter__()
    with RunFolder(tmp_path / "suite").locked(wait=True):
        assert len(list(tmp_path.glob("*/saved-1"))) == 2
    out, err = suite.communicate()
    # Each run was asked once and saved; the third run has not begun.
    saved = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/saved*"))
    assert saved == ["a/saved-1", "b/saved-1"]
    assert not (tmp_path / "c" / "begun").exists()
    assert suite.returncode == 128 + number, err
    assert f"{number.name}: each run that was at work has ended" in out
    assert "still waiting for 2 runs" in err and "Traceback" not in err


@pytest.mark.slow
def test_third_signal_kills_the_members(
    start_suite: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    suite = start_suite(3600)
    for _ in range(3):
        suite.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    _, err = suite.communicate()
    assert suite.returncode == 128 + signal.SIGTERM, err
    assert not list(tmp_path.glob("*/saved*")) and "are killed" in err
