"""The processes of a suite. No signal leaves one behind, however often it comes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfrobust.training import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAST = 3  # the number of the signal that kills the processes


class Children:
    """Processes that run at the same time, and the signals that their parent receives.

    The first signal asks each child to stop; a child then saves its state. The parent waits for
    all of them. A second signal prints how many it still waits for, and a third kills them.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.signals: list[int] = []
        self.alive: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """Handle signals without raising until the end, by when all children must have ended.

        Raises:
            Interrupted: At the end, if there was a signal.
        """
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in handlers.items():
            if handler != signal.SIG_IGN:  # nohup has SIGHUP ignored
                signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.signals:
            raise Interrupted(self.signals[0], "each run that was at work has ended")

    def run(self, line: Sequence[str], log: Path, environment: Mapping[str, str]) -> int | None:
        """Run a command to its end, with its output in a file.

        Args:
            line: The command and its arguments.
            log: The file for all that the command prints.
            environment: The command's environment variables.

        Returns:
            The exit status, or None if the command was not begun because the children are stopping.
        """
        if self.stopping:
            return None
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            # In a session of its own, so that Ctrl-C reaches the parent alone, which passes it on.
            child = subprocess.Popen(
                line, stdout=out, stderr=out, env=environment, start_new_session=True
            )
            self.alive.append(child)
            if self.stopping:  # it may have changed since the check above
                child.terminate()
            status = child.wait()
            self.alive.remove(child)
        return status

    def stop(self) -> None:
        """Ask all children to stop, and begin no more."""
        self.stopping = True
        for child in list(self.alive):
            child.terminate()

    def _on_signal(self, number: int, _: Any) -> None:
        self.signals.append(number)
        count, runs = len(self.signals), f"{len(self.alive)} runs that save what they have"
        if count == 1:
            self.stop()
            text = f"waiting for {runs}"
        elif count < LAST:
            text = f"still waiting for {runs}; once more kills them"
        else:
            for child in list(self.alive):
                child.kill()
            text = "the runs are killed; each goes on from what it last saved"
        # Not print, because the signal may have interrupted a print.
        os.write(2, f"\n{signal.Signals(number).name}: {text}\n".encode())
