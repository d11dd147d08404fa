"""Weights of examples and classes in training and validation, and the direction of each metric."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.products import slow_but
from tfrobust import PGD, Adv, Natural, Threat
from tfrobust.errors import UserError
from tfrobust.methods import METHODS, Gkl, Oat
from tfrobust.models import small_cnn

RNG = np.random.default_rng(1)
W = RNG.normal(size=(4, 3)).astype("float32")
X = RNG.random((12, 2, 2, 1)).astype("float32")
Y = np.arange(12) % 3
WEIGHT = RNG.integers(0, 4, 12).astype("float32")
FACTS = {"num_examples": 12, "batch_size": 6, "steps_per_epoch": 2}
MEASURED = ("loss", "accuracy", "robust_accuracy", "fgsm_accuracy", "jacobian")


class Batches(keras.utils.PyDataset):
    """Two batches of six rows of the data."""

    def __init__(self, *data: Any):
        super().__init__()
        self.data = data

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> Any:
        rows = slice(6 * number, 6 * number + 6)
        batch = keras.tree.map_structure(lambda values: values[rows], self.data)
        return batch if len(batch) > 1 else batch[0]


def streamed(*data: Any) -> tf.data.Dataset:
    """Return a dataset of two batches of six rows of the data."""
    return tf.data.Dataset.from_tensor_slices(data if len(data) > 1 else data[0]).batch(6)


def dictionary(**weight: Any) -> dict[str, Any]:
    """Return the data in one dict."""
    return {"image": X, "label": Y} | weight


def test_two_devices_measure_the_same_as_one(
    on_two_devices: Callable[[str], dict[str, Any]],
) -> None:
    one, two = on_two_devices("weighted")
    assert two == pytest.approx(one, rel=1e-4)
    assert {"loss", "accuracy", "robust_accuracy"} <= two.keys()


def compiled(linear: Callable[..., Any]) -> Any:
    """Return a compiled model of the network x W."""
    model = Adv(linear(W), threat=Threat("linf", 0.3), validation_attack=PGD(steps=2))
    model.compile(keras.optimizers.SGD(0.1))
    return model


def evaluated(model: Any, weight: np.ndarray) -> dict[str, float]:
    """Return the metrics of the data with weights of the examples."""
    options = {"batch_size": 6, "verbose": 0, "return_dict": True}
    return model.evaluate(X, Y, sample_weight=weight, **options)


def test_devices_may_get_different_numbers_of_examples_or_none(
    on_two_devices: Callable[[str], Any],
) -> None:
    """BatchNorm's weights were NaN after a batch of which a device had no example."""
    for result in on_two_devices("uneven").values():
        assert result["finite"] and all(np.isfinite(value) for value in result["logs"].values())


def test_validation_reports_weighted_means_of_every_metric(linear: Callable[..., Any]) -> None:
    model = compiled(linear)
    batches = [model._validated(model.as_batch(batch)) for batch in streamed(X, Y)]
    values = {name: np.concatenate([batch[name] for batch in batches]) for name in MEASURED}
    means = {name: np.average(values[name], weights=WEIGHT) for name in MEASURED}
    assert means != pytest.approx({name: values[name].mean() for name in MEASURED}, rel=1e-2)
    expected = pytest.approx(means, rel=1e-5)
    assert evaluated(model, WEIGHT) == expected
    assert evaluated(model, WEIGHT[:, None].astype(int)) == expected
    for data in (streamed, Batches):
        for form in ((X, Y, WEIGHT), (dictionary(weight=WEIGHT),)):
            result = model.evaluate(data(*form), verbose=0, return_dict=True)
            assert result == expected
    history = model.fit(X, Y, batch_size=6, verbose=0, validation_data=(X, Y, WEIGHT)).history
    last = {name: history[f"val_{name}"][0] for name in MEASURED}
    assert last == pytest.approx(evaluated(model, WEIGHT))


def test_metrics_are_0_and_weights_stay_where_all_examples_have_weight_0(
    linear: Callable[..., Any],
) -> None:
    model = compiled(linear)
    assert evaluated(model, np.zeros(12)) == dict.fromkeys(MEASURED, 0.0)
    history = model.fit(X, Y, sample_weight=np.zeros(12), verbose=0).history
    assert history["loss"] == [0.0]
    np.testing.assert_array_equal(model.network.get_weights()[0], W)


