"""Render docs/results.md, the measured results, from the records of runs.

    python tools/render_results.py --add RUN    # RUN -> docs/results/NAME.json, then renders
    python tools/render_results.py --add RUN --as OTHER_NAME
    python tools/render_results.py              # docs/results/*.json -> docs/results.md
    python tools/render_results.py --check      # exits with 1 when docs/results.md is stale

If `docs/results/intro.md` exists, the page begins with it.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipelines import config as configs
from tfrobust.errors import UserError
from tfrobust.evaluation import Record
from tfrobust.io import write_atomically, write_text
from tfrobust.report import (
    NOTHING,
    AccuracyRow,
    accuracy_rows,
    duration,
    in_order,
    is_worst_case,
    load_run,
    markdown_escape,
    markdown_table,
    method_name,
    milliseconds,
    missing_from_paper,
    percent,
    points,
    summarise_training,
    threat_text,
)

PLACE_KEYS = {"dir", "path", "init_from"}  # keys whose values are places of files
EXPLANATION = """This page is written by `python tools/render_results.py` from
`docs/results/*.json`. To change the page, change these files.

The percentages in parentheses are the 95 % interval (Wilson) of an accuracy on n test images.
Differences from a paper are in percentage points. In the worst case an image counts as right only
if no attack succeeded on it. The column `worst case` is over the attacks that ran on the most
images. If other attacks ran on fewer images, a further column is over all attacks on these images.
The time per batch is the median over the epochs."""


def add_run(run: Path, results: Path, name: str | None = None) -> Path:
    """Write the summary of a finished run.

    Args:
        run: The run's folder.
        results: The folder of the summaries.
        name: The name of the summary, by default the run's.

    Returns:
        The summary's file: `results`/NAME.json, or NAME_seedN.json for a second seed of a run.

    Raises:
        UserError: For a run that is damaged or whose evaluation is not finished.
    """
    record = load_run(run)
    config, name = record.config, name or record.config["name"]
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"{run}: expected a name that can be a file name, received {name!r}")
    if pending := record.evaluation.pending:
        raise UserError(f"{run}: expected a finished evaluation; not run: {', '.join(pending)}")
    command = config.get("command") or f"python -m pipelines.run {config['name']}"
    summary = {
        "name": name,
        "command": without_places_in_command(command),
        "note": config.get("note"),
        "config": without_places(
            {k: v for k, v in config.items() if k not in ("command", "note")} | {"name": name}
        ),
        "evaluation": without_places(record.evaluation.as_json()),
        "training": asdict(summarise_training(record.history, record.config)),
    }
    path = results / f"{name}.json"
    if path.is_file() and read_summary(path)["config"].get("seed") != config.get("seed"):
        path = results / f"{name}_seed{config.get('seed')}.json"
    write_text(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return path


def is_place(text: Any) -> bool:
    """Return whether a value is a path on some machine."""
    return isinstance(text, str) and re.match(r"[/~\\]|\.\.?/|[A-Za-z]:\\", text) is not None


def without_places(value: Any) -> Any:
    """Return the value without the entries that name places on the machine that made it."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if k not in PLACE_KEYS and not is_place(v)}
        return {key: without_places(entry) for key, entry in kept.items()}
    if isinstance(value, list):
        return [without_places(entry) for entry in value if not is_place(entry)]
    return value


def without_places_in_command(command: str) -> str:
    """Return the command without `--set key=PLACE`, which differs between machines."""
    kept: list[str] = []
    for word in shlex.split(command):
        key, _, value = word.partition("=")
        if kept[-1:] == ["--set"] and (key.split(".")[-1] in PLACE_KEYS or is_place(value)):
            kept.pop()
        else:
            kept.append(word)
    return shlex.join(kept)


