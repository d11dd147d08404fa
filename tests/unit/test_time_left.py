"""The line that says how long a training still takes, by a clock of the test."""

from __future__ import annotations

import pytest

from pipelines.stages import time_left
from pipelines.stages.time_left import TimeLeft


def test_the_time_left_is_that_of_the_epochs_done_so_far(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epochs 2 to 4 of 6 last 20 s, 4 s and 60 s; training goes on after two that are done."""
    now = 100.0
    monkeypatch.setattr(time_left.time, "perf_counter", lambda: now)
    callback = TimeLeft(6)
    callback.on_train_begin()
    for epoch, seconds in enumerate((20, 4, 60), start=2):
        callback.on_epoch_begin(epoch)
        now += seconds
        callback.on_epoch_end(epoch)
    callback.on_epoch_begin(5)
    assert capsys.readouterr().out.splitlines() == [
        "train: 3 of 6 epochs, about 1 min 00 s left",  # 3 epochs of 20 s
        "train: 5 of 6 epochs, about 28.0 s left",  # one of 84 s / 3; no line after 4 s
    ]
