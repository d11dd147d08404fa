"""A trained network against the one from which its training started, on the same images."""

from pathlib import Path

from tfrobust.report.compare import FinishedRun, Row, paired, read_runs, settings_of
from tfrobust.report.html import ReportTable
from tfrobust.report.record import load_run
from tfrobust.report.requirements import under_all
from tfrobust.report.summary import WORST
from tfrobust.report.text import NOTHING, between, p_value, percent, points

STAGE = "before"  # the stage that evaluates the first network, and the folder of its results
NOTE = (
    "Points: after minus before, on the same images under the same attacks. The interval is exact "
    "(95 %) and conservative, from the shares of the images that only one of the two networks gets "
    "right: it can hold 0 where p, that of McNemar's exact test on the flags of each image, is "
    "small. Both are about these two networks; they say nothing about other seeds."
)


def before_and_after(folder: Path) -> list[FinishedRun]:
    """Return the evaluations of a run before and after its training.

    The list is empty if the config of the run has no stage `before`, or if that stage has not made
    the same attacks yet.

    Raises:
        UserError: If a file of either evaluation is missing or damaged.
    """
    folder = Path(folder)
    asked = STAGE in (load_run(folder).config.get("stages") or ())
    if not asked or not (folder / STAGE / "eval.json").is_file():
        return []
    runs = read_runs([Row("before", folder / STAGE), Row("after", folder)])
    return runs if settings_of(runs[0]) == settings_of(runs[1]) else []


def before_after_table(before: FinishedRun, after: FinishedRun) -> ReportTable:
    """Return a table of clean accuracy, the worst case over all attacks and corruptions.

    The first two are compared image by image. The mean over corruptions has no interval, as the
    record keeps no flags of it.
    """
    clean, robust = paired(after, before)
    of_clean = [run.flags.right["clean"] for run in (before, after)]
    of_worst = [under_all(run.flags) for run in (before, after)]
    lines = []
    for name, pair, flags in (("clean", clean, of_clean), (WORST, robust, of_worst)):
        if pair is None:
            continue
        old, new = (float(right.mean()) for right in flags)
        p = p_value(pair.p).removeprefix("= ")
        tested = [between(*pair.interval()), p, str(pair.n)]
        lines.append([name, percent(old), percent(new), points(pair.points), *tested])
    tables = [run.record.evaluation.corruptions for run in (before, after)]
    shares = [table.accuracy for table in tables if table is not None]
    if tables[1] is not None and len(shares) == 2 and None not in shares:
        old, new = map(float, shares)  # type: ignore[arg-type]
        line = ["corruptions, mean", percent(old), percent(new), points(new - old)]
        lines.append([*line, NOTHING, NOTHING, str(tables[1].examples)])
    header = ["accuracy", "before", "after", "points", "95 % interval", "p", "images"]
    return ReportTable(header, lines)
