"""What ends a training early: a signal, or a loss that is not a number."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """A run was asked to stop by the signal of this number, and did. done: what is saved.

    As KeyboardInterrupt it is no Exception, which handlers of errors would take for one.
    """

    def __init__(self, number: int, done: str = "stopped"):
        super().__init__(f"{signal.Signals(number).name}: {done}")
        self.number = number


class NotFinite(Exception):
    """A loss was NaN or infinite. where: in which batch; saved: the last checkpoint's step."""

    def __init__(self, where: str, saved: int):
        super().__init__(
            f"the loss is not finite in {where}; the last checkpoint is of step {saved}"
        )


class Interruption:
    """SIGTERM and Ctrl-C, noted until it is time to heed them."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def heed(self, epoch: int, batch: int) -> None:
        """Raises Interrupted if a signal came."""
        if self.signal is not None:
            raise Interrupted(self.signal, f"saved after {epoch} epochs and {batch} batches")

    @contextmanager
    def caught(self) -> Iterator[Interruption]:
        """Within, the first signal is noted; a second one acts as ever."""
        before: dict[int, Any] = {}

        def note(number: int, _: Any) -> None:
            self.signal = number
            restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
        try:
            yield self
        finally:
            restore()
