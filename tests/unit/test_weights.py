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
    def __init__(self, *data: Any):
        super().__init__()
        self.data = data

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> Any:
        rows = slice(6 * number, 6 * number + 6)
        (x, *rest) = self.data
        image = {k: v[rows] for k, v in x.items()} if isinstance(x, dict) else x[rows]
        return (image, *(part[rows] for part in rest)) if rest else image


def streamed(*data: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(data if len(data) > 1 else data[0]).batch(6)


def dictionary(weight: Any = None) -> dict[str, Any]:
    return {"image": X, "label": Y} | ({} if weight is None else {"weight": weight})


def test_two_devices_measure_what_one_measures(
    on_two_devices: Callable[[str], dict[str, Any]],
) -> None:
    one, two = on_two_devices("weighted")
    assert two == pytest.approx(one, rel=1e-4)
    assert {"loss", "accuracy", "robust_accuracy"} <= two.keys()


def compiled(linear: Callable[..., Any]) -> Any:
    model = Adv(linear(W), threat=Threat("linf", 0.3), validation_attack=PGD(steps=2))
    model.compile(keras.optimizers.SGD(0.1))
    return model


def evaluated(model: Any, *data: Any, **options: Any) -> dict[str, float]:
    return model.evaluate(*data, batch_size=6, verbose=0, return_dict=True, **options)


def test_validation_reports_weighted_means_of_every_metric(linear: Callable[..., Any]) -> None:
    model = compiled(linear)
    parts = [model._validated(model.as_batch(batch)) for batch in streamed(X, Y)]
    each = {name: np.concatenate([part[name] for part in parts]) for name in MEASURED}
    expected = {name: np.average(each[name], weights=WEIGHT) for name in MEASURED}
    assert expected != pytest.approx({name: each[name].mean() for name in MEASURED}, rel=1e-2)
    expected = pytest.approx(expected, rel=1e-5)
    assert evaluated(model, X, Y, sample_weight=WEIGHT) == expected
    assert evaluated(model, X, Y, sample_weight=WEIGHT[:, None].astype(int)) == expected
    for data in (streamed, Batches):
        for form in ((X, Y, WEIGHT), (dictionary(WEIGHT),)):
            result = model.evaluate(data(*form), verbose=0, return_dict=True)
            assert result == expected
    validated = model.fit(X, Y, batch_size=6, verbose=0, validation_data=(X, Y, WEIGHT)).history
    alone = evaluated(model, X, Y, sample_weight=WEIGHT)
    assert [validated[f"val_{name}"][0] for name in alone] == pytest.approx(list(alone.values()))


def test_without_any_weight_there_is_nothing_to_report(linear: Callable[..., Any]) -> None:
    model = compiled(linear)
    logs = evaluated(model, X, Y, sample_weight=np.zeros(12))
    assert logs == dict.fromkeys(MEASURED, 0.0)
    history = model.fit(X, Y, sample_weight=np.zeros(12), verbose=0).history
    assert history["loss"] == [0.0]
    np.testing.assert_array_equal(model.network.get_weights()[0], W)


def test_training_reports_weighted_means_and_minimises_kerass_mean(
    linear: Callable[..., Any],
) -> None:
    """The gradient is that of sum(w l) / B, and the reported loss is sum(w l) / sum(w)."""
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


CLASSES = {0: 0.0, 2: 3.0}  # of class 1 it is 1
FORMS: dict[str, Callable[[Any], Any]] = {
    "arrays": lambda fit: fit(X, Y, batch_size=6, class_weight=CLASSES),
    "pairs": lambda fit: fit(streamed(X, Y), class_weight=CLASSES),
    "a dict": lambda fit: fit(dictionary(), batch_size=6, class_weight=CLASSES),
    "dicts": lambda fit: fit(streamed(dictionary()), class_weight=CLASSES),
    "a dict and labels": lambda fit: fit({"image": X}, Y, batch_size=6, class_weight=CLASSES),
    "a PyDataset of pairs": lambda fit: fit(Batches(X, Y), class_weight=CLASSES),
    "a PyDataset of dicts": lambda fit: fit(Batches(dictionary()), class_weight=CLASSES),
    "numpy's integers": lambda fit: fit(
        X, Y, batch_size=6, class_weight={np.int64(k): np.float32(v) for k, v in CLASSES.items()}
    ),
}


Trained = tuple[np.ndarray, list[float]]


def trained_with(model: Any, fit: Callable[[Any], Any]) -> Trained:
    """Return the weights and the losses of a fit with weights and of one without any after it."""
    weighted = fit(lambda *data, **options: model.fit(*data, **options, shuffle=False, verbose=0))
    plain = model.fit(X, Y, batch_size=6, shuffle=False, verbose=0)
    losses = [*weighted.history["loss"], *plain.history["loss"]]
    return model.network.get_weights()[0], losses


@pytest.fixture(scope="module")
def weights_of_labels(linear: Callable[..., Any]) -> Trained:
    """Train with the weight of the class as the weight of each example."""
    weight = np.array([0.0, 1.0, 3.0])[Y]
    return trained_with(compiled(linear), lambda fit: fit(X, Y, batch_size=6, sample_weight=weight))


@pytest.mark.parametrize("form", FORMS)
def test_class_weights_are_those_of_the_labels(
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

    both = np.array([0.0, 1.0, 3.0])[Y] * WEIGHT
    expected = trained(X, Y, batch_size=6, sample_weight=both)
    options = {"class_weight": CLASSES}
    for data in ((X, Y, WEIGHT), (dictionary(WEIGHT),)):
        np.testing.assert_allclose(trained(streamed(*data), **options), expected, rtol=1e-5)
    result = trained(X, Y, batch_size=6, sample_weight=WEIGHT, **options)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


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
def test_weights_that_make_no_sense(
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
def test_class_weights_that_make_no_sense(linear: Callable[..., Any], class_weight: Any) -> None:
    with pytest.raises(UserError, match="^class_weight: expected a mapping of classes 0 to 2 to"):
        compiled(linear).fit(X, Y, class_weight=class_weight, verbose=0)


OF_IMAGES = [name for name, method in METHODS.items() if method.network_inputs == ("image",)]
# Class means, and a table for each example.
FAST = ("gkl", "iaat")


@pytest.mark.parametrize("name", slow_but(OF_IMAGES, FAST))
def test_an_example_without_weight_leaves_no_trace(name: str) -> None:
    """An example of weight 0 has no effect on the steps of any method.

    The second two of four steps read tables and averages again.
    """

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
    x[1::3], y[1::3] = RNG.random((4, 2, 2, 1)), 0
    for ours, theirs in zip(trained(x, y), trained(X, Y), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_gkls_class_means_are_weighted(linear: Callable[..., Any]) -> None:
    model = Gkl(linear(W), threat=Threat("linf", 0.0), temperature=1.0, steps_per_epoch=1)
    model.compile(keras.optimizers.SGD(0.1))
    z = np.exp(X.reshape(12, 4) @ W)
    soft = z / z.sum(axis=1, keepdims=True)
    model.train_step((tf.constant(X), tf.constant(Y), tf.constant(WEIGHT)))
    expected = [np.average(soft[c == Y], axis=0, weights=WEIGHT[c == Y]) for c in range(3)]
    np.testing.assert_allclose(model.class_means.numpy(), expected, rtol=1e-5)


def test_oat_reports_robust_accuracy_over_what_it_attacked() -> None:
    network = small_cnn((8, 8, 1), 3, filters=[2], kernel=3, units=4, lambdas=[0.0, 1.0])
    model = Oat(network, threat=Threat("linf", 0.1))
    model.compile(keras.optimizers.SGD(0.0))
    x = tf.constant(RNG.random((12, 8, 8, 1)), tf.float32)
    batch = model.as_batch((x, tf.constant(Y), tf.constant(WEIGHT)))
    values, attacked = model.robust_loss(batch | model.perturb(batch))["robust_accuracy"]
    assert float(tf.reduce_sum(attacked)) == 6  # half of the batch drew lambda 0
    expected = np.average(values, weights=attacked.numpy() * WEIGHT)
    assert float(model.update(batch)["robust_accuracy"]) == pytest.approx(expected)


MONITORED = {
    "loss": min, "val_loss": min, "val_accuracy": max, "accuracy": max, "val_robust_accuracy": max,
    "robust_accuracy": max, "val_fgsm_accuracy": max, "val_jacobian": min, "kl": min,
}  # fmt: skip


def test_kerass_callbacks_find_the_direction_by_name(
    linear: Callable[..., Any], tmp_path: Path
) -> None:
    callbacks: dict[str, list[Any]] = {
        monitor: [
            keras.callbacks.EarlyStopping(monitor, patience=3),
            keras.callbacks.ReduceLROnPlateau(monitor),
            keras.callbacks.ModelCheckpoint(
                tmp_path / f"{monitor}.keras", monitor=monitor, save_best_only=True
            ),
        ]
        for monitor in MONITORED
    }
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
def test_what_methods_report_has_a_direction(name: str, linear: Callable[..., Any]) -> None:
    method = METHODS[name]
    model = method(linear(W), threat=Threat(), **FACTS, **method.example)
    for metric in model.means.metrics:
        assert metric._direction == ("up" if metric.name in ("radius", "margin", "alignment")
                                     or metric.name.endswith("accuracy") else "down")  # fmt: skip


@pytest.mark.parametrize("weight", [np.ones(11), np.ones((12, 2)), ["a"] * 12, 1.0])
def test_weights_that_are_not_one_for_each_image(linear: Callable[..., Any], weight: Any) -> None:
    model = compiled(linear)
    for call in (model.fit, model.evaluate):
        with pytest.raises(UserError, match="^sample_weight: expected one number for each of 12 "):
            call(X, Y, sample_weight=weight, verbose=0)
    assert int(model.step) == 0


def test_a_single_batch_with_class_weights(linear: Callable[..., Any]) -> None:
    """The "weight" of a dict does the same."""
    result, explicit = compiled(linear), compiled(linear)
    result.train_on_batch(X, Y, class_weight=CLASSES | {1: 1.0})
    explicit.train_on_batch(dictionary(np.array([0.0, 1.0, 3.0], "float32")[Y]))
    np.testing.assert_allclose(
        result.network.get_weights()[0], explicit.network.get_weights()[0], 1e-5
    )
    with pytest.raises(UserError, match="class_weight: expected none for a batch that is one di"):
        result.train_on_batch(dictionary(), class_weight=CLASSES)