def read_summary(path: Path) -> dict[str, Any]:
    """Return a summary. Raises UserError if its file is damaged."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        for key in ("name", "command", "config", "evaluation", "training"):
            summary[key]
        summary["config"]["data"]["name"]
        summary["config"]["paper"] = paper_of(summary)
        summary["evaluation"] = Record.parse(summary["evaluation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected a run summary, received {error!r}") from error
    return summary


def paper_of(summary: Mapping[str, Any]) -> Any:
    """Return the paper's figures in the config of this name or, without one, in the run's."""
    recorded = summary["config"].get("paper")
    if summary["name"] not in configs.available():
        return recorded
    return configs.load(configs.find(summary["name"])).get("paper", recorded)


def render(docs: Path) -> str:
    """Return the text of results.md, from `docs`/results/*.json."""
    intro = docs / "results" / "intro.md"
    top = intro.read_text(encoding="utf-8").rstrip() if intro.is_file() else "# Results"
    parts = [top, EXPLANATION]
    for data, group in by_data(docs).items():
        picture = f"![Clean and worst-case accuracy](results/{data}.svg)"
        parts += [f"## {markdown_escape(data)}", picture, results_table(group)]
        notes = dict.fromkeys(summary["note"] for summary in group if summary.get("note"))
        parts += [f"Note: {markdown_escape(note)}" for note in notes]
        if seeds := seeds_table(group):
            parts += ["Over seeds, mean ± sample standard deviation (lowest to highest):", seeds]
        parts += [run_section(summary) for summary in group]
    return "\n\n".join(parts) + "\n"


def rows_of(summary: Mapping[str, Any]) -> dict[str, AccuracyRow]:
    return {row.name: row for row in accuracy_rows(summary["config"], summary["evaluation"])}


def attack_columns(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns: clean, the attacks of the group in the order of first use, worst case.

    A suite has one column; the attacks in it have none.
    """
    attacks = [attack for summary in group for attack in summary["evaluation"].attacks]
    parts = {attack.name for attack in attacks if attack.suite}
    names = (name for summary in group for name in rows_of(summary))
    return [name for name in in_order(names) if name not in parts]


def seed_of(summary: Mapping[str, Any]) -> Any:
    return summary["config"].get("seed")


def title_of(summary: Mapping[str, Any], group: Iterable[Mapping[str, Any]]) -> str:
    """Return the name of a run, with its seed if the group has another run of this name."""
    twins = [other for other in group if other["name"] == summary["name"]]
    return summary["name"] + (f" (seed {seed_of(summary)})" if len(twins) > 1 else "")


def results_table(group: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of a group: one row for each run, with its accuracies and its cost."""
    columns = attack_columns(group)
    header = ["run", "method", "threat", *columns, "time per batch", "wall time", "epochs"]
    lines = []
    for summary in group:
        config, training, rows = summary["config"], summary["training"], rows_of(summary)
        line = [
            title_of(summary, group),
            method_name(config),
            threat_text(summary["evaluation"].radii),
            *(accuracy_cell(rows.get(column)) for column in columns),
            milliseconds(training["seconds_per_batch"]),
            duration(training["wall_seconds"]),
            training["epochs"] or NOTHING,
            config.get("precision", NOTHING),
        ]
        lines.append(line)
    return markdown_table([*header, "precision"], lines, lines="<br>")


def accuracy_cell(row: AccuracyRow | None) -> str:
    if row is None:
        return NOTHING
    measured = (
        f"{percent(row.accuracy)} ({100 * row.low:.1f} to {100 * row.high:.1f})\nn={row.examples}"
    )
    if row.paper is None:
        return measured
    return f"{measured}\npaper {percent(row.paper)}, {points(row.difference)}"


def seeds_table(group: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of runs that differ only in name and seed; empty if there are none."""
    families: dict[str, list[Mapping[str, Any]]] = {}
    for summary in group:
        config = {k: v for k, v in summary["config"].items() if k not in ("name", "seed")}
        base = re.sub(r"_seed\d+$", "", summary["name"])
        families.setdefault(base + json.dumps(config, sort_keys=True), []).append(summary)
    several = [family for family in families.values() if len({*map(seed_of, family)}) > 1]
    if not several:
        return ""
    columns = attack_columns([summary for family in several for summary in family])
    lines = []
    for family in several:
        line = [
            re.sub(r"_seed\d+$", "", family[0]["name"]),
            ", ".join(str(seed_of(summary)) for summary in family),
        ]
        for column in columns:
            rows = [rows_of(summary).get(column) for summary in family]
            values = [row.accuracy for row in rows if row is not None]
            line.append(spread(values) if len(values) == len(family) else NOTHING)
        lines.append(line)
    return markdown_table(["run", "seeds", *columns], lines)


def spread(values: Sequence[float]) -> str:
    """Return mean, deviation and range: [0.8, 0.9] is '85.0 ± 7.1 % (80.0 to 90.0)'."""
    low, high = 100 * min(values), 100 * max(values)
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f} % ({low:.1f} to {high:.1f})"


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
    facts += [
        f"seed: training {seed_of(summary)}, evaluation {evaluation.seed}",
        f"commit: training {evaluation.training_commit or 'not recorded'}, "
        f"evaluation {evaluation.commit or 'not recorded'}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    title = f"### {markdown_escape(summary['name'])}, seed {seed_of(summary)}"
    command = "    " + " ".join(summary["command"].split())
    return "\n\n".join([title, command, "\n".join(f"- {markdown_escape(fact)}" for fact in facts)])


def figure(group: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a data set's runs as an SVG.

    Each run has a line with its clean and its worst-case accuracy, each with the 95 % interval; the
    seeds of a run share a line.
    """
    names = list(dict.fromkeys(re.sub(r"_seed\d+$", "", summary["name"]) for summary in group))
    drawn = Figure(figsize=(6.4, 0.7 + 0.42 * len(names)), layout="constrained")
    axes = drawn.add_subplot()
    for colour, kind in (("#2f7ed8", "clean"), ("#e07b39", "worst case")):
        for summary in group:
            row = rows_of(summary).get(kind)
            if row is None:
                continue
            line: float = names.index(re.sub(r"_seed\d+$", "", summary["name"]))
            twins = [other for other in group if other["name"] == summary["name"]]
            line += 0.16 * (twins.index(summary) - (len(twins) - 1) / 2)
            reach = [[row.accuracy - row.low], [row.high - row.accuracy]]
            axes.errorbar(row.accuracy, line, xerr=reach, fmt="o", ms=4, lw=1, color=colour)
        axes.plot([], [], "o", color=colour, label=kind)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "tfrobust"}):
        write_atomically(path, lambda aside: drawn.savefig(aside, metadata={"Date": None}))


def by_data(docs: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the summaries of `docs`/results by data set, in the order of name and seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    summaries = [read_summary(path) for path in sorted((docs / "results").glob("*.json"))]
    for summary in sorted(summaries, key=lambda each: (each["name"], seed_of(each) or 0)):
        groups.setdefault(summary["config"]["data"]["name"], []).append(summary)
    return dict(sorted(groups.items()))


def main(docs: Path, add: Sequence[str] = (), check: bool = False, name: str | None = None) -> int:
    """Add runs and render, or check; return the exit status. An error is one line."""
    page = docs / "results.md"
    try:
        if check:
            if not page.is_file() or page.read_text(encoding="utf-8") != render(docs):
                raise UserError(f"{page}: stale; run python tools/render_results.py")
            return 0
        if name is not None and len(add) != 1:
            raise UserError(f"--as: expected one --add with it, received {len(add)}")
        for run in add:
            print(add_run(Path(run), docs / "results", name))
        write_text(page, render(docs))
        for data, group in by_data(docs).items():
            figure(group, docs / "results" / f"{data}.svg")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def command() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="RUN",
        help="a finished run to add; repeatable",
    )
    parser.add_argument("--as", dest="name", help="another name for the run that is added")
    parser.add_argument("--check", action="store_true", help="exit with 1 if results.md is stale")
    parser.add_argument("--docs", default="docs", help="the folder of results.md and results/")
    args = parser.parse_args()
    return main(Path(args.docs), args.add, args.check, args.name)


if __name__ == "__main__":
    sys.exit(command())
