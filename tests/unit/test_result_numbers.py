"""The numbers of the results page are those of the records."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfrobust.errors import UserError
from tfrobust.evaluation import Record
from tfrobust.flags import Flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from result_numbers import Numbers, filled_in
from summaries import packed, summaries_of, unpacked

DOCS = Path(__file__).resolve().parents[2] / "docs"
EVALUATION = {
    "examples": 100,
    "clean_accuracy": 0.8,
    "robust_accuracy": 0.3,
    "worst_case_examples": 100,
    "attacks": [],
    "threat": {"norm": "linf", "eps": 0.15},
    "pending": [],
    "curve": [{"lambda": 0.5, "clean_accuracy": 0.8, "robust_accuracy": 0.25}],
    "eps_curve": [{"eps": 0.1 + 0.2, "robust_accuracy": 0.125, "examples": 100}],
}


def summary(name: str, robust: float, *, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the summary of a run with one attack on 100 images.

    Args:
        name: The name of the run.
        robust: The share of images that are right under the attack.
        seed: The seed of the run.
        changes: `suite`, its suite; `first`, the first image that is right; `data`, a number of the
            data set.
    """
    attack = {"name": "AutoAttack", "examples": 100, "robust_accuracy": robust, "seconds": 3.1}
    evaluation = EVALUATION | {"robust_accuracy": robust, "attacks": [attack]}
    config = {"name": name, "seed": seed, "paper": {"clean": 0.81}}
    training = {"epochs": 31, "training_seconds": 3302.4}
    first = changes.get("first", 0)
    right = np.isin(np.arange(100), range(first, first + round(100 * robust)))
    images = np.arange(100)
    flags = Flags(
        images, np.zeros(100, int), {"AutoAttack": right}, images + changes.get("data", 0)
    )
    return {
        "name": name,
        "suite": changes.get("suite"),
        "config": config,
        "training": training,
        "evaluation": Record.parse(evaluation),
        "flags": packed(flags),
    }


SUMMARIES = [
    summary("adv", 0.4),
    summary("trades", 0.3, first=30),
    summary("mnist", 0.3, data=1),
    summary("former", 0.3) | {"flags": None},
    summary("oat", 0.2, seed=0),
    summary("oat", 0.3, seed=1),
    summary("gkl_seed-0", 0.5, suite="methods"),
    summary("gkl_seed-1", 0.7, seed=1, suite="methods"),
    summary("adv_seed-0", 0.65, suite="methods"),
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
        ('against("former", "adv")', "–"),
        ('epochs("adv")', "31"),
        ('training_time("adv")', "55 min 02 s"),
        ('at_eps("adv", 0.3)', "12.5 %"),
        ('at_lambda("adv", 0.5)', "80.0 / 25.0 %"),
        ('most_robust_first(runs_of("methods")) | join(", ")', "methods/adv, methods/gkl"),
    ],
)
def test_a_number_is_that_of_its_record(text: str, expected: str) -> None:
    assert filled_in(f"{{{{ {text} }}}}\n", SUMMARIES) == f"{expected}\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{{ accuracy('adw') }}", "expected a run with a record, received 'adw' (did you mean"),
        ("{{ accuracy('adv', 'PGD-20') }}", "adv: a column, received 'PGD-20'"),
        ("{{ at_eps('adv', 0.2) }}", "adv: an eps, received 0.2"),
        ("{{ epochs('oat') }}", "oat: expected one run, received 2 seeds"),
        ("{{ beside_paper('adv', 'AutoAttack') }}", "a figure of the paper for 'AutoAttack'"),
        ("{{ against('adv', 'mnist') }}", "expected adv and mnist on the same images"),
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


@pytest.mark.parametrize(
    ("column", "runs", "rows"), [(-3, "digits_methods/digits_", 19), (-2, "cpu_hour_", 6)]
)
def test_a_column_of_choosing_is_that_of_the_records(column: int, runs: str, rows: int) -> None:
    numbers, compared = Numbers(summaries_of(DOCS)), 0
    text = (DOCS / "choosing.md").read_text(encoding="utf-8")
    for line in text[text.index("| method | FastAT") :].split("\n\n")[0].splitlines()[2:]:
        cells = line.strip("|").split("|")
        if "PGD" in cells[column]:
            continue
        # The row "`awp` of `adv`" has the figure of the first alone.
        names, figures = re.findall(r"`(\w+)`", cells[0]), re.findall(r"\d+\.\d", cells[column])
        for name, figure in zip(names, figures, strict=False):
            assert numbers.accuracy(f"{runs}{name}") == f"{figure} %", line
            compared += 1
    assert compared == rows
