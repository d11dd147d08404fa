"""Child processes of a suite, none of which outlives a signal to their parent."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfrobust.training.interrupt import SIGNALS, Interrupted

LAST = 3  # the third signal kills the children


class Children:
    """Processes that run at the same time, and the signals that their parent receives.

    The first signal asks each child to save its state and stop, and the parent waits for all of
    them. A second signal prints how many it still waits for, and a third kills them.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.signals: list[int] = []
        self.alive: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """Keep signals from raising while children run; all must have ended with the context.

        Raises:
            Interrupted: At the end of the context, if a signal came.
        """
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in handlers.items():
            if handler != signal.SIG_IGN:  # SIGHUP stays ignored under nohup
                signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.signals:
            raise Interrupted(self.signals[0], "each run that was at work has ended")

    def run(self, line: Sequence[str], log: Path, environment: Mapping[str, str]) -> int | None:
        """Run a command to its end.

        Args:
            line: The command and its arguments.
            log: The file to which everything that the command prints is written.
            environment: The environment variables of the command.

        Returns:
            The exit status; None if the command did not begin, because the children are stopping.
        """
        if self.stopping:
            return None
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)  # a run of a suite that was killed may still write to it
        with log.open("wb") as out:
            # In a new session Ctrl-C does not reach the child: only the parent decides.
            child = subprocess.Popen(
                line, stdout=out, stderr=out, env=environment, start_new_session=True
            )
            self.alive.append(child)
            if self.stopping:  # a signal may have come since the check above
                child.terminate()
            status = child.wait()
            self.alive.remove(child)
        return status

    def stop(self) -> None:
        """Ask all children to stop, and start no more."""
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
