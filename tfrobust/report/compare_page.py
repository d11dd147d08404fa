"""The page of a comparison, with its figures and tables as files, and table.csv."""

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
from tfrobust.report.html import ReportTable, write_page
from tfrobust.report.summary import overfitting

EXPLAINED = (
    "Accuracies are shares of test images. Under an attack, an image is right if it is right both "
    "clean and attacked; the worst case is over the images that every attack saw. n: number of "
    "images. Several seeds: mean ± standard deviation. Differences to the paper are in points. "
    "Bold: the best of a column."
)
UNLIKE = (
    " These runs differ in their data or threat, and each was attacked at its own eps: accuracies "
    "of different rows cannot be compared, and none is marked as the best."
)
TESTED = (
    "In percentage points, on the images that both runs saw; p of McNemar's exact test on the "
    f"flags of each image. Bold: p below {CHANCE}, without a correction for the number of pairs. "
    "The test compares these trained networks; it says nothing about other seeds."
)
PAIRS = 45  # the most that are tested: those of ten runs


def write_comparison(
    folder: Path, name: str, rows: Sequence[Row], facts: Mapping[str, Any]
) -> Path:
    """Write the comparison of several runs.

    `folder`/table.csv has one line per run, `folder`/report/ the page.

    Args:
        folder: Where to write.
        name: The title of the page.
        rows: The runs, with those that failed.
        facts: Name -> text of further facts for the page.

    Returns:
        The path of the page.

    Raises:
        UserError: As of `measured`.
    """
    runs = measured(rows)
    folder = Path(folder)
    write_text(folder / "table.csv", flat(runs).csv())
    failures = [f"{row.run.name} failed: {row.reason}" for row in rows if row.reason is not None]
    warnings = {
        name_of(run, runs): overfitting(run.record.history, run.record.config) for run in runs
    }
    values: dict[str, Any] = {
        "name": name,
        "lead": f"{len(runs)} of {len(rows)} runs finished.",
        "failures": failures,
        "overfitted": [f"{run}: {warning}" for run, warning in warnings.items() if warning],
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
    """Return (name, link relative to `folder`) of each run that has a report."""
    links = []
    for run in runs:
        page = run.row.run / "report" / "index.html"
        if page.is_file():
            path = Path(os.path.relpath(page, folder)).as_posix()
            links.append((name_of(run, runs), quote(path)))
    return links


def _sections(
    runs: Sequence[Measured], figures: dict[str, Figure]
) -> list[tuple[str, list[str], str]]:
    """Return (title, names of figures, note) of each section, and add the figures to `figures`."""
    sections = []
    notes, same = [], alike(runs)
    if len(runs) > 1 and same:
        figures["trade-off"] = scatter(runs)
        notes.append("One point per run; the dashed line is the Pareto front of the means.")
    over = over_eps(runs)
    if over is not None:
        figures["eps"] = over
        line = " The dashed line is the threat's eps." if same else ""
        notes.append(f"Over eps: PGD on the first test images.{line}")
    if figures:
        sections.append(("Clean and robust accuracy", list(figures), " ".join(notes)))
    by_class = classes(runs) if same else None
    if by_class is not None:
        figures["classes"] = by_class
        note = "Worst case in percent, means over the seeds."
        sections.append(("Robust accuracy of each class", ["classes"], note))
    varied = sweeps(runs)
    if varied:
        note = "Open marks: clean accuracy; filled ones: worst case. Means over the seeds."
        sections.append(("Parameters", list(varied), note))
    curves = overlays(runs)
    if curves:
        note = "On the validation split; the loss is that of the training batches. Epochs from 0."
        sections.append(("Training", list(curves), note))
    figures.update(varied)
    figures.update(curves)
    return sections


def _runs(rows: Sequence[Row], runs: Sequence[Measured]) -> ReportTable:
    """Return a table of each run's command and commits, or why it failed."""
    finished = {id(run.row): run for run in runs}
    lines = []
    for row in rows:
        run = finished.get(id(row))
        if run is None:
            lines.append([row.run.name, f"failed: {row.reason}", "", ""])
            continue
        config, evaluation = run.record.config, run.record.evaluation
        commits = [evaluation.training_commit, evaluation.commit]
        shown = [commit or "not recorded" for commit in commits]
        lines.append([name_of(run, runs), str(config.get("command", "")), *shown])
    return ReportTable(["run", "command", "commit of training", "of evaluation"], lines)
