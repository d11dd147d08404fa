"""The images and labels that `craft` and `adversaries` take in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import PGD, Threat
from tfrobust.evaluation import adversaries, craft, landscape, margins, valley
from tfrobust.evaluation.results import plain
from tfrobust.evaluation.searches import of_rows
from tfrobust.xla import compiled

X = np.random.default_rng(0).random((6, 2, 2, 1)).astype("float32")
Y = np.arange(6) % 3
W = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
ATTACK, THREAT = PGD(steps=2), Threat("linf", 0.1)


def network(x: Any) -> Any:
    """Return linear logits [B, 3]."""
    return tf.reshape(x, [-1, 4]) @ W


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X.astype("float64"), Y[:, None]),
        (tf.constant(X), tf.constant(Y)),
        (X.tolist(), Y.tolist()),
        (X, Y.astype("uint8")),
    ],
)
def test_images_and_labels_of_any_form_give_the_same_result(x: Any, y: Any) -> None:
    crafted, expected = craft(network, x, y, ATTACK, THREAT), craft(network, X, Y, ATTACK, THREAT)
    for part, part_expected in zip(crafted, expected, strict=True):
        np.testing.assert_array_equal(part, part_expected)
    assert crafted.images.dtype == np.float32


def test_numpy_integers_are_integers() -> None:
    attack, size = PGD(steps=np.int64(2)), np.int32(6)
    images = adversaries(network, X, Y, attack, THREAT, batch_size=size)
    np.testing.assert_array_equal(images, adversaries(network, X, Y, ATTACK, THREAT, batch_size=6))
    settings = plain(attack.settings(THREAT))
    assert settings["steps"] == 2 and type(settings["steps"]) is int


def test_images_in_half_precision_stay_within_eps() -> None:
    """The adversarial images were rounded to the precision of the images that came."""
    half = X.astype("float16")
    images = adversaries(network, half, Y, ATTACK, THREAT)
    assert images.dtype == np.float32
    assert np.abs(images - half.astype("float32")).max() <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X > 0.5, Y, "x: expected float images in [0, 1], received 'bool'; cast them to float32"),
        (np.uint8(X > 0.5), Y, "x: expected float images in [0, 1], received 'uint8'; divide them"),
        (255 * X, Y, "; divide them by 255"),
        (X, np.eye(3)[Y], "y: expected class numbers [N] (of one-hot labels, argmax(-1)), receive"),
        (X, Y[:5], "y: expected one label for each of 6 images, received (5,)"),
    ],
)
def test_other_images_and_labels_are_one_line(x: Any, y: Any, message: str) -> None:
    """Images of uint8 that hold 0 and 1 had adversarial images that were cut to these."""
    assert message in error_line(lambda: adversaries(network, x, y, ATTACK, THREAT))


@pytest.mark.parametrize("measure", [landscape, margins, valley])
def test_curves_and_margins_check_their_images_and_labels_too(measure: Any) -> None:
    """The landscape of images in [0, 255] was that of images of 1, labels [N, 1] a traceback."""
    line = error_line(lambda: measure(network, 255 * X, Y, THREAT))
    assert line.startswith("x: expected float images in [0, 1], received")
    lists, arrays = measure(network, X.tolist(), Y[:, None], THREAT), measure(network, X, Y, THREAT)
    values = (lists.values(), arrays.values()) if isinstance(arrays, dict) else (lists, arrays)
    for value, expected in zip(*values, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack": "pgd"}, "attack: expected an attack, such as PGD(), received 'pgd'"),
        ({"threat": 0.1}, "threat: expected a tfrobust.Threat, received 0.1"),
        ({"batch_size": 0}, "batch_size: expected int >= 1, received 0"),
        ({"seed": None}, "seed: expected int of at most 64 bits, received None"),
    ],
)
def test_other_attacks_threats_sizes_and_seeds_are_one_line(change: Any, message: str) -> None:
    arguments = {"x": X, "y": Y, "attack": ATTACK, "threat": THREAT} | change
    assert error_line(lambda: adversaries(network, **arguments)) == message


def test_eps_for_each_image_is_one_line() -> None:
    threat = THREAT.at(tf.fill([6], 0.1))
    line = error_line(lambda: craft(network, X, Y, ATTACK, threat))
    assert line.startswith("threat.eps: expected one number for all images, received <tf.Tensor")


@pytest.mark.parametrize("kind", ["compiled by XLA", "on some rows"])
def test_attacks_one_after_the_other_are_no_retracing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(tf.get_logger(), "handle", lambda record: said.append(record.getMessage()))

    def run(images: Any, labels: Any, number: Any) -> Any:
        return images

    for _ in range(6):
        if kind == "compiled by XLA":
            compiled(run)(tf.constant(X), tf.constant(Y), tf.constant(0))
        else:
            of_rows(run, X.shape[1:])(X, Y, 0, np.array([1, 4]))
    assert said == []
