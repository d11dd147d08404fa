"""The page of a comparison of runs, and table.csv."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import escape
from matplotlib.figure import Figure

from tfrobust.errors import require
from tfrobust.io import write_text
from tfrobust.report.compare import (
    CHANCE,
    FinishedRun,
    Row,
    alike,
    comparison,
    differences,
    flat,
    name_of,
    read_runs,
    same_test_images,
)
from tfrobust.report.compare_figures import classes, over_eps, over_time, overlays, scatter, sweeps
from tfrobust.report.html import ReportTable, write_page
from tfrobust.report.summary import overfitting

EXPLAINED = (
    "Accuracies are shares of the evaluated images. Under an attack, an image is right if it is "
    "right both clean and attacked; the worst case is over the images that every attack saw. n: "
    "number of images. Several seeds: mean ± standard deviation. Differences to the paper are in "
    "points. Bold: the best of a column, if all its numbers are of as many images under the same "
    "attacks. †: missed a requirement. ‡: its evaluation is not finished. Neither is ever the best."
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
FIRST_COLUMNS = "method,seed,examples,clean"  # of table.csv
PAIRS = 45  # the largest number of pairs to test: that of ten runs


def write_comparison(
    folder: Path, name: str, rows: Sequence[Row], facts: Mapping[str, Any]
) -> Path:
    """Write the comparison of several runs.

    Args:
        folder: The folder in which table.csv, with a line for each run, and the page in report/ are
            written.
        name: The title of the page.
        rows: The runs, including those that failed.
        facts: Name -> text of further facts for the page.

    Returns:
        The path of the page.

    Raises:
        UserError: If a run has no readable record, or no flags.
    """
    runs = read_runs(rows)
    folder = Path(folder)
    write_text(folder / "table.csv", flat(runs).csv())
    failures = [f"{row.folder.name} failed: {row.reason}" for row in rows if row.reason is not None]
    failures += [f"{run.row.folder.name} missed {m}" for run in runs for m in run.record.missed]
    failures += unfinished(runs)
    warnings = {
        name_of(run, runs): overfitting(run.record.history, run.record.config) for run in runs
    }
    sections = _sections(runs)
    values: dict[str, Any] = {
        "name": name,
        "lead": f"{len(runs)} of {len(rows)} runs finished.",
        "failures": failures,
        "overfitted": [f"{run}: {warning}" for run, warning in warnings.items() if warning],
        "explained": EXPLAINED + ("" if alike(runs) else UNLIKE),
        "tested": TESTED,
        "facts": dict(facts),
        "pages": _pages(folder / "report", runs),
        "sections": sections,
    }
    figures = {key: figure for _, drawn, _ in sections for key, figure in drawn.items()}
    tables = {"comparison": comparison(runs), "runs": _runs(rows, runs)}
    first_seed = min((run.seed for run in runs), default=0)
    tested = [run for run in runs if run.seed == first_seed]
    pairs = len(tested) * (len(tested) - 1) // 2
    if 0 < pairs <= PAIRS and alike(tested) and same_test_images(tested):
        tables["differences"] = differences(tested)
    return write_page(folder / "report", "comparison", values, figures, tables)


def require_own(folder: Path, name: str, where: str) -> None:
    """Raise a UserError, which begins with `where`, unless a comparison may be written.

    It may replace its own former page and table in the folder, but not those of a run, of another
    comparison or of the user.
    """
    folder = Path(folder)
    theirs = any((folder / file).exists() for file in ("eval.json", "stages.json"))
    expected = "a folder that is not a run's, whose report the page would replace"
    require(not theirs, where, expected, str(folder))
    own = {"report/index.html": f"<title>{escape(name)}</title>", "table.csv": FIRST_COLUMNS}
    for file, mark in own.items():
        path = folder / file
        is_own = not path.exists() or mark in path.read_text("utf-8", errors="replace")
        require(is_own, where, f"a folder without a {file} of something else", str(folder))


def unfinished(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a line for each run whose evaluation is not finished."""
    return [
        f"{name_of(run, runs)} is not finished: {', '.join(pending)} did not run yet, so its worst "
        "case can only fall"
        for run in runs
        if (pending := run.record.evaluation.pending)
    ]


def _pages(folder: Path, runs: Sequence[FinishedRun]) -> list[tuple[str, str]]:
    """Return (name, link relative to `folder`) of each run that has a report."""
    links = []
    for run in runs:
        page = run.row.folder / "report" / "index.html"
        if page.is_file():
            path = Path(os.path.relpath(page, folder)).as_posix()
            links.append((name_of(run, runs), quote(path)))
    return links


def _sections(runs: Sequence[FinishedRun]) -> list[tuple[str, dict[str, Figure], str]]:
    """Return the title, the figures by name and a note of each section that has figures."""
    comparable = alike(runs)
    accuracies = scatter(runs) if comparable else {}
    notes = []
    if accuracies:
        notes.append("One point per run. A dashed line is the Pareto front of the means.")
    if curve := over_eps(runs):
        accuracies |= curve
        notes.append("Over eps: PGD on up to 500 test images.")
        if comparable:
            notes.append("The dashed line is the threat's eps.")
    sections = [
        ("Clean and robust accuracy", accuracies, " ".join(notes)),
        (
            "Robust accuracy of each class",
            classes(runs) if comparable else {},
            "Worst case in percent, means over the seeds.",
        ),
        (
            "Parameters",
            sweeps(runs),
            "Open marks: clean accuracy; filled ones: worst case. Means over the seeds.",
        ),
        (
            "Training",
            overlays(runs) | over_time(runs),
            "On the validation split; the loss is that of the training batches. Epochs from 0.",
        ),
    ]
    return [section for section in sections if section[1]]


def _runs(rows: Sequence[Row], runs: Sequence[FinishedRun]) -> ReportTable:
    """Return a table of the command and the commits of each run, or the reason why it failed."""
    finished = {id(run.row): run for run in runs}
    lines = []
    for row in rows:
        run = finished.get(id(row))
        if run is None:
            lines.append([row.folder.name, f"failed: {row.reason}", "", ""])
            continue
        evaluation, command = run.record.evaluation, str(run.record.config.get("command", ""))
        commits = [
            commit or "not recorded" for commit in (evaluation.training_commit, evaluation.commit)
        ]
        lines.append([name_of(run, runs), command, *commits])
    return ReportTable(["run", "command", "commit of training", "of evaluation"], lines)
