"""Attacks with images that come from a surrogate or from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import PGD, Threat, noise
from tfrobust.attacks import ATTACKS, SavedImages, Transfer
from tfrobust.errors import UserError
from tfrobust.registry import build

SEED = noise.seed_for(0, 0, "test")
THREAT = Threat("linf", 0.5, (-10.0, 10.0))
W = np.array([[1.0, -1.0], [0.5, 2.0], [-1.0, 1.0], [0.3, -0.2]], np.float32)
X = np.random.default_rng(0).random((6, 2, 2, 1)).astype("float32")
Y = (X.reshape(6, 4) @ W).argmax(axis=1).astype("int32")
# The images where the Linf attack on x W ends.
FAR = X + 0.5 * np.sign(W[:, 1 - Y] - W[:, Y]).T.reshape(X.shape)


@pytest.fixture
def source(linear: Callable[..., Any], tmp_path: Path) -> Path:
    """Return the run folder of the surrogate x W."""
    linear(W).save(tmp_path / "model.keras")
    return tmp_path


def test_images_of_the_surrogate_are_judged_by_one_pass_of_the_network(
    source: Path, linear: Any
) -> None:
    """Half of the images that break x W break x V, whose gradient differs in the last pixel."""
    v = np.array([[0.3, -0.2], [0.5, 2.0], [-1.0, 1.0], [-1.0, 1.0]], np.float32)
    attack, network = (
        Transfer(str(source), PGD(steps=3, step_size=1.0)),
        Mock(side_effect=linear(v)),
    )
    outcome = attack.run(network, X, Y, threat=THREAT, seed=SEED)
    np.testing.assert_allclose(outcome.images, FAR, atol=1e-6)
    np.testing.assert_array_equal(outcome.success, [1, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal((FAR.reshape(6, 4) @ v).argmax(1) != Y, outcome.success)
    assert network.call_count == 1
    np.testing.assert_array_equal(outcome.queries, 1)
    np.testing.assert_array_equal(outcome.gradients, 0)


def test_a_surrogate_that_is_first_run_in_a_graph_is_read_once(source: Path, linear: Any) -> None:
    """Its weights are not variables of the function that first runs it."""
    attack = Transfer(str(source), {"name": "pgd", "steps": 3, "step_size": 1.0})
    network = linear(W)

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 2, 1]), tf.TensorSpec([None], tf.int32)])
    def craft(x: Any, y: Any) -> Any:
        return attack(network, x, y, threat=THREAT, seed=SEED)

    np.testing.assert_allclose(craft(X, Y), FAR, atol=1e-6)
    (source / "model.keras").unlink()
    np.testing.assert_allclose(craft(X[:2], Y[:2]), FAR[:2], atol=1e-6)
    assert attack(network, X, Y, threat=THREAT, seed=SEED).shape == X.shape


def test_a_transfer_is_built_from_a_config() -> None:
    spec = {"name": "transfer", "source": "x", "attack": {"name": "pgd", "steps": 5}}
    attack = build(ATTACKS, spec, "attacks[0]")
    assert attack == Transfer("x", PGD(steps=5))
    assert Transfer("x").attack == PGD(steps=1000)
    assert build(ATTACKS, spec | {"attack": "fgsm"}, "attacks[0]").title == "Transfer FGSM from x"
    settings = json.loads(json.dumps(attack.settings(Threat("linf", 0.1))))
    assert settings["name"] == "transfer" and settings["source"] == "x"
    assert settings["attack"]["step_size"] == pytest.approx(0.05)  # 2.5 * 0.1 / 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attack": {"name": "pdg"}}, r"^attacks\[0\].attack.name: .*did you mean 'pgd'"),
        ({"attack": {"name": "pgd", "stps": 5}}, r"^attacks\[0\].attack.stps: .*mean 'steps'"),
        ({"attack": {"name": "pgd", "steps": 0}}, r"^attacks\[0\].attack.steps: expected int >= 1"),
        ({"attack": 5}, r"^attacks\[0\].attack: expected a name or a mapping with 'name', rec"),
        ({"outputs": "softmax"}, r"^attacks\[0\].outputs: expected one of logits, probabilities"),
        ({"source": 5}, r"^attacks\[0\].source: expected a valid string"),
    ],
)
def test_a_mistake_in_a_config_is_named_in_one_line(changed: dict[str, Any], message: str) -> None:
    spec = {"name": "transfer", "source": "x"} | changed
    assert re.search(message, error_line(lambda: build(ATTACKS, spec, "attacks[0]")))


def test_titles_name_the_surrogate() -> None:
    pgd = PGD(steps=5)
    for source, name in (
        ("runs/mnist_adv", "mnist_adv"),
        ("runs/mnist_adv/model.keras", "mnist_adv"),
        ("runs/mnist_adv/saved_model", "mnist_adv"),
        ("other.keras", "other.keras"),
    ):
        assert Transfer(source, pgd).title == f"Transfer PGD-5 from {name}"
    assert Transfer("x", pgd, "probabilities").title == "Transfer PGD-5 from x probabilities"
    named = Transfer("x", pgd, output="scores", signature="predict")
    assert named.title == "Transfer PGD-5 from x scores predict"
    assert named.settings(THREAT)["output"] == "scores"
    assert not {"output", "signature"} & set(Transfer("x", pgd).settings(THREAT))
    assert SavedImages("runs/a/theirs.npz").title == "Saved images theirs"


def test_a_surrogate_of_other_shapes_or_several_outputs_is_refused(
    source: Path, linear: Callable[..., Any]
) -> None:
    def message(attack: Any, network: Any, x: Any) -> str:
        """Return the error of an attack."""
        y = np.zeros(len(x), np.int32)
        return error_line(lambda: attack.run(network, x, y, threat=THREAT, seed=SEED))

    attack, network = Transfer(str(source), PGD(steps=1)), linear(W)
    text = message(attack, linear(W, shape=(4, 1, 1)), X.reshape(6, 4, 1, 1))
    assert text.startswith("source: expected a network of images (4, 1, 1), received (2, 2, 1)")
    text = message(attack, linear(np.ones((4, 3), np.float32)), X)
    assert text == "source: expected a network of 3 classes, received 2"
    two_outputs = str(source / "two_outputs.keras")
    keras.Model(network.input, {"a": network.output, "b": 2 * network.output}).save(two_outputs)
    assert "name that of the logits by output" in message(Transfer(two_outputs), network, X)
    surrogate = Transfer(two_outputs, output="b").surrogate
    np.testing.assert_allclose(surrogate(X), 2 * network(X), rtol=1e-6)
    assert message(Transfer("none"), network, X).startswith("source: expected a .keras or .h5")


ROWS = np.array([7, 3, 11], np.int64)


def saved(path: Path, **changed: Any) -> SavedImages:
    """Return the attack with three saved images of ROWS."""
    np.savez(path / "images.npz", **({"image": X[:3], "index": ROWS} | changed))
    return SavedImages(str(path / "images.npz"))


def test_saved_images_are_looked_up_by_their_index(tmp_path: Path) -> None:
    attack = saved(tmp_path)
    np.testing.assert_array_equal(attack.lookup(np.array([11, 7])), X[[2, 0]])
    np.testing.assert_array_equal(attack.lookup(np.array([3, 3, 11])), X[[1, 1, 2]])
    assert attack.lookup(np.array([], np.int64)).shape == (0, 2, 2, 1)


def test_saved_bytes_are_divided_by_255(tmp_path: Path) -> None:
    attack = saved(tmp_path, image=np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1))
    images = attack.lookup(ROWS)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images.ravel(), [0.0, 0.2, 1.0])


def test_an_index_without_an_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image for each of 3 rows, .* 2 of them, such as row 5$"):
        saved(tmp_path).lookup(np.array([7, 5, 6]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": X[:2]}, "expected 2 integers, received 'int64 of shape (3,)'"),
        ({"index": ROWS.astype("float32")}, "expected 3 integers, received 'float32 of"),
        ({"index": np.array([7, 3, 7])}, "expected each place once, received 'some twice'"),
        ({"image": X[:3].astype("float64")}, "expected float32 or uint8, received 'float64'"),
        ({"image": X[:3, 0, 0, 0]}, "or others [N, ...], received 'shape (3,)'"),
    ],
)
def test_mistaken_arrays_of_a_file_are_named(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    line = error_line(lambda: saved(tmp_path, **changed).lookup(ROWS))
    assert message in line and line.startswith("path: ")


@pytest.mark.parametrize("name", ["other.npz", "text.npz", "none.npz"])
def test_an_unreadable_file_is_an_error_of_one_line(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=X)
    (tmp_path / "text.npz").write_text("no archive")
    line = error_line(lambda: SavedImages(str(tmp_path / name)).lookup(ROWS))
    assert "an .npz file with image and index, rec" in line


def test_saved_images_cannot_be_crafted_outside_of_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^saved_images: expected an evaluation"):
        saved(tmp_path)(lambda x: tf.reshape(x, [-1, 4]), X, Y, threat=THREAT, seed=SEED)


def test_saved_images_are_built_from_a_config_and_saved_by_keras() -> None:
    attack = build(ATTACKS, {"name": "saved_images", "path": "x.npz"}, "attacks[0]")
    assert attack.settings(THREAT) == {"name": "saved_images", "path": "x.npz"}
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(attack)))
    assert keras.saving.deserialize_keras_object(config) == attack
