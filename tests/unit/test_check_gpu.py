"""The check of a GPU continues after failures, ends in time, and its page reports everything."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import check_gpu
from gpu_table import TABLES, markdown

STEPS = {
    "title": "Steps",
    "took": 50.0,
    "network": "wrn_16_2",
    "precision": "mixed_bfloat16",
    "batch": 64,
    "peak": 8e14,
    "peaks": {"tensorflow": 7e14, "torch": 8e14},
    "input_batches_per_second": 5000.0,
    "xla": True,
    "versions": {"torch": "2"},
    "rows": [
        {
            "row": "ADV, 1 step",
            "flops": 8 * 10**11,
            "seconds": {"torch": 0.012, "torch, channels last": 0.010, "ours": 0.005},
            "first_seconds": {"torch": 1.0, "ours": 29.0},
        }
    ],
}
START = {
    "exit_code": 0,
    "seconds": 60.4,
    "first_epoch_seconds": 31.25,
    "stages": ["train", "attack_eval"],
    "tensorflow_said": [],
}


def page(**sections: Any) -> str:
    """Return the page of a GPU with these sections as Markdown."""
    device = {"title": "Device", "took": 5.0, "gpu": True, "device": "Card 9"}
    return markdown({"minutes": 8, "quick": False, "sections": {"device": device} | sections})


@pytest.fixture
def check(tmp_path: Path) -> check_gpu.Check:
    """Return a quick check that writes to an empty folder."""
    args = argparse.Namespace(quick=True, autoattack=None)
    return check_gpu.Check(args, tmp_path)


def test_page_has_a_row_for_each_training_step() -> None:
    text = page(wrn_16_2=STEPS)
    assert "# On Card 9" in text and "No GPU" not in text
    header, _, row = [line for line in text.splitlines() if line.startswith("|")][-3:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # Milliseconds of ours and of torch; the fastest of torch divided by ours; seconds of the first
    # step; TFLOP/s; the share of the better peak.
    assert cells == ["ADV, 1 step", "5.0", "12.0", "10.0", "2.00", "29.0", "160", "20%"]
    assert "torch, channels last" in header


def test_page_has_the_starts_and_the_messages_of_tensorflow() -> None:
    noisy = START | {"tensorflow_said": ["E0000 layout failed"], "first_epoch_seconds": None}
    results = {"first start": START, "second start": noisy, "programs kept": 3, "bytes kept": 2e6}
    text = page(pipeline={"title": "Pipeline", "took": 1.0} | results)
    assert "| first start | 0 | 60 | 31.2 | train, attack" in text
    assert "3 files, 2.0 MB" in text and "E0000 layout failed" in text


def test_page_marks_different_weights_and_failures() -> None:
    compared = {"difference": 2e-6, "first_seconds": 3.0, "first_seconds_uncompiled": 1.0}
    methods = {"adv": compared, "free": compared | {"difference": 0.5}, "llr": {"failed": "E: no"}}
    text = page(
        methods={"title": "Methods", "took": 9.0} | methods | {"ended": "after 9 s, unfinished"},
        layers={"title": "Layers", "took": 0.0, "skipped": "no time was left of 8 minutes"},
        autoattack={"title": "AutoAttack", "took": 1.0, "failed": "ValueError: odd"},
    )
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    assert "agree" in lines["adv"] and "DIFFER" in lines["free"] and "E: no" in lines["llr"]
    assert "Not finished: methods, layers, autoattack." in text
    for line in ("ended: after 9 s, unfinished", "failed: ValueError: odd", "skipped: no time"):
        assert line in text


def test_page_of_a_cpu_says_that_there_is_no_gpu() -> None:
    device = {"title": "Device", "took": 5.0, "gpu": False, "device": "CPU"}
    text = markdown({"minutes": 8, "quick": True, "sections": {"device": device}})
    assert "No GPU was found" in text and "no measurement" in text


def test_every_section_has_a_table() -> None:
    assert set(check_gpu.SECTIONS) == set(TABLES)


def test_failed_section_is_a_line_and_the_next_one_runs(check: check_gpu.Check) -> None:
    def broken(check: check_gpu.Check, seconds: float) -> dict[str, Any]:
        raise ValueError("no such\n  device")

    sections = {
        "first": check_gpu.Section("First", 60, broken),
        "second": check_gpu.Section("Second", 60, lambda check, seconds: {"seconds": seconds}),
    }
    written: list[list[str]] = []
    results = check_gpu.run(sections, check, 100, lambda result: written.append(list(result)))
    assert results["first"]["failed"] == "ValueError: no such device"
    assert results["second"]["seconds"] == 60  # its limit, although 100 are left
    assert written == [["first"], ["first", "second"]]


def test_section_gets_the_time_that_is_left_or_is_skipped(
    check: check_gpu.Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(check_gpu.time, "monotonic", lambda: now[0])

    def slow(check: check_gpu.Check, seconds: float) -> dict[str, Any]:
        now[0] += 45
        return {"seconds": seconds}

    sections = {name: check_gpu.Section(name, 70, slow) for name in "abc"}
    calls: list[Mapping[str, Any]] = []
    results = check_gpu.run(sections, check, 95, calls.append)
    assert [results[name].get("seconds") for name in "abc"] == [70, 50, None]
    assert results["c"]["skipped"].startswith("no time was left")
    assert len(calls) == 3


def test_interrupted_or_failed_tool_leaves_its_results_so_far(
    check: check_gpu.Check, tmp_path: Path
) -> None:
    """A tool that fails also leaves its last line."""
    slow, broken = tmp_path / "slow.py", tmp_path / "broken.py"
    text = "import sys, time\nopen(sys.argv[-1], 'w').write('{\"a\": 1}')\n"
    slow.write_text(text + "time.sleep(60)\n")
    broken.write_text(text + "sys.exit('no card')\n")
    results = check.tools([[str(slow)], [str(broken)]], 2.0)
    assert results[0]["a"] == results[1]["a"] == 1
    assert "unfinished" in results[0]["ended"]
    assert results[1]["failed"] == "exit code 1: no card"
    json.dumps(results)
