"""Writes the page of a comparison, its figures and tables as files, and table.csv."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.figure import Figure

from tfrobust.io import write_text
from tfrobust.report.compare import (
    CHANCE,
    Measured,
    Row,
    alike,
    comparison,
    differences,
    flat,
    measured,
    name_of,
    same_test_images,
)
from tfrobust.report.compare_figures import classes, over_eps, overlays, scatter, sweeps
from tfrobust.report.html import Table, write_page
from tfrobust.report.summary import overfitting

EXPLAINED = (
    "Accuracies are shares of test images, those under an attack of images right both "
    "clean and attacked; the worst case is over the images that every attack saw. n: images. "
    "Several seeds: mean ± standard deviation. Differences to the paper are in points. "
    "Bold: the best of a column."
)
UNLIKE = (
    " These runs differ in their data or threat: each was attacked at its own eps, so the columns "
    "do not compare across the rows and none is the best."
)
TESTED = (
    "In percentage points, on the images that both runs saw; p of McNemar's exact test on the "
    f"flags of each image. Bold: below {CHANCE}, without a correction for the number of pairs. The "
    "test speaks of these networks, not of other seeds."
)
PAIRS = 45  # of ten runs


def write_comparison(
    folder: Path, name: str, rows: Sequence[Row], facts: Mapping[str, Any]
) -> Path:
    """Writes `folder`/table.csv, a line a run, and `folder`/report/ with the page of all runs.

    Returns the path of the page. Raises ValueError as `load_run` does.
    """
    runs = measured(rows)
    folder = Path(folder)
    write_text(folder / "table.csv", flat(runs).csv())
    failures = [f"{row.run.name} failed: {row.reason}" for row in rows if row.reason is not None]
    values: dict[str, Any] = {
        "name": name,
        "lead": f"{len(runs)} of {len(rows)} runs finished.",
        "failures": failures,
        "overfitted": [
            f"{name_of(run, runs)}: {told}"
            for run in runs
            if (told := overfitting(run.record.history, run.record.config))
        ],
        "explained": EXPLAINED + ("" if alike(runs) else UNLIKE),
        "tested": TESTED,
        "facts": dict(facts),
        "pages": _pages(folder / "report", runs),
    }
    tables = {"comparison": comparison(runs), "runs": _runs(rows, runs)}
    figures: dict[str, Figure] = {}
    values["sections"] = _sections(runs, figures)
    first = [run for run in runs if run.seed == min(r.seed for r in runs)]
    pairs = len(first) * (len(first) - 1) // 2
    if len(first) >= 2 and pairs <= PAIRS and alike(first) and same_test_images(first):
        tables["differences"] = differences(first)
    return write_page(folder / "report", "comparison", values, figures, tables)


def _pages(folder: Path, runs: Sequence[Measured]) -> list[tuple[str, str]]:
    """Of each run that has a page of its own its name and the way from `folder` to the page."""
    found = []
    for run in runs:
        page = run.row.run / "report" / "index.html"
        if page.is_file():
            way = Path(os.path.relpath(page, folder)).as_posix()
            found.append((name_of(run, runs), quote(way)))
    return found


def _sections(
    runs: Sequence[Measured], figures: dict[str, Figure]
) -> list[tuple[str, list[str], str]]:
    """(title, names of figures, note); the figures are added to `figures`."""
    found = []
    notes, same = [], alike(runs)
    if len(runs) > 1 and same:
        figures["trade-off"] = scatter(runs)
        notes.append("A point a run; the dashed line joins the means that none beats in both.")
    over = over_eps(runs)
    if over is not None:
        figures["eps"] = over
        line = " The dashed line is the threat's eps." if same else ""
        notes.append(f"Over eps: PGD on the first test images.{line}")
    if figures:
        found.append(("Clean and robust accuracy", list(figures), " ".join(notes)))
    by_class = classes(runs) if same else None
    if by_class is not None:
        figures["classes"] = by_class
        note = "Worst case, in percent, means over the seeds."
        found.append(("Robust accuracy of each class", ["classes"], note))
    varied = sweeps(runs)
    if varied:
        note = "Open marks: clean accuracy; filled ones: worst case. Means over the seeds."
        found.append(("Parameters", list(varied), note))
    curves = overlays(runs)
    if curves:
        note = "On the validation split, the loss on training batches; epochs from 0."
        found.append(("Training", list(curves), note))
    figures.update(varied)
    figures.update(curves)
    return found


def _runs(rows: Sequence[Row], runs: Sequence[Measured]) -> Table:
    """What made each run, or why it failed."""
    found = {id(run.row): run for run in runs}
    lines = []
    for row in rows:
        run = found.get(id(row))
        if run is None:
            lines.append([row.run.name, f"failed: {row.reason}", "", ""])
            continue
        config, evaluation = run.record.config, run.record.evaluation
        commits = [evaluation.training_commit, evaluation.commit]
        told = [commit or "not recorded" for commit in commits]
        lines.append([name_of(run, runs), str(config.get("command", "")), *told])
    return Table(["run", "command", "commit of training", "of evaluation"], lines)
