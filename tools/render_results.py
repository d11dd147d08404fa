"""Render the measured results from the records of runs.

    python tools/render_results.py --add RUN    # writes docs/results/NAME.json, then renders
    python tools/render_results.py --add RUN --as OTHER_NAME
    python tools/render_results.py --add RUN --suite SUITE  # writes docs/results/SUITE/NAME.json
    python tools/render_results.py              # renders
    python tools/render_results.py --check      # exits with 1 if a rendered file is out of date

The rendered files are docs/results/leaderboard.json, docs/results.md and the table of README.md.
The page begins with docs/results/intro.md, whose numbers tools/result_numbers.py fills in.
Rendering marks the results whose code has changed since (tools/stale.py). `--check` names them and
their files, but does not fail for them.
"""

import argparse
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import leaderboard
import stale
from result_figures import figure, time_figure, timed
from result_numbers import filled_in
from summaries import (
    add_run,
    by_data,
    full_name,
    name_without_seed,
    rows_of,
    seed_of,
    summaries_of,
)

from tfrobust.errors import UserError
from tfrobust.io import write_text
from tfrobust.report import (
    NOTHING,
    AccuracyRow,
    accuracy_rows,
    between,
    data_of,
    duration,
    in_order,
    is_worst_case,
    markdown_escape,
    markdown_table,
    method_name,
    milliseconds,
    missing_from_paper,
    percent,
    points,
    threat_text,
)

EXPLANATION = """## All runs

This page is written by `python tools/render_results.py` from
`docs/results/*.json`. To change the page, change these files.

The percentages in parentheses are the 95 % interval (Wilson) of an accuracy on n test images.
Differences from a paper are in percentage points. In the worst case an image counts as right only
if no attack succeeded on it. The column `worst case` is over the attacks that ran on the most
images. If other attacks ran on fewer images, a further column is over all attacks on these images.
The time per batch is the median over the epochs."""
LEADERBOARD = """## Leaderboard

These are the runs that were evaluated by AutoAttack, with their mean and range over seeds, or the
95 % interval of a single seed. [leaderboard.json](results/leaderboard.json) has a row for each run
in the field names of RobustBench, with hardware and times. Code that a run marked † used has
changed since in a way that may alter its numbers; `python tools/render_results.py --check` names
the files."""


def render(docs: Path) -> str:
    """Return the text of results.md, made from the files in the folder results of `docs`."""
    intro = docs / "results" / "intro.md"
    template = intro.read_text(encoding="utf-8").rstrip() if intro.is_file() else "# Results"
    top = filled_in(template, summaries_of(docs))
    rows = leaderboard.read(docs)
    marked = {(row["name"], row["seed"]) for row in rows if row["stale"]}
    parts = [top]
    if table := leaderboard.table(rows):
        parts += [LEADERBOARD, table]
    parts += [EXPLANATION]
    for data, group in by_data(docs).items():
        picture = f"![Clean and worst-case accuracy](results/{data}.svg)"
        suite, seeds = group[0]["suite"], seeds_table(group, marked)
        parts += [f"## {markdown_escape(data)}", picture]
        if suite is None or not seeds:
            parts += [results_table(group, marked)]
        if timed(group):
            parts += [f"![Robust accuracy over the time of training](results/{data}_time.svg)"]
        notes = dict.fromkeys(summary["note"] for summary in group if summary.get("note"))
        parts += [f"Note: {markdown_escape(note)}" for note in notes]
        if seeds:
            parts += ["Over seeds, mean ± sample standard deviation (lowest to highest):", seeds]
        if suite is None:
            parts += [run_section(summary) for summary in group]
        else:
            parts += [f"`docs/results/{suite}/` has the record of each run, with its command."]
    return "\n\n".join(parts) + "\n"


