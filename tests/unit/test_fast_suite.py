"""The suite "fast": its attacks, its mark, and its cost and accuracy beside AutoAttack's; and the
budgets and the cost of suites."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.test_evaluation import FULL, HALF, X, Y, network
from tfrobust import Threat
from tfrobust.evaluation import ListedAttack, evaluate, list_attacks, run
from tfrobust.record import Record
from tfrobust.report.summary import how_counted

THREAT = Threat("linf", 0.04)
NAME = "Fast (upper bound)"


@pytest.mark.parametrize(
    ("entry", "suite"),
    [
        ("fast", NAME),
        ({"name": "fast", "label": "quick"}, "quick (upper bound)"),
        ({"name": "fast", "label": NAME}, NAME),
    ],
)
def test_the_fast_suite_is_called_an_upper_bound_under_every_label(entry: Any, suite: str) -> None:
    rows = list_attacks(entry, THREAT)
    assert {row.suite for row in rows} == {suite}
    assert all(row.name.startswith(f"{suite}: ") for row in rows)
    under_norms = list_attacks(entry, [THREAT, Threat("l2", 0.5)])
    assert {row.suite for row in under_norms} == {f"linf: {suite}", f"l2: {suite}"}


@pytest.mark.parametrize("suite", [NAME, "AutoAttack"])
def test_a_report_says_that_autoattack_may_leave_fewer_images_right(suite: str) -> None:
    row = {"name": suite, "examples": 10, "robust_accuracy": 0.5, "suite": suite}
    threat = {"norm": "linf", "eps": 0.04}
    record = {"examples": 10, "clean_accuracy": 0.9, "attacks": [row], "threat": threat}
    said = "AutoAttack itself may leave fewer images right" in how_counted(Record.parse(record))
    assert said == (suite == NAME)


@pytest.mark.slow
def test_the_fast_suite_agrees_with_autoattack_at_a_fifth_of_its_passes() -> None:
    """The network is a random one of ten classes with a hidden layer."""
    random = np.random.default_rng(0)
    x = random.uniform(0, 1, (500, 6, 6, 1)).astype(np.float32)
    hidden, last = (random.normal(size=s).astype(np.float32) for s in ((36, 64), (64, 10)))

    def network(images: Any) -> Any:
        return tf.nn.relu(tf.reshape(images - 0.5, [-1, 36]) @ hidden) @ last

    y = network(x).numpy().argmax(axis=1)
    attacks = ["autoattack", "fast"]
    options: Any = {"mode": "each", "check": False, "progress": False}
    results = {r.name: r for r in evaluate(network, x, y, THREAT, attacks, **options).results}
    whole, short = results["AutoAttack"], results[NAME]
    assert 0.1 < whole.accuracy < 0.9
    assert abs(short.accuracy - whole.accuracy) <= 0.002
    assert short.queries + short.gradients <= (whole.queries + whole.gradients) / 5


def test_the_attacks_of_the_suites_have_the_budgets_of_their_papers() -> None:
    def titles(version: str) -> list[str]:
        rows = list_attacks({"name": "autoattack", "version": version}, THREAT)
        return [row.attack.title for row in rows]

    plus = ["APGD-CE x5", "APGD-DLR x5", "APGD-T", "FAB-T", "Square-5000", "FAB x5"]
    assert titles("plus") == plus and titles("rand") == ["APGD-CE EOT 20", "APGD-DLR EOT 20"]
    rows = list_attacks({"name": "paper", "budget": "paper"}, THREAT)
    attacks: dict[str, Any] = {row.name: row.attack for row in rows}
    names = ("Un-T 20x50", "Multi-T 5x20", "Multi-T 20x50")
    counts = [(attacks[name].restarts, attacks[name].steps) for name in names]
    assert counts == [(20, 50), (5, 20), (20, 50)] and attacks["Un-T 20x50"].success == "any"
    assert attacks["RayS"].queries == 40_000


def test_the_cost_of_a_suite_is_the_sum_of_its_attacks() -> None:
    suite = [ListedAttack(HALF, "S: half", suite="S"), ListedAttack(FULL, "S: full", suite="S")]
    options: Any = {"mode": "each", "progress": False}
    rows = {row.name: row for row in run(network, X, Y, Threat("linf", 0.25), suite, **options)}
    for cost in ("queries", "gradients", "seconds"):
        parts = [getattr(rows[f"S: {name}"], cost) for name in ("half", "full")]
        assert getattr(rows["S"], cost) == sum(parts) > max(parts)
