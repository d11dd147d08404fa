"""Tests of the progress bar of an evaluation."""

import io
import sys

import pytest

from tfrobust.evaluation import progress
from tfrobust.evaluation.progress import progress_bar


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, label: str | None) -> str:
    """Return what a bar over two images writes to a terminal."""
    # Not in a fixture, as pytest replaces the stream again before the test begins.
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(progress_bar(label, [1, 2])) == [1, 2]
    return terminal.getvalue()


def test_a_bar_shows_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, "check: one")
    assert "check: one" in text and "2/2" in text


def test_no_bar_without_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, None) == ""


def test_no_bar_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar("check: one", [1, 2])) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("rank", "shows"), [(0, True), (1, False)])
def test_of_several_workers_only_the_first_has_a_bar(
    rank: int, shows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "worker", lambda: (rank, 2))
    assert bool(shown(monkeypatch, "check: one")) == shows