def attack_columns(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of a group: clean, the attacks in the order of first use, worst cases.

    A suite has one column, and its attacks have none.
    """
    attacks = [attack for summary in group for attack in summary["evaluation"].attacks]
    parts = {attack.name for attack in attacks if attack.suite}
    names = (name for summary in group for name in rows_of(summary))
    return [name for name in in_order(names) if name not in parts]


def title_of(summary: Mapping[str, Any], group: Iterable[Mapping[str, Any]]) -> str:
    """Return the name of a run, with its seed if the group has another run of this name."""
    twins = [other for other in group if other["name"] == summary["name"]]
    seed = f" (seed {seed_of(summary)})" if len(twins) > 1 else ""
    return summary["name"] + seed + images_of(summary)


def images_of(summary: Mapping[str, Any]) -> str:
    """Return " (SPLIT images)" for a run that was not evaluated on test images, else ""."""
    split = data_of(summary["config"], summary["evaluation"]).split
    return "" if split == "test" else f" ({split} images)"


def results_table(
    group: Sequence[Mapping[str, Any]], marked: Collection[tuple[str, Any]] = ()
) -> str:
    """Return the table of a group, with the accuracies and the cost of each run.

    Args:
        group: The summaries of the runs.
        marked: The names and seeds of the results whose code has changed.
    """
    columns = attack_columns(group)
    header = ["run", "method", "threat", *columns, "time per batch", "training time", "epochs"]
    lines = []
    for summary in group:
        config, training, rows = summary["config"], summary["training"], rows_of(summary)
        mark = leaderboard.MARK if (full_name(summary), seed_of(summary)) in marked else ""
        accuracies = [accuracy_cell(rows.get(column)) for column in columns]
        threat = threat_text(summary["evaluation"].balls)
        lines.append([title_of(summary, group) + mark, method_name(config), threat, *accuracies])
        lines[-1] += [
            milliseconds(training["seconds_per_batch"]),
            duration(leaderboard.training_seconds(summary)),
            training["epochs"] or NOTHING,
            config.get("precision", NOTHING),
        ]
    return markdown_table([*header, "precision"], lines, lines="<br>")


def accuracy_cell(row: AccuracyRow | None) -> str:
    if row is None:
        return NOTHING
    measured = f"{percent(row.accuracy)} ({between(row.low, row.high)})\nn={row.examples}"
    if row.paper is None:
        return measured
    return f"{measured}\npaper {percent(row.paper)}, {points(row.difference)}"


def seeds_table(
    group: Sequence[Mapping[str, Any]], marked: Collection[tuple[str, Any]] = ()
) -> str:
    """Return the table of runs with several seeds, empty if there are none.

    Its arguments are those of `results_table`.
    """
    families: dict[str, list[Mapping[str, Any]]] = {}
    for summary in group:
        config = {k: v for k, v in summary["config"].items() if k not in ("name", "seed")}
        key = name_without_seed(summary["name"]) + json.dumps(config, sort_keys=True)
        families.setdefault(key, []).append(summary)
    several = [family for family in families.values() if len(set(map(seed_of, family))) > 1]
    if not several:
        return ""
    columns = attack_columns([summary for family in several for summary in family])
    lines = []
    for family in several:
        seeds = ", ".join(str(seed_of(summary)) for summary in family)
        stale = any((full_name(summary), seed_of(summary)) in marked for summary in family)
        name = name_without_seed(family[0]["name"]) + images_of(family[0])
        line = [name + leaderboard.MARK * stale, seeds]
        for column in columns:
            rows = [rows_of(summary).get(column) for summary in family]
            values = [row.accuracy for row in rows if row is not None]
            line.append(spread(values) if len(values) == len(family) else NOTHING)
        lines.append(line)
    return markdown_table(["run", "seeds", *columns], lines)


def spread(values: Sequence[float]) -> str:
    """Return mean, deviation and range: [0.8, 0.9] is '85.0 ± 7.1 % (80.0 to 90.0)'."""
    deviation, ends = 100 * stdev(values), between(min(values), max(values))
    return f"{100 * mean(values):.1f} ± {deviation:.1f} % ({ends})"


def run_section(summary: Mapping[str, Any]) -> str:
    """Return the section that says how to repeat a run."""
    config, evaluation = summary["config"], summary["evaluation"]
    versions = evaluation.versions or {}
    facts = [
        ", ".join(filter(None, (f"{row.name}: {row.settings}", row.cost, duration(row.seconds))))
        for row in accuracy_rows(config, evaluation)
        if row.name != "clean" and not is_worst_case(row.name)
    ]
    if source := (config.get("paper") or {}).get("source"):
        missing = missing_from_paper(config, evaluation)
        also = "".join(f"; not measured here: {key} {percent(missing[key])}" for key in missing)
        facts.append(f"paper: {source}{also}")
    if evaluation.craft_precision != "float32":
        facts.append(f"attacks: searched in {evaluation.craft_precision}, judged in float32")
    facts += [
        f"seed: training {seed_of(summary)}, evaluation {evaluation.seed}",
        f"commit: training {evaluation.training_commit or 'not recorded'}, "
        f"evaluation {evaluation.commit or 'not recorded'}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    title = f"### {markdown_escape(summary['name'])}, seed {seed_of(summary)}"
    command = "    " + " ".join(summary["command"].split())
    return "\n\n".join([title, command, "\n".join(f"- {markdown_escape(fact)}" for fact in facts)])


def leaderboard_of(docs: Path, look: bool) -> str:
    """Return the text of leaderboard.json.

    Args:
        docs: The folder of the page.
        look: Whether to look for changes of code. If not, the marks in the present file remain; so
            do those of runs whose commit is not in the git history.
    """
    marks = {(row["name"], row["seed"]): row["stale"] for row in leaderboard.read(docs)}
    rows = []
    for summary in summaries_of(docs):
        mark = marks.get((full_name(summary), seed_of(summary)))
        files = stale.changed_files(summary) if look else None
        rows.append(leaderboard.row_of(summary, mark if files is None else bool(files)))
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def outdated(docs: Path) -> list[Path]:
    """Return the rendered files that do not agree with the records."""
    texts = {docs / "results" / "leaderboard.json": leaderboard_of(docs, look=False), **pages(docs)}
    return [
        path
        for path, text in texts.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def pages(docs: Path) -> dict[Path, str]:
    """Return the files that are rendered from leaderboard.json and the records, path -> text."""
    texts = {docs / "results.md": render(docs)}
    readme = docs.parent / "README.md"
    if readme.is_file():
        rows = leaderboard.read(docs)
        texts[readme] = leaderboard.with_tables(readme.read_text(encoding="utf-8"), rows)
    return texts


def report_changes(docs: Path) -> None:
    """Print a line for each result whose code has changed since, or may have changed."""
    for summary in summaries_of(docs):
        files = stale.changed_files(summary)
        title = f"{full_name(summary)}, seed {seed_of(summary)}"
        commit = summary["evaluation"].commit
        if files is None:
            print(f"{title}: unknown whether stale: no commit {commit} in this history")
        elif files:
            print(f"{title}: stale: changed since {commit}: {stale.sentence(files)}")


def main(
    docs: Path,
    add: Sequence[str] = (),
    check: bool = False,
    name: str | None = None,
    suite: str = "",
) -> int:
    """Add runs and render, or check, and return the exit status. An error is printed in one line.

    Args:
        docs: The folder of results.md and results/.
        add: The folders of runs to add.
        check: Whether to only check the rendered files.
        name: Another name for the run that is added.
        suite: The suite whose runs are added. They get a group of their own; "" adds them to the
            group of their data set.
    """
    try:
        if check:
            report_changes(docs)
            if old := outdated(docs):
                names = ", ".join(map(str, old))
                raise UserError(f"{names}: out of date; run python tools/render_results.py")
            return 0
        if name is not None and len(add) != 1:
            raise UserError(f"--as: expected one --add with it, received {len(add)}")
        for folder in add:
            print(add_run(Path(folder), docs / "results" / suite, name))
        # This file comes first, as the pages are rendered from it.
        write_text(docs / "results" / "leaderboard.json", leaderboard_of(docs, look=True))
        for path, text in pages(docs).items():
            write_text(path, text)
        results, drawn = docs / "results", set()
        for data, group in by_data(docs).items():
            drawn.add(results / f"{data}.svg")
            figure(group, results / f"{data}.svg")
            if runs := timed(group):
                drawn.add(results / f"{data}_time.svg")
                time_figure(runs, results / f"{data}_time.svg")
        for picture in {*results.glob("*.svg")} - drawn:  # its runs are gone
            picture.unlink()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def command() -> int:
    """Run the command line, and return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="RUN",
        help="a finished run to add; repeatable",
    )
    parser.add_argument("--as", dest="name", help="another name for the run that is added")
    parser.add_argument("--suite", default="", help="the suite whose runs are added")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a file is out of date")
    parser.add_argument("--docs", default="docs", help="the folder of results.md and results/")
    args = parser.parse_args()
    return main(Path(args.docs), args.add, args.check, args.name, args.suite)


if __name__ == "__main__":
    sys.exit(command())
