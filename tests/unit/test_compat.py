"""The private names of Keras, KerasTuner and TensorFlow in `tfrobust._compat` exist and are used.

A release without one of them fails here, with its name.
"""

from __future__ import annotations

import importlib
import inspect
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.tensorflow import nn
from tensorflow.python.framework.ops import gradient_registry

from tfrobust import _compat

X, Y = np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32)
OURS = "tfrobust/_compat.py needs another way"


def network() -> keras.Model:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def compiled(kind: type[keras.Model] = keras.Model) -> Any:
    class Linear(kind):  # not of symbolic tensors: those would change the bases of `kind`
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Linear()
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (network(), "_flatten_layers"),
        (keras.Input((2,)), "_keras_history"),
        (compiled(), "_loss_tracker"),
        (compiled(), "_jit_compile"),
        (keras.Model, "_resolve_auto_jit_compile"),
        (keras.Model, "_make_function"),
        (keras.Model, "_get_metrics_result_or_logs"),
        (keras.Model, "_maybe_symbolic_build"),
        (nn, "_compute_moments"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_keras_still_has(owner: Any, name: str) -> None:
    assert hasattr(owner, name), f"Keras {keras.__version__} has no {name}: {OURS}"


def test_keras_still_has_compile_metrics() -> None:
    place = "keras.src.trainers.compile_utils"
    module = importlib.import_module(place)
    assert hasattr(module, "CompileMetrics"), f"{place} has no CompileMetrics: {OURS}"


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("_make_function", lambda model: model.fit(X, Y, verbose=0)),
        ("_make_function", lambda model: model.evaluate(X, Y, verbose=0)),
        ("_get_metrics_result_or_logs", lambda model: model.fit(X, Y, verbose=0)),
        ("_get_metrics_result_or_logs", lambda model: model.evaluate(X, Y, verbose=0)),
        ("_maybe_symbolic_build", lambda model: model.fit(X, Y, verbose=0)),
        ("_resolve_auto_jit_compile", lambda model: model.compile("sgd", "mse")),
    ],
)
def test_keras_still_calls(name: str, use: Callable[[Any], Any]) -> None:
    """Keras still calls each hook that we override."""
    model = compiled(_compat.HookedModel)
    original = getattr(_compat.HookedModel, name)
    with mock.patch.object(_compat.HookedModel, name, autospec=True, side_effect=original) as hook:
        use(model)
    assert hook.called, f"Keras {keras.__version__} does not call keras.Model.{name}: {OURS}"


def test_fit_still_marks_its_own_validation() -> None:
    class Marked(keras.Model):
        def evaluate(self, *args: Any, **options: Any) -> Any:
            marks.append(_compat.validates_in_fit(options))
            return super().evaluate(*args, **options)

    marks: list[bool] = []
    model = compiled(Marked)
    model.fit(X, Y, validation_data=(X, Y), verbose=0)
    model.evaluate(X, Y, verbose=0)
    assert marks == [True, False], f"fit passes no _use_cached_eval_dataset to evaluate: {OURS}"


def test_layers_of_finds_nested_layers() -> None:
    inner = network()
    outer = keras.Sequential([keras.Input((2,)), inner, keras.layers.Dense(3)])
    layers = _compat.layers_of(outer)
    assert {id(layer) for layer in (outer, inner, inner.layers[0], outer.layers[1])} <= set(
        map(id, layers)
    ), f"_flatten_layers leaves layers out: {OURS}"


def test_operation_of_is_the_layer_that_made_a_tensor() -> None:
    dense = keras.layers.Dense(1)
    assert _compat.operation_of(dense(keras.Input((2,)))) is dense, f"_keras_history: {OURS}"
    assert _compat.operation_of(np.zeros(2)) is None


def test_the_loss_is_averaged_in_loss_mean() -> None:
    model = compiled()
    logs = model.fit(X, Y + 1, verbose=0).history
    mean = float(_compat.loss_mean(model).result())
    assert mean == pytest.approx(logs["loss"][0]), f"_loss_tracker is another metric: {OURS}"


