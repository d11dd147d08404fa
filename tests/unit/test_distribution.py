"""What several workers agree on. The other worker is played by the numbers that it would send."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.test_record import HALF, NOISY, WHOLE, evaluated
from tfrobust import distribution
from tfrobust.distribution import count_shared, on_all_workers
from tfrobust.evaluation import Record, recorder


def stacked_with(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another worker send an array."""
    monkeypatch.setattr(distribution, "stack_workers", lambda own: np.stack([own, other]))


def codes(entries: Sequence[bytes], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Return the array that a worker with these entries, of four at most, sends."""
    sent = []
    with monkeypatch.context() as patch:
        patch.setattr(distribution, "stack_workers", lambda own: sent.append(own) or own[None])
        count_shared(entries, 4)
    return sent[0]


@pytest.mark.parametrize(
    ("entries", "others", "count"),
    [
        ([b"a", b"b", b"c"], [b"a", b"b", b"c"], 3),
        ([b"a", b"b", b"c"], [b"a", b"x", b"c"], 1),
        ([b"a", b"b"], [b"a", b"b", b"c"], 2),
        ([b"a", b"b", b"c"], [b"a"], 1),
        ([b"a", b"b"], [], 0),
        ([], [b"a"], 0),
        ([b"a", b"b", b"c", b"d"], [b"a", b"b", b"c", b"d"], 4),
    ],
)
def test_workers_share_the_first_entries_that_all_have(
    entries: list[bytes], others: list[bytes], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacked_with(codes(others, monkeypatch), monkeypatch)
    assert count_shared(entries, 4) == count


def test_a_condition_holds_on_all_workers_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_all_workers(True) and not on_all_workers(False)
    stacked_with(np.array(0), monkeypatch)
    assert not on_all_workers(True)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_an_evaluation_reuses_what_all_workers_have(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that reused more than another attacked other images, and the sums mixed both."""
    evaluated(tmp_path, [NOISY, HALF])
    monkeypatch.setattr(recorder, "count_shared", lambda entries, most: min(count, len(entries)))
    lines = evaluated(tmp_path, [NOISY, HALF, WHOLE])
    computed = [line.split(":")[0] for line in lines if " of " in line]
    assert computed == ["clean", "noise", "half", "whole"][count:]
    kept = tmp_path / "evaluation.1"
    assert f"the former results are kept in {kept} (another worker has others)" in lines
    assert [row.name for row in Record.load(kept).attacks] == ["noise", "half"]
    assert [row.name for row in Record.load(tmp_path).attacks] == ["noise", "half", "whole"]


def test_images_are_reused_if_all_workers_have_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of another worker may hold images of attacks that no longer count."""
    evaluated(tmp_path, [NOISY], save="float32")
    monkeypatch.setattr(recorder, "on_all_workers", lambda condition: False)
    lines = evaluated(tmp_path, [NOISY, HALF], save="float32")
    computed = [line.split(":")[0] for line in lines if " of " in line]
    assert computed == ["clean", "noise", "half"]
    assert any("(another worker has others)" in line for line in lines)
