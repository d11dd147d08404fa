"""Which numbers of a comparison stand beside each other, and how tables and figures show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import comparison as terminal
from tests.unit.test_compare import saved_run
from tests.unit.test_report import change
from tfrobust.report import comparison, read_runs, rows_of, write_comparison


def test_a_run_whose_evaluation_is_not_finished_is_marked_and_never_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [saved_run(tmp_path / "begun", 10, 9), saved_run(tmp_path / "done", 8, 4)]
    change(folders[0], pending=["AutoAttack: FAB", "AutoAttack: Square"])
    table = comparison(read_runs(rows_of(folders)))
    assert [row[0] for row in table.rows] == ["begun ‡", "done"]
    assert table.bold == {(1, 2), (1, 3), (1, 4)}
    line = "begun is not finished: AutoAttack: FAB, AutoAttack: Square did not run yet, so its"
    terminal.compare(folders, None)
    assert line in capsys.readouterr().out
    page = write_comparison(tmp_path / "out", "mine", rows_of(folders), {})
    assert line in page.read_text()