def test_callbacks_ask_a_metric_for_its_direction() -> None:
    """Callbacks ask a metric for its direction if the name does not tell it."""

    class Metrics(_compat.CompileMetrics):
        metrics = property(lambda self: [metric])

    metric = keras.metrics.Mean(name="oddness")
    for direction, better in (("up", 2.0), ("down", 0.0)):
        _compat.set_direction(metric, direction)
        callback = keras.callbacks.EarlyStopping("oddness")
        callback.set_model(types.SimpleNamespace(metrics=[Metrics(None, None)]))
        callback._set_monitor_op()
        assert callback.monitor_op(better, 1.0), f"callbacks do not read _direction: {OURS}"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("keepdims", [False, True])
def test_the_variance_has_a_second_derivative(dtype: str, keepdims: bool) -> None:
    """The second derivative of the variance in the directions e_i and u is 2 (u_i - mean(u)) / n.

    Keras's own lacks the mean; all else is the same to the bit. The case in float16 also shows that
    Keras still casts its arguments.
    """
    x, u = (tf.constant(np.random.default_rng(k).normal(size=(6, 2)), dtype) for k in (0, 1))

    def derivatives() -> Any:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                mean, variance = keras.ops.moments(x, [0], keepdims=keepdims)
            first = inner.gradient(variance, x)
        return [mean, variance, first], outer.gradient(first, x, u)

    with _compat.twice_differentiable():
        ours, second = derivatives()
    kerass, wrong = derivatives()
    for our, keras_own in zip(ours, kerass, strict=True):
        np.testing.assert_array_equal(our, keras_own)
    near = 1e-2 if dtype == "float16" else 1e-5
    expected = 2 / 6 * (u - tf.reduce_mean(u, axis=0))
    np.testing.assert_allclose(second, expected, near, near, err_msg=f"_compute_moments: {OURS}")
    message = "Keras is right now, and needs no _compute_moments of ours"
    np.testing.assert_allclose(wrong, u * (2 / 6), near, near, err_msg=message)


def test_tensorflow_still_has_its_registry_of_gradients() -> None:
    with _compat.twice_differentiable():
        gradient = gradient_registry.lookup("ResizeBilinear")
    assert gradient.__module__ == _compat.__name__, f"_registry: {OURS}"


ORACLE = ("_project_dir", "_get_trial_dir", "_save_trial", "save", "get_state")


@pytest.mark.parametrize("name", ORACLE)
def test_keras_tuner_still_has(name: str) -> None:
    tuner = importlib.import_module("keras_tuner")
    assert hasattr(tuner.Oracle, name), f"keras_tuner.Oracle has no {name}: {OURS}"


def test_keras_tuner_still_saves_trials_through_the_oracle(tmp_path: Path) -> None:
    tuner = importlib.import_module("keras_tuner")
    oracle = _compat.with_whole_files(tuner.oracles.RandomSearchOracle)(
        objective=tuner.Objective("score", "max"), max_trials=1
    )
    oracle._set_project_dir(str(tmp_path), "search")
    oracle.hyperparameters.Choice("x", [1, 2])
    with mock.patch.object(_compat, "write_text", side_effect=_compat.write_text) as written:
        trial = oracle.create_trial("worker")
        oracle.save()
    names = [call.args[0].name for call in written.call_args_list]
    assert "trial.json" in names, f"keras_tuner.Oracle does not call _save_trial: {OURS}"
    assert "oracle.json" in names, f"keras_tuner.Oracle.save is not ours: {OURS}"
    (file,) = tmp_path.glob("search/trial_*/trial.json")
    assert json.loads(file.read_text())["trial_id"] == trial.trial_id


def test_the_public_names_are_documented() -> None:
    names = [name for name in _compat.__all__ if name != "CompileMetrics"]
    assert all(inspect.getdoc(getattr(_compat, name)) for name in names)
