"""The check that attacks find adversarial images that were made to exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import PGD, Attack, MultiTargeted, Threat
from tfrobust.evaluation import Record, Result, evaluate
from tfrobust.evaluation.attack_list import ListedAttack
from tfrobust.evaluation.binarisation import Readout, _Binarised, binarised, features_of
from tfrobust.evaluation.results import Check
from tfrobust.evaluation.sample import Sample
from tfrobust.models import load_network

RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(0.2, 0.8, (6, 6, 6, 1)).astype(np.float32)
W = RANDOM.normal(size=(36, 96)).astype(np.float32)
THREAT = Threat("linf", 0.1)


def smooth(x: Any) -> Any:
    """Return 96 features of each image."""
    return tf.nn.softplus(tf.reshape(x - 0.5, [-1, 36]) @ W)


def rounded(x: Any) -> Any:
    """Return features whose gradient is 0 everywhere."""
    return smooth(tf.round(20 * x) / 20) + 0 * smooth(x)


def check(features: Any, *attacks: Attack, threat: Threat = THREAT) -> Check:
    """Return the check of an evaluation by these attacks."""
    right = np.ones(len(X), bool)
    listed = [Result(a.title, right, 0.0, ListedAttack(a, a.title)) for a in attacks]
    results = [Result("clean", right, 0.0), *listed]
    y = np.zeros(len(X), int)
    sample = Sample(smooth, X, y, threat, results, np.arange(len(X)), (X, y), 0, 500, False)
    return binarised(features, len(X))(sample)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_by_useful_gradients_finds_what_random_points_do_not(norm: str) -> None:
    result = check(smooth, PGD(steps=10), threat=Threat(norm, 0.1 if norm == "linf" else 0.3))
    assert (result.value, result.warns) == (1, False)
    assert result.text.startswith("An adversarial image was made to exist at 6 of 6 images.")
    assert result.text.endswith("200 random points find one at 0.")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_points_are_well_inside_the_ball_or_on_its_surface(norm: str) -> None:
    """A twentieth of eps is between them."""
    threat = Threat(norm, 0.1)
    test = _Binarised(smooth, X.shape[1:], threat, 0, 500)
    inside, surface = (test._draw(X[0], 50, 0, where) for where in ("inside", "surface"))
    assert 0.08 < threat.distance(inside, X[:1]).numpy().max() <= 0.095 + 1e-6
    np.testing.assert_allclose(threat.distance(surface, X[:1]), 0.1, rtol=1e-4)


def test_an_attack_by_useless_gradients_is_a_warning() -> None:
    result = check(rounded, PGD(steps=10))
    assert result.value is not None and result.value < 0.5 and result.warns


def test_an_evaluation_passes_if_one_of_its_attacks_finds_the_images() -> None:
    short = PGD(steps=1, step_size=1e-6, start="none")
    assert check(smooth, short).value == 0
    assert check(smooth, short, PGD(steps=10)).value == 1


def test_attacks_that_take_more_than_two_classes_are_left_out() -> None:
    many = MultiTargeted(steps=10, top=2)
    assert check(smooth, many, PGD(steps=10)).value == 1
    assert "an attack that reads no file and runs on two classes" in check(smooth, many).text


def test_the_test_is_not_measured_where_no_adversarial_image_can_be_made() -> None:
    result = check(lambda x: 0 * smooth(x), PGD(steps=1))
    assert (result.value, result.warns) == (None, False)
    assert "no readout tells a point" in result.text
    assert "it takes an attack that reads no file" in check(smooth).text


@pytest.mark.parametrize("options", [{"check": False}, {"attacks": []}])
def test_the_test_is_refused_where_it_would_not_be_made(options: dict[str, Any]) -> None:
    y = np.asarray(smooth(X)).argmax(axis=1)
    options = {"attacks": PGD(), "binarisation": 1, "progress": False, **options}
    line = error_line(lambda: evaluate(smooth, X, y, THREAT, **options))
    assert line == "binarisation: expected 0 without checks, attacks or gradients, received 1"


def test_the_readout_is_minus_one_at_the_image_and_positive_at_the_point_alone(
    rng: np.random.Generator,
) -> None:
    inner, point = rng.normal(size=(30, 5)), np.full(5, 9.0)
    readout = Readout.between(inner, point)
    assert readout is not None
    assert readout.weights @ inner[0] + readout.bias == pytest.approx(-1)
    assert (inner @ readout.weights + readout.bias < 0).all()
    assert readout.weights @ point + readout.bias > 0
    assert Readout.between(inner, inner.mean(axis=0)) is None


def test_the_features_are_what_the_last_layer_takes(tmp_path: Path) -> None:
    hidden = keras.layers.Dense(7, activation="relu")
    network = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), hidden])
    network.add(keras.layers.Dense(3))
    expected = hidden(tf.reshape(X, [-1, 36]))
    np.testing.assert_array_equal(features_of(network)(X), expected)
    network.save(tmp_path / "model.keras")
    saved = load_network(tmp_path / "model.keras")
    np.testing.assert_array_equal(features_of(saved)(X), expected)
    assert features_of(smooth) is smooth


def test_a_network_that_is_no_graph_of_layers_has_its_outputs_as_features() -> None:
    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.last = keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.last(tf.reshape(x, [-1, 36]))

    network = Subclassed()
    network(X[:1])
    assert features_of(network) is network


@pytest.mark.slow
def test_an_evaluation_with_the_test_adds_it_to_the_record(tmp_path: Path) -> None:
    def names(**options: Any) -> list[str]:
        y = np.asarray(smooth(X)).argmax(axis=1)
        attack = PGD(steps=1)
        evaluate(smooth, X, y, THREAT, attack, folder=tmp_path, progress=False, **options)
        return [row.name for row in Record.load(tmp_path).checks]

    without = names()
    with_the_test = names(binarisation=2)
    assert "binarisation" in with_the_test and set(with_the_test) > set(without)
    for count in (2, 3):
        names(binarisation=count)
        assert f" of {count} images" in Record.load(tmp_path).checks[-1].text
    assert names() == without
    line = error_line(lambda: names(binarisation=-1))
    assert "binarisation: expected int >= 0" in line
