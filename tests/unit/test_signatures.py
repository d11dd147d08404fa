"""Networks of every kind in training, and the advice on how to remove a softmax from one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from tests.errors import error_line
from tests.products import slow_but
from tfrobust import FGSM, Adv, Atlas, Threat
from tfrobust.errors import UserError
from tfrobust.gate import advice
from tfrobust.methods import METHODS
from tfrobust.models import with_precision
from tfrobust.models.signatures import Signature, forward, in_front, signature, takes

RNG = np.random.default_rng(0)
X, Y = RNG.random((6, 4, 4, 1)).astype("float32"), RNG.integers(0, 3, 6)
THREAT = Threat("linf", 0.1)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.dense = layers.Flatten(), layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(self.flat(x))


class InADict(Subclassed):
    def call(self, x: Any) -> Any:
        return {"logits": super().call(x["picture"])}


def called(network: keras.Model, x: Any = X[:2]) -> keras.Model:
    """Return the network, which the call has built."""
    network(x)
    return network


def functional(make: Callable[[Any, Any], keras.Model]) -> Callable[[], keras.Model]:
    """Return a function that builds make(image, logits of a dense layer)."""

    def build() -> keras.Model:
        image = keras.Input((4, 4, 1), name="pixels")
        return make(image, layers.Dense(3)(layers.Flatten()(image)))

    return build


def reloaded() -> keras.Model:
    network = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])
    return keras.Sequential.from_config(network.get_config())


def of_its_first_batch() -> keras.Model:
    return called(keras.Sequential([layers.Flatten(), layers.Dense(3)]))


def two_inputs() -> keras.Model:
    left, right = (keras.Input((4, 4, 1), name=name) for name in "ab")
    return keras.Model([left, right], layers.Flatten()(left + right))


def of_bytes() -> keras.Model:
    image = keras.Input((4, 4, 1), dtype="uint8")
    return keras.Model(image, layers.Dense(3)(layers.Flatten()(layers.Rescaling(1 / 255)(image))))


KINDS: dict[str, Callable[[], keras.Model]] = {
    "Sequential": reloaded,
    "Sequential of its first batch": of_its_first_batch,
    "lists": functional(lambda image, z: keras.Model([image], [z])),
    "dicts": functional(lambda image, z: keras.Model({"pixels": image}, {"logits": z})),
    "list to dict": functional(lambda image, z: keras.Model([image], {"logits": z})),
    "subclassed": lambda: called(Subclassed()),
    "subclassed, dicts": lambda: called(InADict(), {"picture": X[:2]}),
}


@pytest.mark.parametrize("kind", slow_but(KINDS, ["Sequential", "dicts", "subclassed, dicts"]))
@pytest.mark.filterwarnings("error:The structure of `inputs`")
def test_every_kind_trains_and_validates_as_a_functional_network(kind: str) -> None:
    """Weights, logits and metrics are equal to the bit."""
    plain = functional(keras.Model)()
    network = KINDS[kind]()
    network.set_weights(plain.get_weights())
    assert signature(network) == Signature(("image",), (4, 4, 1), 3)
    results = []
    for trained in (plain, network):
        model = Atlas(trained, threat=THREAT, alpha=1e-2, beta=1.0, validation_attack=FGSM())
        model.compile("sgd", run_eagerly=True)
        logs = model.fit(X, Y, batch_size=3, shuffle=False, verbose=0, validation_data=(X, Y))
        results.append([*trained.get_weights(), model.predict(X, verbose=0), logs.history])
    for result, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_equal(result, expected)


def test_a_network_of_any_image_size_trains_but_not_where_a_method_needs_the_size(
    rng: np.random.Generator,
) -> None:
    """The code in the error of such a method fixes the size."""
    image = keras.Input((None, None, 1))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(image))
    network = keras.Model(image, layers.Dense(3)(pooled))
    assert signature(network) == Signature(("image",), (None, None, 1), 3)
    model = Adv(network, threat=THREAT, validation_attack=FGSM())
    model.compile("sgd", run_eagerly=True)
    for x in (X, rng.random((6, 5, 7, 1)).astype("float32")):
        model.fit(x, Y, verbose=0, validation_data=(x, Y))
    line = error_line(lambda: METHODS["free"](network, threat=THREAT, batch_size=6))
    assert re.search("Free keeps a delta.* received .None, None, 1.", line)
    code = line.partition("; ")[2].partition(" is one")[0]
    names = {"keras": keras, "network": network, "H": 4, "W": 4, "C": 1}
    exec(code, names)
    METHODS["free"](names["network"], threat=THREAT, batch_size=6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Subclassed, "network: expected a built keras.Model"),
        (functional(lambda i, z: keras.Model(i, [z, 2 * z])), "one output, received 2: "),
        (functional(lambda i, z: keras.Model(i, i)), r"output .None, classes., received '.None, 4"),
        (two_inputs, "one input, received 2: a, b; give the others values"),
        (of_bytes, "float images, received uint8; gradients do not pass through integers"),
    ],
)
def test_a_network_that_cannot_be_trained_is_an_error_of_one_line(
    make: Callable[[], keras.Model], message: str
) -> None:
    assert re.search(message, error_line(lambda: Adv(make(), threat=THREAT)))


def test_a_layer_in_front_is_proposed_where_shapes_differ_by_order_or_axes() -> None:
    assert takes((None, None, 3), (7, 8, 3)) and not takes((None, None, 3), (7, 8, 1))
    assert not takes((8, 8), (8, 8, 1))
    assert "Permute((3, 1, 2))" in in_front((3, None, None), (7, 8, 3))
    assert "Reshape((168,))" in in_front((168,), (7, 8, 3))
    assert "Reshape((7, 8, 3))" in in_front((7, 8, 3), (168,))
    assert in_front((169,), (7, 8, 3)) == in_front((7, 8, 4), (7, 8, 3)) == ""
    assert in_front((None, 9, 3), (7, 8, 3)) == ""


@pytest.mark.parametrize(
    ("taken", "shape"),
    [
        ((9, 6, 1), (4, 4, 1)),
        ((4, 4, 3), (4, 4, 1)),
        ((None, None, 3), (4, 4, 1)),
        ((9, 6, 1), (4, 4, 3)),
        ((1, 4, 4), (4, 4, 1)),
        ((4, 4, 1), (16,)),
    ],
)
def test_the_layer_in_front_is_code_that_works(taken: Any, shape: tuple[int, ...]) -> None:
    image = keras.Input(taken)
    network = keras.Model(image, layers.Dense(3)(layers.GlobalMaxPool2D()(image)))
    code = in_front(taken, shape).partition(": ")[2]
    namespace: dict[str, Any] = {"keras": keras, "network": network}
    exec(code, namespace)
    assert namespace["network"](np.zeros((2, *shape))).shape == (2, 3)


def test_another_precision_of_a_subclassed_network_is_refused() -> None:
    network = called(Subclassed())
    assert with_precision(network, "float32") is network
    with pytest.raises(UserError, match="Subclassed cannot be copied, .*set_dtype_policy.'mixed_b"):
        with_precision(network, "mixed_bfloat16")


def ending(*last: Any) -> keras.Model:
    """Return a network that ends with these layers."""
    return keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), *last])


ENDINGS: dict[str, Callable[[], keras.Model]] = {
    "Dense": lambda: ending(layers.Dense(3, activation="softmax")),
    "sigmoids": lambda: ending(layers.Dense(3, activation="sigmoid")),
    "Activation": lambda: ending(layers.Dense(3), layers.Activation("softmax", dtype="float32")),
    "Softmax": lambda: ending(layers.Dense(3), layers.Softmax()),
    "nested": functional(lambda image, z: keras.Model(image, ENDINGS["Dense"]()(image))),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_the_advice_is_code_that_saves_a_network_of_logits(
    kind: str, tmp_path: Any, monkeypatch: Any
) -> None:
    """The softmax or sigmoids of its logits are the outputs of the network."""
    monkeypatch.chdir(tmp_path)
    network = ENDINGS[kind]()
    outputs = np.asarray(forward(network, X))
    exec(advice(network), {"keras": keras, "network": network})
    logits = forward(keras.saving.load_model("logits.keras"), X)
    squash = keras.ops.sigmoid if kind == "sigmoids" else keras.ops.softmax
    np.testing.assert_allclose(squash(logits), outputs, rtol=1e-5)
    assert not np.allclose(logits, outputs)


@pytest.mark.parametrize(
    "make",
    [
        functional(lambda i, z: keras.Model(i, keras.ops.softmax(z))),
        functional(lambda i, z: keras.Model(i, layers.Dropout(0.5)(layers.Softmax()(z)))),
        lambda: called(Subclassed()),
    ],
)
def test_the_advice_is_in_words_where_no_code_can_remove_the_softmax(
    make: Callable[[], keras.Model],
) -> None:
    assert advice(make()).startswith("build it again without its softmax or sigmoid, as new; ")
