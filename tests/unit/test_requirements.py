"""Verdicts on requirements: against SciPy's tests, by hand, and as JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial

from tests.unit.test_compare import saved_run
from tfrobust.flags import Flags
from tfrobust.record import Record, RequirementRow
from tfrobust.report import load_run, write_report
from tfrobust.report.compare import Difference, difference
from tfrobust.report.requirements import (
    above_before,
    at_least,
    at_most_minutes,
    highest_floor,
    junit,
    not_worse,
    under_all,
)

COUNTS = [(0, 20), (9, 20), (13, 20), (14, 20), (20, 20), (470, 1000), (477, 1000), (900, 1000)]
PAIRS = [(0, 4), (0, 5), (4, 12), (4, 13), (12, 4), (3, 3), (40, 60), (6, 0)]


def floor_of(k: int, n: int, least: float, level: float) -> RequirementRow:
    return at_least("robust_accuracy", np.arange(n) < k, least, level)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("k", "n"), COUNTS)
def test_a_floor_is_met_where_the_one_sided_test_rejects_less(k: int, n: int, level: float) -> None:
    for least in (0.2, 0.45, 0.51, 0.88):
        row = floor_of(k, n, least, level)
        rejected = binomtest(k, n, least, alternative="greater").pvalue <= 1 - level
        assert row.met == rejected
        assert row.value == k / n and row.bound <= k / n and row.examples == n


def test_a_network_below_the_floor_rarely_meets_it() -> None:
    """The chance of each count is the binomial's at the floor itself, the worst case."""
    for n, least in ((30, 0.9), (200, 0.45)):
        met = [floor_of(k, n, least, 0.95).met for k in range(n + 1)]
        chance = binom.pmf(np.arange(n + 1), n, least)[met].sum()
        assert 0.02 < chance <= 0.05


def test_more_images_at_the_same_accuracy_meet_a_floor_that_fewer_miss() -> None:
    assert [floor_of(n // 2, n, 0.45, 0.95).met for n in (100, 200, 300, 1000)] == [
        False, False, True, True,
    ]  # fmt: skip


def test_what_decides_is_printed_and_not_rounded_to_the_floor() -> None:
    row = floor_of(470, 1000, 0.45, 0.95)
    low = binomtest(470, 1000, alternative="greater").proportion_ci(0.95).low
    assert row.bound == low == pytest.approx(0.4436, abs=1e-4)
    assert row.text == (
        "47.00% of 1000 images, at least 44.36% with 95% confidence; required: at least 45.00%"
    )
    near = floor_of(481, 1000, 0.4546, 0.95)  # the lower end is 0.454578
    assert not near.met and "at least 45.45% with" in near.text


def test_the_highest_floor_by_hand() -> None:
    assert highest_floor(360, 0.95) == pytest.approx(0.05 ** (1 / 360))
    assert floor_of(10, 10, highest_floor(10, 0.95), 0.95).met
    assert not floor_of(10, 10, highest_floor(10, 0.95) + 1e-6, 0.95).met


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("gained", "lost"), PAIRS)
def test_worse_is_what_mcnemars_one_sided_test_calls_worse(
    gained: int, lost: int, level: float
) -> None:
    row = not_worse("x", Difference(200, gained, lost), "baseline", level)
    p = binomtest(gained, gained + lost, alternative="less").pvalue
    assert row.met == (p >= 1 - level)
    assert row.value == (gained - lost) / 200 <= row.bound


def test_five_losses_alone_are_the_fewest_that_show_a_regression() -> None:
    """Half to the power of five is below 0.05, to the power of four it is not."""
    four, five = (not_worse("x", Difference(20, 0, lost), "old", 0.95) for lost in (4, 5))
    assert four.met and not five.met
    assert five.bound == pytest.approx((2 * (1 - 0.05**0.2) - 1) * 5 / 20)
    assert five.text == (
        "-25.00 points against old on 20 images (0 gained, 5 lost), at most -2.46 with 95% "
        "confidence; required: not below 0"
    )


def test_a_network_is_not_worse_than_itself() -> None:
    right = np.arange(50) % 3 > 0
    row = not_worse("x", difference(right, right), "itself", 0.95)
    assert row.met and row.value == row.bound == 0