def test_training_reports_the_mean_over_weights_and_minimises_the_mean_over_examples(
    linear: Callable[..., Any],
) -> None:
    """The reported loss is sum(w l) / sum(w), and the gradient that of sum(w l) / B, as Keras's."""
    model = Natural(linear(W), threat=Threat("linf", 0.3))
    model.compile(keras.optimizers.SGD(0.1))
    logs = model.train_step((tf.constant(X), tf.constant(Y), tf.constant(WEIGHT)))
    flat = X.reshape(12, 4)
    share = np.exp(flat @ W) / np.exp(flat @ W).sum(axis=1, keepdims=True)
    loss, right = -np.log(share[np.arange(12), Y]), share.argmax(axis=1) == Y
    assert float(logs["loss"]) == pytest.approx(np.average(loss, weights=WEIGHT), rel=1e-5)
    assert float(logs["accuracy"]) == pytest.approx(np.average(right, weights=WEIGHT), rel=1e-5)
    error = WEIGHT[:, None] * (share - np.eye(3)[Y])
    moved = W - 0.1 * flat.T @ error / 12
    np.testing.assert_allclose(model.network.get_weights()[0], moved, rtol=1e-4, atol=1e-6)


CLASSES = {0: 0.0, 2: 3.0}  # the weight of class 1 is 1
FORMS: dict[str, Callable[[Any], Any]] = {
    "arrays": lambda fit: fit(X, Y, batch_size=6, class_weight=CLASSES),
    "pairs": lambda fit: fit(streamed(X, Y), class_weight=CLASSES),
    "a dict": lambda fit: fit(dictionary(), batch_size=6, class_weight=CLASSES),
    "dicts": lambda fit: fit(streamed(dictionary()), class_weight=CLASSES),
    "a dict and labels": lambda fit: fit({"image": X}, Y, batch_size=6, class_weight=CLASSES),
    "a dict and weights": lambda fit: fit(
        dictionary(), batch_size=6, sample_weight=np.array([0.0, 1.0, 3.0])[Y]
    ),
    "a PyDataset of pairs": lambda fit: fit(Batches(X, Y), class_weight=CLASSES),
    "a PyDataset of dicts": lambda fit: fit(Batches(dictionary()), class_weight=CLASSES),
    "numpy's integers": lambda fit: fit(
        X, Y, batch_size=6, class_weight={np.int64(k): np.float32(v) for k, v in CLASSES.items()}
    ),
}


Trained = tuple[np.ndarray, list[float]]


def trained_with(model: Any, fit: Callable[[Any], Any]) -> Trained:
    """Return the weights and losses after a fit with class weights and then one without."""
    weighted = fit(lambda *data, **options: model.fit(*data, **options, shuffle=False, verbose=0))
    plain = model.fit(X, Y, batch_size=6, shuffle=False, verbose=0)
    losses = [*weighted.history["loss"], *plain.history["loss"]]
    return model.network.get_weights()[0], losses


@pytest.fixture(scope="module")
def weights_of_labels(linear: Callable[..., Any]) -> Trained:
    """Return the result of training with the weight of its class as that of each example."""
    weight = np.array([0.0, 1.0, 3.0])[Y]
    return trained_with(compiled(linear), lambda fit: fit(X, Y, batch_size=6, sample_weight=weight))


@pytest.mark.parametrize("form", FORMS)
def test_class_weights_act_as_weights_of_the_examples_in_every_form_of_data(
    linear: Callable[..., Any], weights_of_labels: Trained, form: str
) -> None:
    expected, losses = weights_of_labels
    weights, received = trained_with(compiled(linear), FORMS[form])
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-7)
    assert received == pytest.approx(losses, rel=1e-5)


def test_weights_of_classes_and_of_examples_multiply(linear: Callable[..., Any]) -> None:
    def trained(*data: Any, **options: Any) -> np.ndarray:
        model = compiled(linear)
        model.fit(*data, **options, shuffle=False, verbose=0)
        return model.network.get_weights()[0]

    product = np.array([0.0, 1.0, 3.0])[Y] * WEIGHT
    expected = trained(X, Y, batch_size=6, sample_weight=product)
    options = {"class_weight": CLASSES}
    for data in ((X, Y, WEIGHT), (dictionary(weight=WEIGHT),)):
        np.testing.assert_allclose(trained(streamed(*data), **options), expected, rtol=1e-5)
    result = trained(X, Y, batch_size=6, sample_weight=WEIGHT, **options)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_a_weight_in_a_dict_and_one_beside_it_multiply(linear: Callable[..., Any]) -> None:
    data = {"image": tf.constant(X), "weight": tf.constant(WEIGHT)}, tf.constant(Y), np.arange(12)
    weight = compiled(linear).as_batch(data)["weight"]
    np.testing.assert_array_equal(weight, WEIGHT * np.arange(12))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-np.ones(12), "expected finite numbers >= 0, received"),
        (np.full(12, np.nan), "expected finite numbers >= 0, received"),
        (np.full(12, np.inf), "expected finite numbers >= 0, received"),
        (np.ones((12, 3)), "one for each example, received 'float64 of shape"),
        (np.array(["a"] * 12), "one for each example, received 'string of shape"),
    ],
)
def test_weights_that_are_not_finite_numbers_of_the_examples_are_refused(
    linear: Callable[..., Any], weight: np.ndarray, message: str
) -> None:
    model = compiled(linear)
    with pytest.raises(UserError, match=f"^sample_weight: .*{message}"):
        model.as_batch((tf.constant(X), Y, weight))
    for run in (model.fit, model.evaluate):
        with pytest.raises(UserError, match=f"sample_weight: .*{message}"):
            run(streamed(X, Y, weight), verbose=0)
    np.testing.assert_array_equal(model.network.get_weights()[0], W)


