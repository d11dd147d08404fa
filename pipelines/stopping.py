"""How a command ends at Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any, NoReturn

GO_ON = "the same command goes on from what is saved"


def stop_at_signals() -> None:
    """End the process in one line at Ctrl-C or SIGTERM, wherever they arrive.

    An exception would be lost in `__del__`, or turned into another error below TensorFlow's C++, so
    none is raised. As after a kill, every file of a run is complete or absent. Training and suites
    handle the signals themselves, because they save first.
    """
    stderr = os.dup(2)  # descriptor 2 is a file while TensorFlow is imported

    def stop(number: int, _: Any) -> NoReturn:
        if sys.stdout is not None:
            with contextlib.suppress(OSError, RuntimeError):  # the signal may interrupt a print
                sys.stdout.flush()
        line = f"error: {signal.Signals(number).name}: stopped; {GO_ON}"
        with contextlib.suppress(OSError):
            os.write(stderr, f"\n{line}\n".encode())  # a progress bar leaves its line open
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:  # ignored in the background of a script
            signal.signal(number, stop)
