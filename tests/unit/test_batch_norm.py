"""The passes of a training step move BatchNorm's averages in the order of the authors' code.

The network normalises its image, so each pass moves the one moving mean towards that of the images.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import Threat
from tfrobust.methods import METHODS

RNG = np.random.default_rng(0)
IMAGES = ("image", "adv", "collaborative", "noisy")
BATCH = {name: RNG.random((8, 2, 2, 1)).astype("float32") for name in IMAGES}
BATCH["label"] = np.arange(8, dtype=np.int32) % 3
BATCH["gradient"] = RNG.normal(size=(8, 2, 2, 1)).astype("float32")
BATCH["projection"] = RNG.normal(size=(8, 3)).astype("float32")
PASSES = {
    "natural": ["image"],
    "adv": ["adv"],
    "atlas": ["adv", "image"],
    "trades": ["image", "adv", "image"],
    "trades_jac": ["image", "adv", "image"],
    "awp": ["adv"],
    "alp": ["both"],
    "mart": ["image", "adv"],
    "llr": ["image"],  # the pass of the adversary uses the statistics of the image
    "gkl": ["adv", "image"],
    "gradalign": ["adv", "noisy"],
    "squeeze": ["image", "adv"],
    "nuat": ["adv", "image"],  # after a pass of the image in perturb
    "fgsm_pgi": ["noisy", "adv"],
}


def model_of(name: str, network: keras.Model) -> Any:
    """Return the compiled model of a method."""
    method = METHODS[name]
    facts = {"steps_per_epoch": 1, "num_examples": 8}
    model = method(network, threat=Threat("linf", 0.1), **facts, **method.example)
    model.compile("sgd")
    return model


@pytest.mark.parametrize("name", PASSES)
def test_loss_moves_the_averages_as_the_authors_code_does(name: str, normed: keras.Model) -> None:
    model, batch = model_of(name, normed), {key: tf.constant(value) for key, value in BATCH.items()}
    means = {name: BATCH[name].mean() for name in IMAGES}
    means["both"] = 0.5 * (means["image"] + means["adv"])
    expected = 0.0
    for images in PASSES[name]:
        expected = 0.9 * expected + 0.1 * means[images]
    model.gradients(batch)
    result = model.network.layers[1].moving_mean.numpy()
    np.testing.assert_allclose(result, [expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "passes"),
    [("nfgsm", 1), ("iaat", 11), ("gradalign", 1), ("mma", 10), ("nuat", 1)],
)
def test_methods_that_craft_in_training_mode_move_the_averages(
    name: str, passes: int, normed: keras.Model
) -> None:
    """Each pass moves them by a tenth; the mean of an attacked image differs a little."""
    model = model_of(name, normed)
    batch = {"image": tf.constant(BATCH["image"]), "label": tf.constant(BATCH["label"])}
    model.perturb(batch | {"index": tf.range(8)})
    left = 1 - model.network.layers[1].moving_mean.numpy()[0] / BATCH["image"].mean()
    assert round(np.log(left) / np.log(0.9)) == passes


class Inference(keras.Model):
    """A network that calls its BatchNorm as in inference, as some that are fine-tuned do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dense = keras.layers.BatchNormalization(), keras.layers.Dense(3)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.dense(keras.ops.reshape(self.norm(x, training=False), (-1, 4)))


def test_llr_takes_a_batch_norm_of_inference_only_if_it_is_frozen() -> None:
    """It begins with averages of 0, by which such a layer would normalise."""
    inference = Inference()
    inference(BATCH["image"])
    model, batch = METHODS["llr"](inference, threat=Threat("linf", 0.1)), dict(BATCH)
    batch["adv"] = batch["image"]
    batch = {key: tf.constant(value) for key, value in batch.items()}
    line = error_line(lambda: model.robust_loss(batch))
    assert "network: expected one whose BatchNorm layers take batch statistics" in line
    inference.norm.trainable = False
    natural = METHODS["natural"](inference, threat=Threat("linf", 0.1)).robust_loss(batch)
    np.testing.assert_allclose(model.robust_loss(batch)["loss"], natural["loss"], rtol=1e-5)


def test_llr_takes_a_batch_norm_that_is_called_twice_only_if_it_is_frozen() -> None:
    """x and x' = x differed: one statistic stood for those of both calls."""
    image, norm = keras.Input((2, 2, 1)), keras.layers.BatchNormalization()
    twice = keras.layers.Dense(3)(keras.layers.Flatten()(norm(2 * norm(image))))
    model = METHODS["llr"](keras.Model(image, twice), threat=Threat("linf", 0.1))
    batch = {key: tf.constant(value) for key, value in BATCH.items()}
    batch["adv"] = batch["image"]
    line = error_line(lambda: model.robust_loss(batch))
    assert "network: expected one that calls a BatchNorm once, unless it is frozen" in line
    norm.trainable = False
    np.testing.assert_allclose(model.robust_loss(batch)["linearity_gap"], np.zeros(8), atol=1e-6)


def test_penalties_on_activations_count_once_in_llr() -> None:
    """They were dropped, and then counted twice by AWP around LLR.

    With alpha = beta = 0 and x' = x the step is that of natural training.
    """

    def gradient(name: str, penalty: float, **options: Any) -> Any:
        keras.utils.set_random_seed(0)
        image, regularizer = keras.Input((2, 2, 1)), keras.regularizers.L2(penalty)
        hidden = keras.layers.Dense(4, activity_regularizer=regularizer)
        logits = keras.layers.Dense(3)(hidden(keras.layers.Flatten()(image)))
        model = METHODS[name](keras.Model(image, logits), threat=Threat("linf", 0.1), **options)
        model.compile("sgd")
        batch = {key: tf.constant(value) for key, value in BATCH.items()}
        return model.gradients(batch | {"adv": batch["image"]})[1][0]

    expected, without = gradient("natural", 0.5), gradient("natural", 0.0)
    assert np.abs(expected - without).max() > 0.1
    options: Any = {"alpha": 0.0, "beta": 0.0}
    np.testing.assert_allclose(gradient("llr", 0.5, **options), expected, rtol=1e-5)
    around = gradient("awp", 0.5, gamma=0.0, method={"name": "llr", **options})
    np.testing.assert_allclose(around, expected, rtol=1e-5)


def test_frozen_layer_keeps_its_averages(normed: keras.Model) -> None:
    model = model_of("trades", normed)
    model.network.layers[1].trainable = False
    batch = {name: tf.constant(BATCH[name]) for name in ("image", "adv", "label")}
    model.robust_loss(batch)
    np.testing.assert_array_equal(model.network.layers[1].moving_mean, [0.0])
    np.testing.assert_array_equal(model.network.layers[1].moving_variance, [1.0])
