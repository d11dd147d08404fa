"""The tool that measures an epoch, on a history by hand and on digits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import epoch_time  # noqa: E402


def test_the_times_of_a_training_by_hand() -> None:
    """20 steps of 0.1 s, 1 s of validation and 0.5 s of checkpoints; tracing took 6 s."""
    row = {"seconds_per_batch": "0.1", "validation_share": str(1 / 3.5)}
    history = [row | {"training_seconds": "9.5"}, row | {"training_seconds": "13.0"}]
    cost = epoch_time.cost_of(history, 20)
    assert cost == pytest.approx((6.0, 0.1, 1.0, 0.5))
    assert cost.epoch(385) == pytest.approx(40.0)
    assert [cost.epochs(385, seconds) for seconds in (5, 46.1, 3605.9, 3606.1)] == [0, 1, 89, 90]


@pytest.mark.slow
def test_the_table_has_a_row_for_each_variant_of_a_config() -> None:
    line = [sys.executable, "tools/epoch_time.py", "digits_adv", "--steps", "4"]
    line += ["--vary", "model.units=4", "--vary", "model.units=8", "--minutes", "1"]
    process = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    _, _, first, second = process.stdout.strip().splitlines()
    assert first.startswith("| digits_adv model.units=4 | 32 | ") and "units=8" in second
    assert int(first.split("|")[-2]) > 0
