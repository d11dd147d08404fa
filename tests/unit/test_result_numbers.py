"""The numbers of the results page are those of the records."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import config as configs
from tfrobust.errors import UserError
from tfrobust.evaluation import Record
from tfrobust.flags import Flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from leaderboard import cell, row_of
from render_results import title_of
from result_figures import timed
from result_numbers import Numbers, filled_in
from summaries import name_without_seed, packed, summaries_of, unpacked

DOCS = Path(__file__).resolve().parents[2] / "docs"
ATTACK = {"name": "AutoAttack", "examples": 100, "robust_accuracy": 0.4, "seconds": 3.1}
EVALUATION = {
    "examples": 100,
    "clean_accuracy": 0.8,
    "robust_accuracy": 0.3,
    "worst_case_examples": 100,
    "attacks": [],
    "data": {"name": "digits", "split": "test"},
    "threat": {"norm": "linf", "eps": 0.15},
    "pending": [],
    "curve": [{"lambda": 0.5, "clean_accuracy": 0.8, "robust_accuracy": 0.25}],
    "eps_curve": [{"eps": 0.1 + 0.2, "robust_accuracy": 0.125, "examples": 100}],
}


def summary(
    name: str,
    robust: float,
    *,
    seed: int = 0,
    suite: str | None = None,
    first: int = 0,
    data: int = 0,
) -> dict[str, Any]:
    """Return the summary of a run with one attack on 100 images.

    Args:
        name: The name of the run.
        robust: The share of images that are right under the attack.
        seed: The seed of the run.
        suite: The suite of the run.
        first: The first image that is right.
        data: A number that stands for the data set.
    """
    attack = ATTACK | {"robust_accuracy": robust}
    evaluation = EVALUATION | {"robust_accuracy": robust, "attacks": [attack]}
    images = np.arange(100)
    right = {
        "AutoAttack": np.isin(images, range(first, first + round(100 * robust))),
        "clean": images < 80,
    }
    return {
        "name": name,
        "suite": suite,
        "config": {"name": name, "seed": seed, "paper": {"clean": 0.81}},
        "training": {"epochs": 31, "training_seconds": 3302.4},
        "evaluation": Record.parse(evaluation),
        "flags": packed(Flags(images, np.zeros(100, int), right, images + data)),
    }


def overfitting(name: str, seed: int, epoch: int | None, jacobian: list[float]) -> dict[str, Any]:
    """Return the summary of a run that shows overfitting in an epoch, counted from 0."""
    run = summary(name, 0.1, seed=seed, suite="losses")
    run["config"]["train"] = {"epsilon_ramp_epochs": 2}
    seconds = [10.0 * (place + 1) for place in range(len(jacobian))]
    run["training"] |= {
        "robust_over_time": [[at, 0.5 - at / 1000] for at in seconds],
        "jacobian_over_time": [list(pair) for pair in zip(seconds, jacobian, strict=True)],
        "overfitted_seconds": [] if epoch is None else seconds[epoch:],
    }
    return run


SUMMARIES = [
    summary("adv", 0.4),
    summary("trades", 0.3, first=30),
    summary("mnist", 0.3, data=1),
    summary("former", 0.3) | {"flags": None},
    summary("oat", 0.2, seed=0),
    summary("oat", 0.3, seed=1),
    summary("gkl_seed-0", 0.5, suite="methods"),
    summary("gkl_seed-1", 0.7, seed=1, suite="methods"),
    summary("nuat_seed-0", 0.65, suite="methods"),
    # While eps grows, in the first two epochs, the estimate is neither the lowest nor too high.
    overfitting("fgsm_seed-0", 0, 4, [1, 99, 10, 12, 21, 80]),
    overfitting("fgsm_seed-1", 1, None, [1, 9, 10, 8, 12, 16]),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('accuracy("adv", "clean")', "80.0 %"),
        ('accuracy("methods/gkl")', "60.0 %"),
        ('accuracy("oat (seed 1)")', "30.0 %"),
        ('with_range("adv")', "40.0 % (30.9 to 49.8)"),  # Wilson's interval of 40 of 100
        ('with_range("methods/gkl")', "60.0 % (50.0 to 70.0)"),
        ('with_range("methods/gkl_seed-1")', "70.0 % (60.4 to 78.1)"),
        ('beside_paper("adv", "clean")', "80.0 % (81.0)"),
        # The p-value is that of 20 or fewer heads or tails in 50 tosses.
        ('against("trades", "adv")', "20, 30 (p = 0.203)"),
        ('against("trades", "adv", "clean")', "0, 0 (p = 1.000)"),
        ('against("trades", "mnist", same_images=False)', "30, 30 (p = 1.000)"),
        ('against("former", "adv")', "–"),
        ('epochs("adv")', "31"),
        ('training_time("adv")', "55 min 02 s"),
        ('at_eps("adv", 0.3)', "12.5 %"),
        ('at_lambda("adv", 0.5)', "80.0 / 25.0 %"),
        ('overfitting_epochs("losses/fgsm")', "5, –"),
        ('jacobian_epochs("losses/fgsm", 2)', "5, –"),
        ('jacobian_epochs("losses/fgsm", 1.4)', "5, 5"),
        ('highest_to_last("losses/fgsm")', "49.0 to 44.0 %, 49.0 to 44.0 %"),
        ('most_robust_first(runs_of("methods")) | join(", ")', "methods/nuat, methods/gkl"),
    ],
)
def test_a_number_is_that_of_its_record(text: str, expected: str) -> None:
    assert filled_in(f"{{{{ {text} }}}}", SUMMARIES) == expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{{ accuracy('adw') }}", "expected a run with a record, received 'adw' (did you mean"),
        ("{{ accuracy('adv', 'PGD-20') }}", "adv: expected a column, received 'PGD-20'"),
        ("{{ at_eps('adv', 0.2) }}", "adv: expected an eps, received 0.2"),
        ("{{ epochs('oat') }}", "oat: expected one run, received 2 seeds"),
        ("{{ beside_paper('adv', 'AutoAttack') }}", "a figure of the paper for 'AutoAttack'"),
        ("{{ against('adv', 'mnist') }}", "expected adv and mnist on the same images"),
        ("{{ against('adv', 'trades', 'Fast') }}", "adv: expected a column, received 'Fast'"),
        ("{{ runs_of('method') }}", "expected a suite with records, received 'method'"),
        ("{{ accuracy() }}", "expected a template"),
        ("{{ accuracy( }}", "expected a template"),
        ("{{ precision('adv') }}", "expected a template"),
    ],
)
def test_what_has_no_record_is_an_error_in_one_line(text: str, error: str) -> None:
    with pytest.raises(UserError) as raised:
        filled_in(text, SUMMARIES)
    assert error in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("n", [1, 8, 100])
def test_packed_flags_are_unpacked_again(n: int) -> None:
    right = np.random.default_rng(n).random(n) < 0.5
    row = {"name": "PGD", "examples": n, "robust_accuracy": float(right.mean())}
    record = Record.parse(EVALUATION | {"attacks": [row]})
    flags = packed(Flags(np.arange(n), np.zeros(n, int), {"PGD": right}))
    run = {"config": {}, "evaluation": record, "flags": flags}
    assert flags["images"] is None and np.array_equal(unpacked(run, "PGD"), right)


def test_held_out_images_are_not_taken_for_test_images() -> None:
    held_out = EVALUATION | {"data": {"name": "digits", "split": "validation"}}
    tested, run = summary("adv", 0.4), summary("adv", 0.4)
    run["evaluation"] = Record.parse(held_out | {"attacks": [ATTACK]})
    for each in (tested, run):
        each["config"]["data"] = {"name": "digits"}
        each["config"]["method"] = {"name": "adv"}
    assert title_of(tested, [tested]) == "adv"
    assert title_of(run, [run]) == "adv (validation images)"
    rows = [row_of(each, stale=False) for each in (tested, run)]
    assert [row["split"] for row in rows] == ["test", "validation"]
    assert [row["autoattack_acc"] for row in rows] == ["40.00", None]


def test_a_suite_has_a_figure_over_time_if_one_of_its_runs_overfits() -> None:
    lost, kept = (run for run in SUMMARIES if run["suite"] == "losses")
    assert timed([lost, kept]) == [lost, kept]
    assert timed([kept, kept]) == timed([lost]) == []
    assert timed([kept | {"suite": None}] * 2)


def test_the_leaderboard_rounds_a_mean_as_the_page_does() -> None:
    """The mean of these two is 40.85 %, which was 40.9 in one table and 40.8 in the other."""
    runs = [summary("adv", 0.41), summary("adv_seed1", 0.407, seed=1)]
    rows = [{"autoattack_acc": acc, "autoattack_examples": 1000} for acc in ("41.00", "40.70")]
    assert Numbers(runs).with_range("adv") == "40.8 % (40.7 to 41.0)"
    assert cell(rows, "autoattack") == "40.8 % of 1,000 (40.7 to 41.0)"


def test_seeds_with_other_numbers_of_images_are_told_apart() -> None:
    rows = [
        {"autoattack_acc": "50.00", "autoattack_examples": 1000},
        {"autoattack_acc": "40.00", "autoattack_examples": 50},
    ]
    assert cell(rows, "autoattack") == "45.0 % of 1,000 and 50 (40.0 to 50.0)"
    runs = [summary("adv", 0.5), summary("adv_seed1", 0.4, seed=1)]
    attack = ATTACK | {"examples": 50, "robust_accuracy": 0.4}
    runs[1]["evaluation"] = Record.parse(EVALUATION | {"examples": 50, "attacks": [attack]})
    with pytest.raises(UserError, match=r"adv: expected seeds with the same number of images"):
        Numbers(runs).with_range("adv")


@pytest.mark.parametrize(
    ("mode", "names", "expected"),
    [
        ("cascade", ["AutoAttack", "PGD"], "40.00"),
        ("cascade", ["PGD", "AutoAttack"], None),
        (None, ["PGD", "AutoAttack"], None),
        ("each", ["PGD", "AutoAttack"], "40.00"),
    ],
)
def test_the_leaderboard_has_autoattack_only_where_no_other_attack_helped(
    mode: str | None, names: list[str], expected: str | None
) -> None:
    run = summary("adv", 0.4)
    run["config"] |= {"data": {"name": "digits"}, "method": {"name": "adv"}}
    attacks = [ATTACK | {"name": name} for name in names]
    run["evaluation"] = Record.parse(EVALUATION | {"mode": mode, "attacks": attacks})
    assert row_of(run, stale=False)["autoattack_acc"] == expected


def test_columns_of_choosing_are_those_of_the_records() -> None:
    summaries = summaries_of(DOCS)
    hours = {name_without_seed(each["name"]).removeprefix("cpu_hour_") for each in summaries}
    hours = {name for name in hours if f"cpu_hour_{name}" in configs.available()}
    assert named(summaries, -2, "cpu_hour_") == hours
    assert len(named(summaries, -3, "digits_methods/digits_")) == 19


def named(summaries: list[dict[str, Any]], column: int, prefix: str) -> set[str]:
    """Compare a column of the guide, and return the methods that have a figure in it."""
    numbers, names = Numbers(summaries), set()
    text = (DOCS / "choosing.md").read_text(encoding="utf-8")
    for line in text[text.index("| method | FastAT") :].split("\n\n")[0].splitlines()[2:]:
        cells = line.strip("|").split("|")
        if "PGD" in cells[column]:
            continue
        # The row "`awp` of `adv`" has the figure of the first alone.
        methods, figures = re.findall(r"`(\w+)`", cells[0]), re.findall(r"\d+\.\d", cells[column])
        for method, figure in zip(methods, figures, strict=False):
            assert numbers.accuracy(f"{prefix}{method}") == f"{figure} %", line
            names.add(method)
    return names