@pytest.mark.parametrize(
    "class_weight", [{0: -1.0}, {0: np.nan}, {"0": 1.0}, {-1: 1.0}, {3: 1.0}, {}, [1.0]]
)
def test_class_weights_that_are_not_of_the_classes_are_refused(
    linear: Callable[..., Any], class_weight: Any
) -> None:
    with pytest.raises(UserError, match="^class_weight: expected a mapping of classes 0 to 2 to"):
        compiled(linear).fit(X, Y, class_weight=class_weight, verbose=0)


OF_IMAGES = [name for name, method in METHODS.items() if method.network_inputs == ("image",)]
FAST = ("gkl", "iaat")  # with class means, and with a table of the examples


@pytest.mark.parametrize("name", slow_but(OF_IMAGES, FAST))
def test_an_example_of_weight_0_has_no_effect_on_the_training(
    rng: np.random.Generator, name: str
) -> None:
    """The last two of four steps read tables and averages that the first two have written."""

    def trained(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        keras.utils.set_random_seed(3)
        layers = [keras.layers.Flatten(), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)]
        network = keras.Sequential([keras.Input((2, 2, 1)), *layers])
        method = METHODS[name]
        model = method(network, threat=Threat("linf", 0.1), **FACTS, **method.example)
        model.compile(keras.optimizers.SGD(0.1))
        data = {"image": x, "index": np.arange(12)}
        weight = np.tile([1.0, 0.0, 2.0], 4)
        options = {"batch_size": 6, "epochs": 2, "shuffle": False, "verbose": 0}
        model.fit(data, y, sample_weight=weight, **options)
        return network.get_weights()

    x, y = X.copy(), Y.copy()
    x[1::3], y[1::3] = rng.random((4, 2, 2, 1)), 0
    for weights, expected in zip(trained(x, y), trained(X, Y), strict=True):
        np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-6)


def test_the_class_means_of_gkl_are_weighted(linear: Callable[..., Any]) -> None:
    model = Gkl(linear(W), threat=Threat("linf", 0.0), temperature=1.0, steps_per_epoch=1)
    model.compile(keras.optimizers.SGD(0.1))
    z = np.exp(X.reshape(12, 4) @ W)
    soft = z / z.sum(axis=1, keepdims=True)
    model.train_step((tf.constant(X), tf.constant(Y), tf.constant(WEIGHT)))
    expected = [np.average(soft[c == Y], axis=0, weights=WEIGHT[c == Y]) for c in range(3)]
    np.testing.assert_allclose(model.class_means.numpy(), expected, rtol=1e-5)


def test_oat_reports_robust_accuracy_over_the_attacked_images(rng: np.random.Generator) -> None:
    network = small_cnn((8, 8, 1), 3, filters=[2], kernel=3, units=4, lambdas=[0.0, 1.0])
    model = Oat(network, threat=Threat("linf", 0.1))
    model.compile(keras.optimizers.SGD(0.0))
    x = tf.constant(rng.random((12, 8, 8, 1)), tf.float32)
    batch = model.as_batch((x, tf.constant(Y), tf.constant(WEIGHT)))
    values, attacked = model.robust_loss(batch | model.perturb(batch))["robust_accuracy"]
    assert float(tf.reduce_sum(attacked)) == 6  # the other half of the batch has lambda 0
    expected = np.average(values, weights=attacked.numpy() * WEIGHT)
    assert float(model.update(batch)["robust_accuracy"]) == pytest.approx(expected)


MONITORED = {
    "loss": min, "val_loss": min, "val_accuracy": max, "accuracy": max, "val_robust_accuracy": max,
    "robust_accuracy": max, "val_fgsm_accuracy": max, "val_jacobian": min, "kl": min,
}  # fmt: skip


