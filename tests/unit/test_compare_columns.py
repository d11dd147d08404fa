"""Which numbers of a comparison stand beside each other, and how tables and figures show them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import comparison as terminal
from tests.unit.test_compare import saved_run
from tests.unit.test_report import change
from tfrobust.errors import UserError
from tfrobust.flags import Flags
from tfrobust.record import Record
from tfrobust.report import ReportTable, Row, comparison, read_runs, rows_of, write_comparison
from tfrobust.report.columns import comparable
from tfrobust.report.compare_figures import over_eps, scatter, sweeps

ROOT = Path(__file__).resolve().parents[2]


def two(tmp_path: Path) -> list[Path]:
    """Make two runs, the first of which is better under PGD-20, and return their folders."""
    return [saved_run(tmp_path / "one", 8, 6), saved_run(tmp_path / "other", 10, 4)]


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


def attack(name: str, examples: int = 10, **more: Any) -> dict[str, Any]:
    """Return the row of an attack in eval.json."""
    config = {"name": name, "steps": 20, **more.pop("config", {})}
    return {
        "name": name, "examples": examples, "robust_accuracy": 0.4, "config": config, **more
    }  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [
        [attack("PGD-20", config={"steps": 1})],
        [attack("PGD-20", examples=8, robust_accuracy=0.5)],
        [attack("first"), attack("PGD-20")],
    ],
)
def test_numbers_under_other_attacks_or_of_other_images_have_no_best(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    """Neither settings, nor numbers of images, nor earlier attacks of a cascade may differ."""
    one, other = two(tmp_path)
    change(one, attacks=[attack("PGD-20", robust_accuracy=0.6)], mode="cascade")
    assert comparison(read_runs(rows_of([one, other]))).bold == {(1, 2)}
    size, flags = rows[0]["examples"], Flags.load(other)
    right = {**flags.right, "PGD-20": flags.right["PGD-20"][:size]}
    dataclasses.replace(flags, right=right).save(other)
    change(other, attacks=rows, mode="cascade", worst_case_examples=size)
    table = comparison(read_runs(rows_of([one, other])))
    named = {table.header[x].split("\n")[0] for _, x in table.bold}
    assert named == {"clean"} | ({"first"} if len(rows) > 1 else set())
    flags.save(other)
    change(other, attacks=[attack("PGD-20")], mode="cascade", worst_case_examples=10)
    assert {x for _, x in comparison(read_runs(rows_of([one, other]))).bold} == {2, 3, 4}


def record(*rows: dict[str, Any], mode: str = "cascade", **more: Any) -> Record:
    """Return a record with these rows of attacks."""
    content = {
        "schema_version": 1, "examples": 10, "clean_accuracy": 0.9, "robust_accuracy": 0.5,
        "worst_case_examples": 10, "mode": mode, "attacks": list(rows),
        "threat": {"norm": "linf", "eps": 0.1}, **more,
    }  # fmt: skip
    return Record.parse(content)


def test_columns_are_compared_by_what_their_numbers_depend_on() -> None:
    pgd, square, few = attack("pgd"), attack("square"), attack("rays", examples=4)
    parts = [attack("AA: a", suite="AA"), attack("AA: b", suite="AA")]
    suite = attack("AA")
    plain, longer = record(pgd, square), record(pgd, square, few)
    subsets = [{"examples": 4, "robust_accuracy": 0.5}]
    assert comparable([plain, record(square, pgd)], "worst case")  # the order does not matter
    again = attack("once more", config={"name": "pgd"})  # with other noise
    assert not comparable([plain, record(pgd, again, square)], "worst case")
    assert not comparable([plain, record(square, pgd)], "pgd")
    each = [record(*rows, mode="each") for rows in ((pgd, square), (square, pgd))]
    assert comparable(each, "pgd") and comparable(each, "worst case")
    assert comparable([plain, longer], "worst case")  # an attack on fewer images does not count
    assert not comparable([plain, record(few, pgd, square)], "worst case")  # it broke some before
    begun = record(pgd, few, subsets=subsets)
    assert not comparable([longer.model_copy(update={"subsets": begun.subsets}), begun],
                          "worst case, first 4")  # fmt: skip
    assert comparable([plain, begun], "worst case, first 4")  # only one has this row
    alone = [record(*parts, suite, mode=mode) for mode in ("cascade", "each")]
    after = [record(pgd, *parts, suite, mode=mode) for mode in ("cascade", "each")]
    for name in ("AA", "AA: b"):
        assert not comparable([alone[0], after[0]], name)
        assert comparable([alone[1], after[1]], name)
    assert not comparable([alone[1], record(parts[0], suite, mode="each")], "AA")


def test_a_header_is_text_and_no_digit_is_cut_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = ["method", "PGD [fast]\nn=10", "PGD [/x]\nn=10", *(f"attack {n}" for n in range(40))]
    table = ReportTable(titles, [["one", *["12.3 %"] * 42]])
    terminal.show(table)
    printed = capsys.readouterr().out
    assert "PGD [fast]" in printed and "PGD [/x]" in printed and printed.count("12.3 %") == 42
    monkeypatch.setattr(terminal, "WIDTH", 80)  # as a terminal may be
    few = ReportTable(titles[:12], [["one", *["12.3 %"] * 11]])
    terminal.show(few)
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = ["".join(column).replace(" ", "") for column in zip(*lines, strict=True)]
    assert cells[2:13] == ["12.3%"] * 11


def test_a_table_is_printed_in_any_encoding(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.compare", *map(str, two(tmp_path))]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"") and b"one ? other" in done.stdout


def test_legends_have_labels_that_begin_with_an_underscore(tmp_path: Path) -> None:
    runs = read_runs([Row("_old", path) for path in two(tmp_path)])
    (legend,) = scatter(runs)["trade-off"].legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_old"]


def test_a_run_without_attacks_has_no_worst_case_in_figures(tmp_path: Path) -> None:
    folders = [saved_run(tmp_path / name, 8, 4 + n) for n, name in enumerate("abc")]
    change(folders[0], attacks=[], robust_accuracy=None, worst_case_examples=None)
    rows = [Row(path.name, path, {"method.beta": n}) for n, path in enumerate(folders)]
    runs = read_runs(rows)
    axes = scatter(runs)["trade-off"].axes[0]
    assert {line.get_label() for line in axes.lines} == {"b", "c"}
    assert scatter(runs[:2]) == {}
    lines = sweeps(runs)["over-method.beta"].axes[0].lines
    assert {line.get_label() for line in lines} == {
        "a clean", "b clean", "b worst case", "c clean", "c worst case"
    }  # fmt: skip


def test_the_pareto_front_is_of_runs_that_can_be_compared(tmp_path: Path) -> None:
    """The first attack alone leaves more images right than all of them."""
    folders = [saved_run(tmp_path / "one", 8, 6), saved_run(tmp_path / "other", 9, 5)]
    folders.append(saved_run(tmp_path / "begun", 10, 9))

    def drawn() -> dict[str, int]:
        """Return the number of points of each line."""
        lines = scatter(read_runs(rows_of(folders)))["trade-off"].axes[0].lines
        return {str(line.get_label()): len(line.get_xdata()) for line in lines}

    assert drawn() == {"one": 1, "other": 1, "begun": 1}  # no other is as good
    change(folders[2], pending=["AutoAttack: FAB"])
    assert drawn() == {"one": 1, "other": 1, "begun ‡": 1, "Pareto front": 2}
    change(folders[1], attacks=[attack("PGD-20", config={"steps": 1}, robust_accuracy=0.5)])
    assert drawn() == {"one": 1, "other": 1, "begun ‡": 1}


def test_eps_of_different_norms_have_no_common_axis(tmp_path: Path) -> None:
    curve = [{"eps": eps, "robust_accuracy": 0.5, "examples": 10} for eps in (0.0, 0.1)]
    one, other = two(tmp_path)
    for folder in (one, other):
        change(folder, eps_curve=curve)
    assert list(over_eps(read_runs(rows_of([one, other])))) == ["eps"]
    change(other, threat={"norm": "l2", "eps": 0.1})
    assert over_eps(read_runs(rows_of([one, other]))) == {}


def test_keys_of_a_grid_that_end_alike_have_lines_of_their_own(tmp_path: Path) -> None:
    keys = ("method.attack.steps", "train.validation_attack.steps")
    rows = []
    for place, steps in enumerate([(10, 10), (10, 20), (20, 10), (20, 20)]):
        label = f"adv steps={steps[0]} steps={steps[1]}"
        run = saved_run(tmp_path / str(place), 8, 4)
        rows.append(Row(label, run, dict(zip(keys, steps, strict=True))))
    figures = sweeps(read_runs(rows))
    assert set(figures) == {f"over-{key}" for key in keys}
    for figure in figures.values():
        lines = {str(line.get_label()): list(line.get_xdata()) for line in figure.axes[0].lines}
        assert lines == {
            f"adv steps={steps} {kind}": [10, 20]
            for steps in (10, 20)
            for kind in ("clean", "worst case")
        }


def test_a_page_has_no_tables_and_figures_of_a_former_one(tmp_path: Path) -> None:
    folders, out = two(tmp_path), tmp_path / "out"
    tables = write_comparison(out, "mine", rows_of(folders), {}).parent / "tables"
    assert (tables / "differences.csv").is_file()
    mine = tables / "mine.csv"
    mine.touch()
    write_comparison(out, "mine", rows_of(folders[:1]), {})
    names = sorted(path.name for path in tables.iterdir())
    assert names == ["comparison.csv", "comparison.tex", "mine.csv", "runs.csv", "runs.tex"]
    assert not (out / "report" / "figures" / "trade-off.svg").exists()


def test_the_seed_of_an_evaluation_without_a_config_is_its_own(tmp_path: Path) -> None:
    folders = two(tmp_path)
    (folders[0] / "config.yaml").unlink()
    change(folders[0], seed=5)
    assert [row[1] for row in comparison(read_runs(rows_of(folders))).rows] == ["5", "0"]


def test_the_page_of_a_search_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "search"
    out.mkdir()
    (out / "stages.json").write_text("{}")
    with pytest.raises(UserError, match="^--out: expected a folder that is not a run's"):
        terminal.compare(two(tmp_path), out)
