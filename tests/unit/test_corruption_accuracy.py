"""The accuracy on corrupted images, its record, and how a measurement is resumed.

The network predicts class 1 where the mean of an image is above 0.4, which is also the label of a
clean image, so the accuracy can be counted by hand.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import Threat
from tfrobust.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from tfrobust.errors import UserError
from tfrobust.evaluation import Corruptions, Details, Record, evaluate

X = np.random.default_rng(0).random((12, 8, 8, 1)).astype(np.float32) * np.float32(0.8)
Y = (X.mean(axis=(1, 2, 3)) > 0.4).astype(int)
TWO = Corruptions(("contrast", "fog"), (1, 5))
PIXEL = {"name": "uniform_noise", "draws": 1}


def network(images: Any) -> Any:
    """Return the logits 0 and mean - 0.4, [B, 2]."""
    mean = tf.reduce_mean(images, axis=[1, 2, 3])
    return tf.stack([tf.zeros_like(mean), mean - 0.4], axis=1)


def measured(folder: Path | None = None, corruptions: Any = TWO, **options: Any) -> Any:
    """Return the evaluation, without checks."""
    threat = options.pop("threat", Threat("linf", 0.01))
    options = {"x": X, "y": Y, "attacks": [PIXEL], "check": False, "progress": False} | options
    return evaluate(network, threat=threat, folder=folder, corruptions=corruptions, **options)


def by_hand(name: str, severity: int, x: Any = X, y: Any = Y, seed: int = 0) -> float:
    """Return the accuracy under a corruption."""
    changed = corrupted(x, name, severity, seed)
    return float(((changed.mean(axis=(1, 2, 3)) > 0.4) == y).mean())


def test_accuracies_equal_those_counted_by_hand() -> None:
    table = measured(seed=3, batch_size=5).corruptions
    expected = [[by_hand(name, s, seed=3) for s in (1, 5)] for name in ("fog", "contrast")]
    assert [row.name for row in table.rows] == ["fog", "contrast"]
    assert [row.accuracy for row in table.rows] == expected
    assert table.accuracy == pytest.approx(np.mean(expected)) and table.pending == []
    assert (table.examples, table.severities) == (12, [1, 5])
    # The contrast changes no mean, and fog some.
    assert expected[1] == [1.0, 1.0] and min(expected[0]) < 1


def test_the_noise_of_an_image_is_that_of_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 images 7 are corrupted, in batches of 5 that begin at places 0 and 5."""
    calls: list[tuple[int, int, int]] = []

    def noted(images: Any, name: str, severity: int, seed: int, first: int) -> Any:
        calls.append((seed, first, len(images)))
        return images

    monkeypatch.setattr("tfrobust.evaluation.corruption_accuracy.corrupted", noted)
    measured(corruptions=Corruptions("fog", (5,), examples=7), seed=3, batch_size=5)
    assert calls == [(3, 0, 5), (3, 5, 2)]


def test_true_measures_all_fifteen_corruptions_and_prints_a_line() -> None:
    evaluation = measured(corruptions=True, attacks=[])
    table = evaluation.corruptions
    assert [row.name for row in table.rows] == list(CORRUPTIONS)
    assert table.severities == list(SEVERITIES)
    assert f"corruptions: {table.accuracy:.2%} of 12" in str(evaluation)
    assert measured(corruptions=False).corruptions is None


def test_images_in_another_box_are_corrupted_in_the_unit_box() -> None:
    threat = Threat("linf", 0.01, box=(-1.0, 3.0))

    def scaled(images: Any) -> Any:
        return network((images + 1) / 4)

    options: Any = {"check": False, "progress": False, "corruptions": TWO}
    table = evaluate(scaled, 4 * X - 1, Y, threat, [], **options).corruptions
    expected = measured(attacks=[]).corruptions
    assert [row.accuracy for row in table.rows] == [row.accuracy for row in expected.rows]


