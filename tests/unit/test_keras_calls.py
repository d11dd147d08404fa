"""The arguments of `compile`, `fit`, `evaluate` and `predict` that users of Keras are used to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import FGSM, Adv, Awp, Natural, Threat, Trades
from tfrobust.errors import UserError
from tfrobust.models import small_cnn, with_precision

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3)).astype("float32")
X = RNG.random((8, 2, 2, 1)).astype("float32")
Y = np.arange(8) % 3
WEIGHT = np.linspace(0, 1, 8, dtype="float32")
THREAT = Threat("linf", 0.1)


@pytest.fixture
def model(linear: Callable[..., Any]) -> Natural:
    return compiled(linear(W))


def compiled(network: keras.Model) -> Natural:
    model = Natural(network, threat=THREAT, validation_attack=FGSM())
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    return model


def half() -> keras.Model:
    return with_precision(small_cnn((4, 4, 1), 3, filters=[2], units=2), "mixed_float16")


def test_a_loss_that_keras_takes_by_its_place_is_refused_by_its_name(model: Natural) -> None:
    for call in (
        lambda: model.compile("sgd", "mse"),
        lambda: model.compile("sgd", loss="mse"),
    ):
        assert error_line(call) == "loss: expected none (the method brings its own), received 'one'"
    line = error_line(lambda: model.compile("sgd", None, None, ["accuracy"]))
    assert line.startswith("metrics: expected none")
    model.compile("sgd", metrics=[], loss=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": None}, "optimizer: expected an optimizer or its name, received None"),
        ({"jit_compile": "yes"}, "jit_compile: expected True, False or 'auto', received 'yes'"),
        ({"auto_scale_loss": 0}, "auto_scale_loss: expected True or False, received 0"),
        ({"steps_per_execution": 0}, "steps_per_execution: expected int >= 1, received 0"),
        ({"steps_per_execution": 2.5}, "steps_per_execution: expected int >= 1, received 2.5"),
    ],
)
def test_mistakes_in_compile_are_one_line(
    model: Natural, options: dict[str, Any], message: str
) -> None:
    assert error_line(lambda: model.compile(**options)) == message


def test_the_loss_is_scaled_unless_compile_says_otherwise(tmp_path: Path) -> None:
    model = Natural(half(), threat=THREAT)
    scaling = keras.optimizers.LossScaleOptimizer
    model.compile("sgd")
    assert isinstance(model.optimizer, scaling)
    model.compile("sgd", auto_scale_loss=False)
    assert not isinstance(model.optimizer, scaling)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not isinstance(loaded.optimizer, scaling)


def test_an_optimizer_of_other_weights_is_refused(linear: Callable[..., Any]) -> None:
    dense = [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
    network = keras.Sequential([*dense, keras.layers.Dense(3)])
    network.layers[1].trainable = False
    model = compiled(network)
    model.train_on_batch(X, Y)
    optimizer = model.optimizer
    network.layers[1].trainable = True
    for scaled in (False, True):
        again = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
        model.compile(again, run_eagerly=True)
        line = error_line(lambda: model.train_on_batch(X, Y))
        assert line.startswith("optimizer: expected a new one (this one was first used with other")
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model.train_on_batch(X, Y)
    network.layers[1].trainable = False  # an optimizer need not train all its weights
    model.compile(model.optimizer, run_eagerly=True)
    model.train_on_batch(X, Y)


def test_a_method_is_no_network(model: Natural) -> None:
    inner = Trades(model.network, threat=THREAT, beta=1.0)
    line = error_line(lambda: Adv(inner, threat=THREAT))
    assert line.startswith("network: expected model.network alone, received <Tr")
    line = error_line(lambda: Awp(inner, gamma=0.01))
    assert line.startswith("network: expected the network alone (another method goes into `method`")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected int >= 1, received 0"),
        ({"batch_size": 4.0}, "batch_size: expected int >= 1, received 4.0"),
        ({"epochs": 1.5}, "epochs: expected int >= 0, received 1.5"),
        ({"initial_epoch": -1}, "initial_epoch: expected int >= 0, received -1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: expected int >= 1, received 0"),
        ({"validation_batch_size": 0}, "validation_batch_size: expected int >= 1, received 0"),
        ({"validation_steps": 0}, "validation_steps: expected int >= 1, received 0"),
        ({"validation_freq": 0}, "validation_freq: expected int >= 1, received 0"),
        ({"validation_split": -0.5}, "validation_split: expected a number in [0, 1), received"),
        ({"validation_split": 1}, "validation_split: expected a number in [0, 1), received 1"),
    ],
)
def test_numbers_that_train_on_nothing_are_refused(
    model: Natural, options: dict[str, Any], message: str
) -> None:
    options = {"validation_data": (X, Y), "verbose": 0, **options}
    assert error_line(lambda: model.fit(X, Y, **options)).startswith(message)


def test_numbers_of_evaluate_and_predict_are_checked_too(model: Natural) -> None:
    for call in (lambda: model.evaluate(X, Y, 0), lambda: model.predict(X, batch_size=0)):
        assert error_line(call) == "batch_size: expected int >= 1, received 0"


def test_arguments_of_evaluate_count_by_their_places_too(model: Natural) -> None:
    by_name = model.evaluate(X, Y, batch_size=4, sample_weight=WEIGHT, verbose=0)
    assert model.evaluate(X, Y, 4, 0, WEIGHT.tolist()) == by_name
    endless = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat()
    by_name = model.evaluate(endless, steps=2, verbose=0)
    assert model.evaluate(endless, None, None, 0, None, 2) == by_name


def test_predict_refuses_the_images_that_fit_refuses(model: Natural) -> None:
    logits = model.predict(X, verbose=0)
    bytes_ = np.round(255 * X).astype(np.uint8)
    batches = tf.data.Dataset.from_tensor_slices(bytes_).batch(4)
    for call in (
        lambda: model.predict(bytes_, verbose=0),
        lambda: model.predict_on_batch(bytes_),
        lambda: model.predict(batches, verbose=0),
        lambda: model.predict({"image": 255 * X}, verbose=0),
    ):
        assert "expected float images in [0, 1], received" in error_line(call)
    one_hot = tf.data.Dataset.from_tensor_slices((X, np.eye(3)[Y])).batch(4)
    for data in (X.tolist(), X.astype(np.float64), {"image": X, "label": "none"}, one_hot):
        np.testing.assert_allclose(model.predict(data, verbose=0), logits, rtol=1e-6)


def test_train_on_batch_weighs_examples_and_classes_as_fit_does(
    linear: Callable[..., Any],
) -> None:
    fitted, stepped = compiled(linear(W)), compiled(linear(W))
    options: Any = {"sample_weight": WEIGHT, "class_weight": {1: 3.0}}
    fitted.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **options)
    stepped.train_on_batch(X, Y, **options)
    np.testing.assert_array_equal(fitted.network.get_weights(), stepped.network.get_weights())


@pytest.mark.parametrize("class_weight", [{"a": 2.0}, {7: 2.0}, [1.0, 2.0, 3.0]])
def test_train_on_batch_refuses_weights_of_no_class(model: Natural, class_weight: Any) -> None:
    with pytest.raises(UserError, match="^class_weight: expected a mapping of classes 0 to 2"):
        model.train_on_batch(X, Y, class_weight=class_weight)


def test_every_image_of_a_batch_has_a_label_and_a_weight(model: Natural) -> None:
    for step in (model.train_on_batch, model.test_on_batch):
        line = error_line(lambda step=step: step(X, Y, WEIGHT[:3]))
        assert line.startswith("sample_weight: expected one number for each of 8 images, received")

    def once(*batch: Any) -> Iterator[Any]:
        yield batch

    for batch, name in (
        ((X, Y[:1]), "label"),
        ((X, Y, WEIGHT[:1]), "sample_weight"),
    ):
        line = error_line(lambda batch=batch: model.fit(once(*batch), verbose=0))
        assert line.startswith(f"{name}: expected one for each image of a batch, received 1")
    line = error_line(lambda: model.fit(once(X[:, :1], Y), verbose=0))
    assert line.startswith("image: expected images [N, 2, 2, 1], as the network takes them")


def test_a_graph_checks_the_number_of_labels_before_a_weight_moves(
    linear: Callable[..., Any],
) -> None:
    model = compiled(linear(W))
    model.compile("sgd")
    signature = (tf.TensorSpec([None, 2, 2, 1]), tf.TensorSpec([None], tf.int32))
    data = tf.data.Dataset.from_generator(lambda: iter([(X, Y[:1])]), output_signature=signature)
    line = error_line(lambda: model.fit(data, verbose=0))
    assert line.startswith("label: expected one for each image of a batch, received 1")
    np.testing.assert_array_equal(model.network.get_weights()[0], W)


def test_validation_data_is_checked_before_the_first_epoch(model: Natural) -> None:
    pairs = tf.data.Dataset.from_tensor_slices((X, Y))
    none = pairs.filter(lambda *_: False).batch(4)
    for data, message in (
        (X, "validation_data: expected labels beside the images, as (x, y), received 'none'"),
        ((X,), "validation_data: expected labels beside the images, as (x, y), received 'none'"),
        ({"image": X}, "validation_data: expected labels beside the images, as (x, y), received"),
        ({"image": 255 * X, "label": Y}, "validation_data: image: expected float images in [0, 1]"),
        ((X, Y, None, None), "validation_data: expected (x, y) or (x, y, sample_weight), received"),
        (none, "validation_data: expected at least one batch, received 0"),
    ):
        line = error_line(lambda data=data: model.fit(X, Y, validation_data=data, verbose=0))
        assert line.startswith(message)
    np.testing.assert_array_equal(model.network.get_weights()[0], W)


def test_images_and_labels_in_one_tuple_and_no_images_are_one_line(model: Natural) -> None:
    for call in (model.fit, model.evaluate, model.train_on_batch):
        line = error_line(lambda call=call: call((X, Y)))
        assert line.startswith("x: expected one array (labels are an argument of their own)")
    assert error_line(lambda: model.fit(y=Y)) == "x: expected images, received None"


def test_a_stream_of_unknown_length_without_batches_is_refused(model: Natural) -> None:
    """Keras would only warn, validate, and return an empty history."""
    none = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).filter(lambda *_: False)
    for call in (
        lambda: model.fit(none, verbose=0, validation_data=(X, Y)),
        lambda: model.evaluate(none, verbose=0),
        lambda: model.predict(none.map(lambda x, y: x), verbose=0),
    ):
        assert error_line(call) == "x: expected at least one batch, received 0"


def test_validation_data_may_run_out(model: Natural) -> None:
    """Keras goes on without it, as a generator of one pass is empty in the second epoch."""
    model.fit(X, Y, epochs=2, verbose=0, validation_data=((X, Y) for _ in range(1)))
    assert int(model.step) == 2


def test_weights_of_the_network_alone_are_refused(model: Natural, tmp_path: Path) -> None:
    file = tmp_path / "network.weights.h5"
    model.network.save_weights(file)
    line = error_line(lambda: model.load_weights(file))
    assert line.startswith(
        "filepath: expected weights that Natural saved; model.network.load_weigh"
    )
    model.save_weights(file)
    model.load_weights(file)