def test_minutes_of_training_may_be_reached_and_not_passed() -> None:
    exact, late = at_most_minutes(3600.0, 60), at_most_minutes(3600.9, 60)
    assert exact.met and not late.met and late.value == pytest.approx(60.015)
    assert late.text == "60.02 minutes of training and validation; required: at most 60"
    assert late.bound is late.level is late.examples is None


def test_robust_is_right_under_every_attack_on_the_images_that_all_saw() -> None:
    right = {
        "clean": np.array([1, 1, 1, 0, 1], bool),
        "weak, all images": np.array([1, 1, 1, 0, 1], bool),
        "strong, the first three": np.array([1, 0, 1], bool),
    }
    flags = Flags(np.arange(5), np.zeros(5, int), right)
    assert under_all(flags).tolist() == [True, False, True]


def test_junit_is_read_back() -> None:
    rows = [floor_of(470, 1000, 0.45, 0.95), floor_of(900, 1000, 0.45, 0.95)]
    text = junit("a & b", rows, ["warning: more <steps>"])
    assert text.startswith("<?xml version='1.0' encoding='utf-8'?>")
    (suite,) = ET.fromstring(text.encode())
    assert suite.attrib == {"name": "a & b", "tests": "2", "failures": "1", "errors": "0"}
    missed, met = suite.findall("testcase")
    (failure,) = missed
    assert missed.get("name") == "robust_accuracy" and failure.tag == "failure"
    assert failure.get("message") == failure.text == f"robust_accuracy: {rows[0].text}"
    assert met.find("failure") is None and rows[1].text in str(met.findtext("system-out"))
    assert suite.findtext("system-out") == "warning: more <steps>"


def test_page_and_card_show_the_verdict_on_the_requirements_of_the_config(
    tmp_path: Path,
) -> None:
    rows = [floor_of(8, 10, 0.9, 0.95), floor_of(8, 10, 0.4, 0.95)]
    without, run = (
        saved_run(tmp_path / "a", 8, 4),
        saved_run(tmp_path / "b", 8, 4, require={"level": 0.95}),
    )
    for folder in (without, run):
        record = Record.load(folder)
        record.requirements = rows
        record.save(folder)
    assert load_run(without).missed == []
    assert load_run(run).missed == [f"robust_accuracy: {rows[0].text}"]
    page = write_report(run)
    assert page.read_text().count('<td class="wrong">missed</td>') == 1
    for file in (page.parent / "report.md", run / "MODEL_CARD.md"):
        assert f"| robust_accuracy | {rows[1].text} | met |" in file.read_text()


@pytest.mark.parametrize(("gained", "lost"), [(0.3, 0.1), (0.05, 0.0), (0.2, 0.25), (0.01, 0.02)])
def test_the_interval_of_a_difference_keeps_its_level(gained: float, lost: float) -> None:
    """The chance of each pair of counts of 16 images is the trinomial's."""
    n, level = 16, 0.9
    two_sided = above = 0.0
    for g in range(n + 1):
        for k in range(n + 1 - g):
            chance = multinomial.pmf([g, k, n - g - k], n, [gained, lost, 1 - gained - lost])
            if chance < 1e-3:  # which can only lower the sums
                continue
            low, high = Difference(n, g, k).interval(level)
            two_sided += chance * (low <= gained - lost <= high)
            above += chance * (Difference(n, g, k).at_least(level) <= gained - lost)
    assert two_sided > level and above > level


def test_a_gain_and_an_allowed_loss_by_hand() -> None:
    """With none gained of 20 and 4 lost: 0 less the upper end for 4 of 20, at 97.5 %."""
    pair = Difference(20, 0, 4)
    high = binomtest(4, 20, alternative="less").proportion_ci(0.975).high
    assert pair.at_least(0.95) == pytest.approx(-high) == pytest.approx(-0.4366, abs=1e-4)
    assert above_before("x", pair, -0.44, 0.95).met
    assert not above_before("x", pair, -0.43, 0.95).met
    assert not above_before("x", Difference(20, 0, 0), 0.0, 0.95).met  # the same network twice
    assert above_before("x", Difference(200, 60, 10), 0.0, 0.95).met
