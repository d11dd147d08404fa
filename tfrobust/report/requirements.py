"""Requirements on a run, judged by the flags of each image or by the minutes of its training.

Each requirement is judged by itself. For an accuracy the end of a one-sided interval decides, never
the number that was measured.

An accuracy has to be shown to reach its floor. If it were enough that it is not shown to miss the
floor, almost any network would pass on a few images. With a baseline it is the other way round: a
network has to be shown to be worse. Nothing can show that it is not worse at all, and not even a
network compared with itself would pass.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from tfrobust.flags import Flags
from tfrobust.record import RequirementRow
from tfrobust.report.compare import Difference


def at_least(name: str, right: np.ndarray, least: float, level: float) -> RequirementRow:
    """Judge a floor of an accuracy.

    It is met if the lower end of the exact one-sided interval (Clopper and Pearson, 1934) is not
    below the floor. A network whose true accuracy is lower meets it with a chance of at most
    1 - level.

    Args:
        name: The name of the requirement.
        right: Whether each image is right, bool [n].
        least: The floor, a fraction.
        level: The confidence of the interval.
    """
    n, value = len(right), float(right.mean())
    test = binomtest(int(right.sum()), n, alternative="greater")
    bound = float(test.proportion_ci(level).low)
    shown = math.floor(1e4 * bound) / 1e4  # a bound that misses is not rounded to the floor
    text = (
        f"{value:.2%} of {n} images, at least {shown:.2%} with {100 * level:g}% confidence; "
        f"required: at least {least:.2%}"
    )
    return RequirementRow(
        name=name,
        met=bound >= least,
        text=text,
        value=value,
        bound=bound,
        required=least,
        level=level,
        examples=n,
    )


def highest_floor(n: int, level: float) -> float:
    """Return the highest floor that n images can meet: the one for which all of them are right."""
    return float(binomtest(n, n, alternative="greater").proportion_ci(level).low)


def highest_gain(n: int, level: float) -> float:
    """Return the limit of the gains that n images can show: the bound if all are gained.

    Every gain that can be shown is below it.
    """
    return Difference(n, n, 0).at_least(level)


def not_worse(name: str, pair: Difference, baseline: str, level: float) -> RequirementRow:
    """Judge that a network is not worse than another on the same images.

    It is missed if McNemar's exact one-sided test shows that the network is worse: if the upper end
    of the interval of the difference is below 0. To meet it proves no equality.

    Args:
        name: The name of the requirement.
        pair: The network's flags against those of the baseline.
        baseline: The baseline as the message names it.
        level: The confidence of the interval, 1 minus the level of the test.
    """
    bound = pair.at_most(level)
    text = (
        f"{100 * pair.points:+.2f} points against {baseline} on {pair.n} images ({pair.gained} "
        f"gained, {pair.lost} lost), at most {100 * bound:+.2f} with {100 * level:g}% confidence; "
        "required: not below 0"
    )
    return RequirementRow(
        name=name,
        met=bound >= 0,
        text=text,
        value=pair.points,
        bound=bound,
        required=0.0,
        level=level,
        examples=pair.n,
    )


def at_most_minutes(seconds: float, most: float) -> RequirementRow:
    """Judge the time of training and its validation against the minutes that it may take."""
    text = f"{seconds / 60:.2f} minutes of training and validation; required: at most {most:g}"
    met = seconds <= 60 * most
    return RequirementRow(
        name="training_minutes", met=met, text=text, value=seconds / 60, required=most
    )


def above_before(name: str, pair: Difference, least: float, level: float) -> RequirementRow:
    """Judge that the accuracy of a network exceeds that before its training by more than `least`.

    It is met if the lower end of the one-sided interval of the difference (`Difference.at_least`)
    is above `least`.

    Args:
        name: The name of the requirement.
        pair: The network's flags against those of the network before training.
        least: The difference to exceed, a fraction; a loss that is allowed is below 0.
        level: The confidence of the interval.
    """
    bound = pair.at_least(level)
    text = (
        f"{100 * pair.points:+.2f} points against the network before training on {pair.n} images "
        f"({pair.gained} gained, {pair.lost} lost), at least {100 * bound:+.2f} with "
        f"{100 * level:g}% confidence; required: above {100 * least:+.2f}"
    )
    return RequirementRow(
        name=name,
        met=bound > least,
        text=text,
        value=pair.points,
        bound=bound,
        required=least,
        level=level,
        examples=pair.n,
    )


def under_all(flags: Flags) -> np.ndarray:
    """Return whether each image that every attack saw is right clean and under all, bool [n]."""
    n = min(map(len, flags.right.values()))
    return np.logical_and.reduce([right[:n] for right in flags.right.values()])


def junit(name: str, rows: Sequence[RequirementRow], warnings: Sequence[str]) -> str:
    """Return the verdicts as the text of a JUnit XML file, one test case a requirement.

    Args:
        name: The name of the run.
        rows: The verdicts.
        warnings: Lines for the output of the test suite.
    """
    counts = {"tests": str(len(rows)), "failures": str(sum(not row.met for row in rows))}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": name, **counts, "errors": "0"})
    for row in rows:
        case = ET.SubElement(suite, "testcase", {"classname": name, "name": row.name})
        line = f"{row.name}: {row.text}"
        if row.met:
            ET.SubElement(case, "system-out").text = line
        else:
            ET.SubElement(case, "failure", {"message": line}).text = line
    if warnings:
        ET.SubElement(suite, "system-out").text = "\n".join(warnings)
    ET.indent(suites)
    return ET.tostring(suites, encoding="utf-8", xml_declaration=True).decode() + "\n"
