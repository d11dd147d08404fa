"""Twenty honest networks for digits: undefended ones, and ones that training made robust."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import keras
from keras import layers

from tests.defences.defences import classifier, digits
from tfrobust.methods import METHODS
from tfrobust.models import small_cnn
from tfrobust.threat import Threat

SHAPE, CLASSES = (8, 8, 1), 10
Activation = partial(partial, layers.Activation)


def perceptron() -> keras.Model:
    """Return a network of two dense layers."""
    stack = [keras.Input(SHAPE), layers.Flatten(), layers.Dense(128, "relu")]
    return keras.Sequential([*stack, layers.Dense(64, "relu"), layers.Dense(CLASSES)])


def linear() -> keras.Model:
    """Return a linear network."""
    return keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(CLASSES)])


def normalised() -> keras.Model:
    """Return the convolutional network with BatchNorm before each ReLU."""
    return classifier(lambda: keras.Sequential([layers.BatchNormalization(), layers.ReLU()]))


cnn = partial(small_cnn, SHAPE, CLASSES, filters=[16, 32], kernel=3, units=64)
NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "cnn": classifier,
    "pooled": cnn,
    "silu": partial(cnn, activation="silu"),
    "softplus": partial(cnn, activation="softplus"),
    "tanh": partial(classifier, Activation("tanh")),
    "elu": partial(classifier, Activation("elu")),
    "perceptron": perceptron,
    "linear": linear,
    "normalised": normalised,
}
OPTIONS = {"trades": {"beta": 6.0}, "atlas": {"alpha": 2e-3, "beta": 2.0}, "mart": {"beta": 5.0}}
HONEST: tuple[tuple[str, str, int], ...] = (
    *(
        ("natural", name, 0)
        for name in ("cnn", "silu", "tanh", "perceptron", "linear", "normalised")
    ),
    ("natural", "pooled", 1),
    *(
        ("adv", name, 0)
        for name in ("cnn", "pooled", "softplus", "elu", "perceptron", "normalised")
    ),
    ("adv", "silu", 1),
    *(("trades", name, 0) for name in ("cnn", "silu", "tanh")),
    *(("atlas", name, 0) for name in ("pooled", "softplus")),
    ("mart", "cnn", 0),
)


def honest(method: str, network: str, seed: int, threat: Threat) -> keras.Model:
    """Return a network that was trained by a method for a few epochs."""
    x, y, _, _ = digits()
    keras.utils.set_random_seed(seed)
    options = OPTIONS.get(method, {})
    model = METHODS[method](NETWORKS[network](), threat=threat, seed=seed, **options)
    model.compile(keras.optimizers.Adam(2e-3))
    model.fit(x, y, batch_size=64, epochs=15, verbose=0)
    return model.network