def test_examples_limit_the_corrupted_images() -> None:
    """The default is the images of the attacks; more images extend the clean result."""
    few = Corruptions("fog", (5,), examples=4)
    evaluation = measured(corruptions=few)
    (row,) = evaluation.corruptions.rows
    assert row.accuracy == [by_hand("fog", 5, X[:4], Y[:4])]
    assert len(evaluation.results[0].robust) == 12
    limited = PIXEL | {"examples": 2}
    assert len(measured(corruptions=few, attacks=[limited]).results[0].robust) == 4
    all_attacked = measured(corruptions=TWO, attacks=[limited])
    assert all_attacked.corruptions.examples == 2


def test_recorded_corruptions_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    details = Details(say=lines.append)
    table = measured(tmp_path, details=details).corruptions
    record = Record.load(tmp_path)
    assert record.corruptions == table
    assert lines[-1] == f"corruptions: {table.accuracy:.2%} of 12"
    assert record.corruptions.rows[0].provenance.examples == 12
    before = (tmp_path / "eval.json").read_bytes()

    def never(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr("tfrobust.evaluation.corruption_accuracy.corrupted", never)
    assert measured(tmp_path).corruptions == table
    assert (tmp_path / "eval.json").read_bytes() == before
    # Other attacks leave the corruptions as they are, also where none are asked for.
    measured(tmp_path, attacks=["square"], corruptions=False)
    assert Record.load(tmp_path).corruptions == table


def test_interrupted_measurement_loses_at_most_one_corruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = itertools.count()

    def stopping(*arguments: Any) -> Any:
        if next(count) == 3:  # the second corruption, at its second severity
            raise KeyboardInterrupt
        return corrupted(*arguments)

    place = "tfrobust.evaluation.corruption_accuracy.corrupted"
    monkeypatch.setattr(place, stopping)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path)
    part = Record.load(tmp_path).corruptions
    assert [row.name for row in part.rows] == ["fog"] and part.pending == ["contrast"]
    assert part.accuracy is None

    calls: list[str] = []

    def counting(images: Any, name: str, *others: Any) -> Any:
        calls.append(name)
        return corrupted(images, name, *others)

    monkeypatch.setattr(place, counting)
    table = measured(tmp_path).corruptions
    assert set(calls) == {"contrast"} and table.pending == []
    expected = measured().corruptions
    assert [row.accuracy for row in table.rows] == [row.accuracy for row in expected.rows]


def test_more_corruptions_join_the_table_and_fewer_leave_a_copy(tmp_path: Path) -> None:
    measured(tmp_path)
    three = Corruptions(("fog", "snow", "contrast"), (1, 5))
    table = measured(tmp_path, corruptions=three).corruptions
    assert [row.name for row in table.rows] == ["snow", "fog", "contrast"]
    assert not (tmp_path / "evaluation.1").exists()
    for place, other in enumerate([TWO, Corruptions("fog", (2,))], 1):
        measured(tmp_path, corruptions=other)
        aside = Record.load(tmp_path / f"evaluation.{place}")
        assert aside.corruptions == table
        table = Record.load(tmp_path).corruptions
        assert [row.name for row in table.rows] == [n for n in CORRUPTIONS if n in other.chosen]
    measured(tmp_path, corruptions=Corruptions("fog", (2,)), rerun=True)
    assert Record.load(tmp_path / "evaluation.3").corruptions == table


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": ("fogg",)}, r"^names: expected one of all, .*\(did you mean 'fog'\?\)"),
        ({"names": "none"}, "^names: expected one of all, "),
        ({"names": ()}, "^names: expected at least one corruption, or all, received"),
        ({"severities": (0, 1)}, r"^severities: expected ints from 1 to 5, received \[0, 1\]"),
        ({"severities": (1.0,)}, r"^severities: expected ints from 1 to 5, received \[1.0\]"),
        ({"severities": (True,)}, r"^severities: expected ints from 1 to 5, received \[True\]"),
        ({"severities": ()}, r"^severities: expected ints from 1 to 5, received \[\]"),
        ({"examples": 0}, "^examples: expected int >= 1, received 0"),
    ],
)
def test_mistakes_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Corruptions(**values)


def test_integers_of_numpy_can_stand_in_the_record() -> None:
    """They failed when the record was written, after the last corruption."""
    given = Corruptions("fog", np.array([1, 5]), np.int64(3))
    assert given == Corruptions("fog", (1, 5), 3)
    assert {type(value) for value in (*given.severities, given.examples)} == {int}
