"""The processes of a suite: no signal leaves one behind, however often it comes."""

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
LAST = 3  # the signal, counted from the first, that waits no longer


class Children:
    """Processes that run at the same time, and the signals that came to their parent.

    The first signal asks each child once to stop, which saves what it has. The parent waits for
    them all; a second signal is answered by how many they are, and the third kills them.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.signals: list[int] = []
        self.alive: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """Within, signals are noted and raise nothing; all children must have ended at its end.

        Raises:
            Interrupted: there, if a signal came.
        """
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signals:
            raise Interrupted(self.signals[0], "each run that was at work has ended")

    def run(self, line: Sequence[str], log: Path, environment: Mapping[str, str]) -> int | None:
        """Run a command to its end and return its exit status; None where it may not begin any
        more. What it prints goes to the file `log`."""
        if self.stopping:
            return None
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            # Of its own session: Ctrl-C comes to the parent, which passes it on.
            child = subprocess.Popen(
                line, stdout=out, stderr=out, env=environment, start_new_session=True
            )
            self.alive.append(child)
            if self.stopping:  # since it was asked above
                child.terminate()
            status = child.wait()
            self.alive.remove(child)
        return status

    def stop(self) -> None:
        """Ask all to stop, and let none begin."""
        self.stopping = True
        for child in list(self.alive):
            child.terminate()

    def _note(self, number: int, _: Any) -> None:
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
        # No print: what is interrupted may be one.
        os.write(2, f"\n{signal.Signals(number).name}: {text}\n".encode())
