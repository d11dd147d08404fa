"""Reasons to end a training early: a signal, or a loss that is not finite."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last one: the terminal is gone


class Interrupted(BaseException):
    """The end of a run because of a signal.

    Like KeyboardInterrupt it is not an Exception, so that handlers of errors do not catch it.

    Args:
        number: The signal's number.
        done: The last act of the run, for the message.
    """

    def __init__(self, number: int, done: str = "stopped"):
        super().__init__(f"{signal.Signals(number).name}: {done}")
        self.number = number


class NotFinite(Exception):
    """The end of a run because a loss or a weight was NaN or infinite.

    Args:
        where: The batch, validation or step, for the message.
        saved: The step of the last checkpoint.
    """

    def __init__(self, where: str, saved: int):
        last = f"the last checkpoint is of step {saved}"
        super().__init__(f"the loss is not finite in {where}; {last}")


class Interruption:
    """A receiver of SIGNALS, with which a run stops at a convenient time."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def heed(self, epoch: int, batch: int) -> None:
        """Raise Interrupted if there was a signal."""
        if self.signal is not None:
            raise Interrupted(self.signal, f"saved after {epoch} epochs and {batch} batches")

    @contextmanager
    def caught(self) -> Iterator[Interruption]:
        """Return a context in which the first signal is noted and a second one acts as usual."""
        before: dict[int, Any] = {}

        def note(number: int, _: Any) -> None:
            self.signal = number
            restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in SIGNALS:
            ignored = signal.getsignal(number) == signal.SIG_IGN
            if number != signal.SIGHUP or not ignored:  # under nohup it stays ignored
                before[number] = signal.signal(number, note)
        try:
            yield self
        finally:
            restore()
