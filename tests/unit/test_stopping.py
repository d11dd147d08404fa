"""Ctrl-C and SIGTERM end a command in one line."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.run_folder import RunFolder
from tfrobust.errors import UserError
from tfrobust.io import write_atomically

ROOT = Path(__file__).resolve().parents[2]

# The signal arrives in __del__, where Python ignores exceptions, or where a library catches them.
COMMAND = """
import os, signal, sys
from pipelines.stopping import stop_at_signals

signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells have it ignored

class Deleted:
    def __del__(self):
        os.kill(os.getpid(), number)

number = int(sys.argv[1])
stop_at_signals()
print("printed", end="")
try:
    if sys.argv[2] == "__del__":
        Deleted()
    else:
        os.kill(os.getpid(), number)
except BaseException:
    raise TypeError("another error")
print("goes on")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", ["__del__", "try"])
def test_a_signal_ends_a_command_wherever_it_arrives(number: signal.Signals, place: str) -> None:
    command = [sys.executable, "-c", COMMAND, str(int(number)), place]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + number and done.stdout == "printed"
    line = f"error: {number.name}: stopped; the same command goes on from what is saved"
    assert done.stderr == f"\n{line}\n"


def test_an_ignored_signal_stays_ignored() -> None:
    code = (
        "import signal; from pipelines.stopping import stop_at_signals;"
        "signal.signal(signal.SIGINT, signal.SIG_IGN); stop_at_signals();"
        "signal.raise_signal(signal.SIGINT); print('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "goes on\n")


def test_only_a_file_that_a_killed_run_has_half_written_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    complete, own = tmp_path / "eval.json", tmp_path / ".2024-notes"
    for path in (complete, own):
        path.write_text("{}")
    names: list[str] = []
    write_atomically(tmp_path / "a", lambda path: (names.append(path.name), path.touch()))
    (tmp_path / names[0]).write_text("{")
    with folder.locked():
        assert sorted(path.name for path in tmp_path.iterdir()) == [own.name, "a", complete.name]


def test_a_folder_and_a_link_to_it_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (
        RunFolder(tmp_path / "real").locked(),
        pytest.raises(UserError, match="no other run is at work in"),
        RunFolder(tmp_path / "link").locked(),
    ):
        pass


def test_closed_streams_are_opened_before_a_file_gets_their_numbers(tmp_path: Path) -> None:
    """TensorFlow would write its messages into a file that has the number of stderr."""
    code = (
        "import sys; from pipelines.command_line import open_streams; open_streams();"
        "print('lost'); print('lost', file=sys.stderr); sys.stdout.isatty();"
        "file = open(sys.argv[1], 'w'); file.write(str(file.fileno()))"
    )
    line = '"$0" -c "$1" "$2" <&- >&- 2>&-'
    subprocess.run(
        ["sh", "-c", line, sys.executable, code, str(tmp_path / "a")], cwd=ROOT, check=True
    )
    assert int((tmp_path / "a").read_text()) > 2


@pytest.mark.parametrize("ending", ["", ", flush=True"])
def test_a_command_whose_output_nobody_reads_ends_in_one_line(ending: str) -> None:
    code = (
        "from pathlib import Path; from pipelines import command_line as cl\n"
        "def run(*_):\n"
        f"    try: print('a line'{ending})\n"
        "    except OSError as error: cl.fail_at(Path(), error)\n"
        "cl._run = run; cl.run_command('run', ['digits_adv'], 'tfrobust run')"
    )
    line = '"$0" -c "$1" | true; exit ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, code], cwd=ROOT, capture_output=True, text=True
    )
    expected = "error: stdout: expected a reader of the output, it has gone; the same command goes"
    assert done.returncode == 141 and done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1