def test_kerass_callbacks_take_the_direction_of_a_metric_from_its_name(
    linear: Callable[..., Any], tmp_path: Path
) -> None:
    def callbacks_of(monitor: str) -> list[Any]:
        file, best = tmp_path / f"{monitor}.keras", {"save_best_only": True}
        return [
            keras.callbacks.EarlyStopping(monitor, patience=3),
            keras.callbacks.ReduceLROnPlateau(monitor),
            keras.callbacks.ModelCheckpoint(file, monitor=monitor, **best),
        ]

    callbacks = {monitor: callbacks_of(monitor) for monitor in MONITORED}
    model = METHODS["trades"](linear(W), threat=Threat("linf", 0.1), beta=1.0)
    model.compile(keras.optimizers.SGD(1.0))
    options = {"epochs": 3, "validation_data": (X, Y), "verbose": 0}
    history = model.fit(X, Y, callbacks=sum(callbacks.values(), []), **options).history
    for monitor, best in MONITORED.items():
        better = np.greater if best is max else np.less
        for callback in callbacks[monitor]:
            assert bool(callback.monitor_op(1.0, 0.0)) == bool(better(1.0, 0.0)), monitor
            assert callback.best == pytest.approx(best(history[monitor])), monitor
        assert (tmp_path / f"{monitor}.keras").is_file()


@pytest.mark.parametrize("name", ["iaat", "mma", "gradalign", "llr", "squeeze"])
def test_every_metric_of_a_method_has_its_direction(name: str, linear: Callable[..., Any]) -> None:
    method = METHODS[name]
    model = method(linear(W), threat=Threat(), **FACTS, **method.example)
    for metric in model.means.metrics:
        rises = metric.name.endswith(("radius", "margin", "alignment", "accuracy"))
        assert metric._direction == ("up" if rises else "down"), metric.name


@pytest.mark.parametrize("weight", [np.ones(11), np.ones((12, 2)), ["a"] * 12, 1.0])
def test_weights_that_are_not_one_number_for_each_image_are_refused(
    linear: Callable[..., Any], weight: Any
) -> None:
    model = compiled(linear)
    for call in (model.fit, model.evaluate):
        with pytest.raises(UserError, match="^sample_weight: expected one number for each of 12 "):
            call(X, Y, sample_weight=weight, verbose=0)
    assert int(model.step) == 0


def test_weights_may_be_a_list(linear: Callable[..., Any]) -> None:
    """Keras took the list for one weight each, and printed all images in its error."""
    model, weights = compiled(linear), WEIGHT.tolist()
    history = model.fit(X, Y, sample_weight=weights, validation_data=(X, Y, weights), verbose=0)
    logs = model.evaluate(X, Y, sample_weight=weights, return_dict=True, verbose=0)
    expected = model.evaluate(X, Y, sample_weight=WEIGHT, return_dict=True, verbose=0)
    assert logs == expected
    assert history.history["val_accuracy"] == [pytest.approx(expected["accuracy"])]
    with pytest.raises(UserError, match="^validation_data: sample_weight: expected one number for"):
        model.fit(X, Y, validation_data=(X, Y, weights[:5]), verbose=0)


def test_train_on_batch_with_class_weights_equals_the_weights_in_a_dict(
    linear: Callable[..., Any],
) -> None:
    by_class, by_example = compiled(linear), compiled(linear)
    by_class.train_on_batch(X, Y, class_weight=CLASSES | {1: 1.0})
    by_example.train_on_batch(dictionary(weight=np.array([0.0, 1.0, 3.0], "float32")[Y]))
    weights, expected = (model.network.get_weights()[0] for model in (by_class, by_example))
    np.testing.assert_allclose(weights, expected, 1e-5)
    in_a_dict = compiled(linear)
    in_a_dict.train_on_batch(dictionary(), class_weight=CLASSES)
    np.testing.assert_allclose(in_a_dict.network.get_weights()[0], expected, 1e-5)


def test_weights_beside_a_dict_count_in_validation(linear: Callable[..., Any]) -> None:
    """They were left out by `evaluate`, and were the labels in `validation_data`."""
    model = compiled(linear)
    expected = evaluated(model, WEIGHT)
    options = {"batch_size": 6, "verbose": 0}
    result = model.evaluate(dictionary(), sample_weight=WEIGHT, return_dict=True, **options)
    assert result == pytest.approx(expected, rel=1e-5)
    model.optimizer.learning_rate = 0.0
    history = model.fit(X, Y, validation_data=(dictionary(), None, WEIGHT), **options).history
    assert history["val_loss"] == [pytest.approx(expected["loss"], rel=1e-5)]


@pytest.mark.parametrize("streams", [False, True])
def test_labels_in_a_dict_and_beside_it_are_refused(
    linear: Callable[..., Any], streams: bool
) -> None:
    """The second ones were taken."""
    data = (streamed(dictionary(), Y),) if streams else (dictionary(), Y)
    with pytest.raises(UserError, match="^y: expected labels in the dict or beside it, received"):
        compiled(linear).fit(*data, verbose=0)
