"""Attacks that are called: `attack(network, x, y, threat=..., seed=...)` checks what it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import APGD, FAB, PGD, RayS, Square, Threat, evaluate
from tfrobust.attacks import SavedImages, Transfer

THREAT = Threat("linf", "8/255")
X = np.random.default_rng(0).random((8, 6, 6, 1)).astype("float32")
Y = np.arange(8) % 3
ATTACKS = [PGD(steps=3), APGD(steps=5), Square(queries=5), FAB(steps=3)]


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """Return a network of three classes whose outputs a Dropout would change in training mode."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6, 6, 1)), keras.layers.Dropout(0.5), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(3)])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.title)
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"x": X * 255}, "x: expected float images in [0, 1], received"),
        ({"x": X * 2 - 1}, "x: expected float images in [0, 1], received"),
        ({"x": (X * 255).astype("uint8")}, "received 'uint8'; divide them by 255"),
        ({"x": np.where(X > 0.9, np.nan, X)}, "x: expected finite images, received NaN"),
        ({"x": X[0]}, "x: expected images that the network takes"),
        ({"y": Y + 1}, "y: expected class numbers 0 to 2, as the network has 3 logits, received 3"),
        ({"y": np.eye(3)[Y]}, "y: expected class numbers [N] (of one-hot labels, argmax(-1))"),
        ({"y": Y[:4]}, "y: expected one label for each of 8 images, received (4,)"),
        ({"threat": "linf"}, "threat: expected a Threat, received 'linf'"),
        ({"threat": Threat("linf", 8)}, "(did you mean 8/255?)"),
        ({"seed": 0}, "seed: expected two integers, such as (0, 1), received 0"),
        ({"logits_fn": "model.keras"}, "logits_fn: expected a Keras network or another function"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_mistake_is_one_line(
    network: keras.Model, attack: Any, mistake: dict[str, Any], message: str
) -> None:
    given = {"logits_fn": network, "x": X, "y": Y, "threat": THREAT, "seed": (0, 1)} | mistake
    assert message in error_line(lambda: attack(**given))


def test_probabilities_and_steps_that_hardly_move_an_image_are_refused(
    network: keras.Model,
) -> None:
    probable = keras.Sequential([network, keras.layers.Softmax()])
    line = error_line(lambda: PGD()(probable, X, Y, threat=THREAT, seed=(0, 1)))
    assert line.startswith("logits_fn: expected logits, received probabilities")
    small = PGD(steps=3, step_size=1e-4)
    line = error_line(lambda: small(network, X, Y, threat=THREAT, seed=(0, 1)))
    assert line.startswith("step_size: expected steps that together reach 5% of eps")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.title)
def test_arrays_of_any_width_and_columns_of_labels_are_the_same(
    network: keras.Model, attack: Any
) -> None:
    """Labels [B, 1] were compared with each of the logits' rows, and gave other images."""
    x, y = tf.constant(X), tf.constant(Y, tf.int32)
    expected = attack.images(network, x, y, threat=THREAT, seed=(0, 1))
    assert not np.array_equal(expected, X)
    for images, labels in ((X, Y), (X.astype("float64"), Y[:, None]), (X.tolist(), Y.tolist())):
        crafted = attack(lambda z: network(z), images, labels, threat=THREAT, seed=(0, 1))
        np.testing.assert_array_equal(crafted, expected)


def test_an_eps_for_each_example_is_taken_or_refused(network: keras.Model) -> None:
    """Square and RayS failed within TensorFlow, and FAB for an eps of float64."""
    eps = np.linspace(0.01, 0.2, 8)
    threat = Threat("linf", tf.constant(eps))
    for attack in (PGD(steps=3), FAB(steps=3)):
        crafted = attack(network, X, Y, threat=threat, seed=(0, 1))
        assert (np.abs(crafted - X).max(axis=(1, 2, 3)) <= eps + 1e-6).all()
        assert not np.array_equal(crafted, X)
    for attack in (APGD(steps=3), Square(queries=5), RayS(queries=5)):
        line = error_line(lambda attack=attack: attack(network, X, Y, threat=threat, seed=(0, 1)))
        expected = "one number for all examples, of shape ()"
        assert line == f"threat.eps: expected {expected}, received (8,)"


def test_paths_of_files_may_be_path_objects(network: keras.Model, tmp_path: Path) -> None:
    """A record could not hold them: the evaluation failed when the attack had ended."""
    network.save(tmp_path / "surrogate.keras")
    np.savez(tmp_path / "images.npz", image=X, index=np.arange(8))
    attacks = [
        SavedImages(tmp_path / "images.npz"),
        Transfer(tmp_path / "surrogate.keras", attack=PGD(steps=2)),
    ]
    y = np.argmax(network(X), axis=-1)
    result = evaluate(
        network, X, y, THREAT, attacks=attacks, folder=tmp_path / "run", progress=False, check=False
    )
    names = ["clean", "Saved images images", "Transfer PGD-2 from surrogate.keras"]
    assert [each.name for each in result.results][:3] == names
    assert (tmp_path / "run" / "eval.json").is_file()


def test_a_path_of_another_type_is_refused() -> None:
    assert error_line(lambda: SavedImages(1)) == "path: expected a path, received 1"  # type: ignore[arg-type]
    assert error_line(lambda: Transfer(None)) == "source: expected a path, received None"  # type: ignore[arg-type]
