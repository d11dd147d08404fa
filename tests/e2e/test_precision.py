"""The README's run in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.runner import run
from tfrobust.report.text import interval


@pytest.mark.slow
def test_bfloat16_is_as_robust_as_float32_within_the_interval(tmp_path: Path) -> None:
    result = {}
    for precision in ("float32", "mixed_bfloat16"):
        folder = run(
            "digits_atlas",
            [f"precision={precision}"],
            tmp_path / precision,
            ["train", "attack_eval"],
            smoke=False,
        )
        rows = json.loads((folder / "eval.json").read_text())["attacks"]
        result[precision] = next(row for row in rows if row["name"] == "PGD-50")
    row = result["float32"]
    low, high = interval(round(row["robust_accuracy"] * row["examples"]), row["examples"])
    assert low <= result["mixed_bfloat16"]["robust_accuracy"] <= high, result
