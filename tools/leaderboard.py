"""The file docs/results/leaderboard.json, with a row for each recorded run, and its tables.

The fields have the names and the form of RobustBench's model_info: accuracies are strings in
percent with two decimals, and eps is a string such as "8/255". RobustBench's `link`, `authors` and
`venue` are left out, as a record does not have them. Further fields are:

- `split`: the images of the evaluation, such as test;
- `clean_examples`, `autoattack_examples`: their numbers;
- `runtime`: the seconds of AutoAttack;
- `training_seconds`: the time of training and its validation; in records that are too old to have
  it, the wall time, including pauses of a run that was stopped;
- `training_hardware`, `hardware`: those of training and of the evaluation, null in records that are
  too old to name them;
- `stale`: whether code that the run used has changed since (tools/stale.py), null if unknown.

`autoattack_acc` is null for a run that was not evaluated by AutoAttack, was on other images than
test images, or has several norms.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from summaries import full_name, name_without_seed

from tfrobust.errors import UserError
from tfrobust.record import is_autoattack
from tfrobust.report import (
    between,
    data_of,
    duration,
    interval,
    markdown_table,
    method_name,
    number,
    percent,
)
from tfrobust.report.text import factors_text

MARK = " †"  # follows the name of a result whose code has changed since
TABLE = re.compile(r"(<!-- leaderboard: ([\w./ -]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
Row = dict[str, Any]


def row_of(summary: Mapping[str, Any], stale: bool | None) -> Row:
    """Return the row of a run, from its record."""
    config, evaluation = summary["config"], summary["evaluation"]
    model, where = config.get("model") or {}, evaluation.provenance
    rows = [row for row in evaluation.attacks if is_autoattack(row.name)]
    split = data_of(config, evaluation).split
    compares = split == "test" and len(evaluation.balls) == 1  # no row is of a union of norms
    # In a cascade, what attacks before AutoAttack broke would count as broken by it.
    begins = {attack.suite or attack.name for attack in evaluation.single_attacks[:1]}
    alone = [row for row in rows if evaluation.mode == "each" or row.name in begins]
    attack = alone[0] if alone and compares else None
    sizes = [str(model[key]) for key in ("depth", "width") if key in model]
    return {
        "name": full_name(summary),
        "seed": config.get("seed"),
        "method": method_name(config),
        "dataset": config["data"]["name"],
        "architecture": "-".join([model["name"], *sizes]) if "name" in model else None,
        "norm": " + ".join(norm.capitalize() for norm, _, _ in evaluation.balls),
        "eps": " + ".join(
            number(eps).split(" = ")[0] + factors_text(factors)
            for _, eps, factors in evaluation.balls
        ),
        "additional_data": "extra" in config["data"] or model.get("weights", "none") != "none",
        "clean_acc": f"{100 * evaluation.clean_accuracy:.2f}",
        "split": split,
        "clean_examples": evaluation.examples,
        "autoattack_acc": f"{100 * attack.robust_accuracy:.2f}" if attack else None,
        "autoattack_examples": attack.examples if attack else None,
        "runtime": attack.seconds if attack else None,
        "training_seconds": training_seconds(summary),
        "training_hardware": evaluation.training_hardware,
        "hardware": f"{where.device}, {where.threads} threads" if where else None,
        "training_commit": evaluation.training_commit,
        "commit": evaluation.commit,
        "stale": stale,
    }


def training_seconds(summary: Mapping[str, Any]) -> float | None:
    """Return the time of training of a run; the wall time if its record is too old to have it."""
    training = summary["training"]
    seconds: float | None = training.get("training_seconds") or training["wall_seconds"]
    return seconds


def read(docs: Path) -> list[Row]:
    """Return the rows of results/leaderboard.json in `docs`; none if there is no such file.

    Raises:
        UserError: If the file is damaged.
    """
    path = docs / "results" / "leaderboard.json"
    if not path.is_file():
        return []
    try:
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
        for row in rows:
            row["name"], row["seed"], row["stale"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected rows with name, seed and stale, received {error!r}"
        ) from error
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the table of the runs with AutoAttack, the most robust of each data set first.

    The seeds of a run share a line with their mean and range, and their mean time of training. A
    run with one seed has the 95 % interval (Wilson) over its test images.
    """
    runs: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["autoattack_acc"] is not None:
            name = name_without_seed(row["name"])
            runs.setdefault((row["dataset"], row["norm"], row["eps"], name), []).append(row)
    lines = [
        (
            name + (MARK if any(row["stale"] for row in seeds) else ""),
            f"{norm}, eps {eps}",
            ", ".join(str(row["seed"]) for row in seeds),
            cell(seeds, "clean"),
            cell(seeds, "autoattack"),
            duration(mean(times) if (times := training_times(seeds)) else None),
        )
        for (_, norm, eps, name), seeds in sorted(runs.items(), key=rank)
    ]
    header = ["run", "threat", "seeds", "clean", "AutoAttack", "training time"]
    return markdown_table(header, lines) if lines else ""


def training_times(seeds: Sequence[Row]) -> list[float]:
    """Return the seconds of training of the runs that have them."""
    return [row["training_seconds"] for row in seeds if row["training_seconds"] is not None]


def rank(run: tuple[tuple[str, ...], Sequence[Row]]) -> tuple[Any, ...]:
    """Return the key by which the runs of a table are sorted."""
    (dataset, norm, eps, name), seeds = run
    return dataset, norm, eps, -mean(float(row["autoattack_acc"]) for row in seeds), name


def cell(seeds: Sequence[Row], kind: str) -> str:
    """Return an accuracy, "clean" or "autoattack", with its number of images and its range."""
    sizes = [row[f"{kind}_examples"] for row in seeds]
    rights = [
        round(float(row[f"{kind}_acc"]) * n / 100) for row, n in zip(seeds, sizes, strict=True)
    ]
    # Exact, as a mean of rounded ones is not.
    shares = [right / n for right, n in zip(rights, sizes, strict=True)]
    ends = (min(shares), max(shares)) if len(seeds) > 1 else interval(rights[0], sizes[0])
    images = " and ".join(f"{n:,}" for n in dict.fromkeys(sizes))
    return f"{percent(mean(shares))} of {images} ({between(*ends)})"


def with_tables(text: str, rows: Sequence[Row]) -> str:
    """Return a page with its tables made from the rows.

    A table stands between the comments `<!-- leaderboard: NAME NAME ... -->`, which lists its runs
    without their seeds, and `<!-- end -->`.

    Raises:
        UserError: If a run of a table has no result under AutoAttack.
    """

    def with_table(match: re.Match[str]) -> str:
        begin, listed, end = match.groups()
        names = listed.split()
        attacked = [(name_without_seed(row["name"]), row) for row in rows if row["autoattack_acc"]]
        chosen = [row for name, row in attacked if name in names]
        if missing := set(names) - {name for name, _ in attacked}:
            raise UserError(
                "leaderboard: expected runs with a result under AutoAttack, "
                f"received {', '.join(sorted(missing))}"
            )
        return f"{begin}\n{table(chosen)}\n\n{end}"

    return TABLE.sub(with_table, text)
