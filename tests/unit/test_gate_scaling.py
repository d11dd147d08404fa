"""What training says of a network that expects images of another scale, or gives no gradients."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np
import pytest

from tests.errors import error_line
from tfrobust import FGSM, Adv, Natural, Threat

L = keras.layers
Y = np.arange(120) % 3
X = np.broadcast_to(((2 * Y + 1) / 6).astype("float32")[:, None, None, None], (120, 4, 4, 1))


def network(*first: Any, units: int = 3) -> keras.Model:
    """Return a network for images [4, 4, 1] that begins with the layers `first`."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4, 4, 1)), *first, L.Flatten(), L.Dense(units)])


def trained(scale: float) -> keras.Model:
    """Return a network that is right on all images times `scale`; darker ones are of class 0.

    The logits are 2 k (t - 1/2) - k^2 for the mean t of the pixels in units of a third, so class k
    wins if t - 1/2 is nearest to k.
    """
    model = network()
    third = scale * 16 / 3  # the sum of the pixels at t = 1
    kernel = np.tile(2 * np.arange(3) / third, (16, 1))
    offset = -np.arange(3) - np.arange(3) ** 2
    model.layers[-1].set_weights([kernel, offset])
    return model


def warnings(caplog: pytest.LogCaptureFixture, model: keras.Model, threat: Threat, x: Any) -> str:
    """Return what is said of a network before it is trained on images x."""
    logging.getLogger("absl").propagate = True
    caplog.clear()
    with caplog.at_level("WARNING", "absl"):
        Adv(model, threat=threat).check_network(x, labels=Y)
    return caplog.text


UNIT, BYTES = Threat("linf", 0.1), Threat("linf", 8, (0, 255))
FIRST = {
    "rescaling": lambda: network(L.Rescaling(1 / 255)),
    "to -1 to 1": lambda: network(L.Rescaling(1 / 127.5, offset=-1)),
    "normalization": lambda: network(L.Normalization(mean=[120.0], variance=[3000.0])),
    "after an augmentation": lambda: network(L.RandomFlip(), L.Rescaling(1 / 255)),
    "inside": lambda: keras.Sequential([keras.Input((4, 4, 1)), network(L.Rescaling(1 / 255))]),
}


@pytest.mark.parametrize("first", FIRST)
def test_training_warns_of_a_network_that_begins_with_a_scaling_of_0_to_255(
    first: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert "network: made for images in [0, 255], as its l" in warnings(
        caplog, FIRST[first](), UNIT, X
    )


@pytest.mark.parametrize("first", ["rescaling", "to -1 to 1", "normalization"])
def test_training_does_not_warn_of_a_network_of_the_images_that_it_gets(
    first: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert not warnings(caplog, FIRST[first](), BYTES, 255 * X)
    in_front = keras.Sequential([keras.Input((4, 4, 1)), L.Rescaling(255), FIRST[first]()])
    assert not warnings(caplog, in_front, UNIT, X)


def test_training_warns_of_a_network_that_knows_images_of_another_scale(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not warnings(caplog, trained(1.0), UNIT, X)
    text = warnings(caplog, trained(255.0), UNIT, X)
    assert "network: right on 40% of 100 images in [0, 1], and on 100% of the same images" in text
    assert "in [0, 255]; if it was trained on these, put keras.layers.Rescaling(255, off" in text


def test_fit_warns_too(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("absl").propagate = True
    method = Adv(trained(255.0), threat=UNIT, attack=FGSM(), validation_attack=FGSM())
    method.compile("sgd")
    for data in ((X, Y), ({"image": X, "label": Y},)):
        caplog.clear()
        method.network.set_weights(trained(255.0).get_weights())
        method.fit(*data, verbose=0)
        assert "on 100% of the same images" in caplog.text


BLOCKED = {
    "round": keras.ops.round,
    "integers": lambda x: keras.ops.cast(keras.ops.cast(255 * x, "uint8"), "float32"),
}


@pytest.mark.parametrize("blocked", BLOCKED)
def test_adversarial_training_needs_gradients_at_the_images(blocked: str) -> None:
    """FGSM would find nothing, and the robust accuracy would be that under its random start."""
    image = keras.Input((4, 4, 1))
    model = keras.Model(image, L.Dense(3)(L.Flatten()(BLOCKED[blocked](image))))
    method = Adv(model, threat=UNIT)
    method.compile("sgd")
    line = error_line(lambda: method.fit(X, Y, verbose=0))
    assert line.startswith("network: expected one through which gradients reach the images, as i")
    assert int(method.step) == 0
    natural = Natural(model, threat=UNIT)
    natural.compile("sgd")
    natural.fit(X, Y, verbose=0)


def test_network_whose_gradients_are_zero_is_trained() -> None:
    """A last layer often begins with zeros."""
    model = network()
    model.layers[-1].set_weights([np.zeros((16, 3)), np.zeros(3)])
    method = Adv(model, threat=UNIT)
    method.compile("sgd")
    method.fit(X, Y, verbose=0)
    assert int(method.step) == 4
