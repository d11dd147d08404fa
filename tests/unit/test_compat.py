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
from keras.src.trainers import compile_utils
from tensorflow.python.framework.ops import gradient_registry

from tfrobust import _compat

X, Y = np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32)
ADVICE = "tfrobust/_compat.py has to be changed"


def network() -> keras.Model:
    """Return a network of one dense layer."""
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def compiled(kind: type[keras.Model] = keras.Model) -> Any:
    """Return a compiled linear model of a subclass of `kind`."""

    class Linear(kind):  # symbolic tensors would change the bases of `kind`
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
        (network(), "_trainable_variables"),
        (keras.Input((2,)), "_keras_history"),
        (compiled(), "_loss_tracker"),
        (keras.optimizers.SGD(), "_check_variables_are_known"),
        (tf.function(compiled()), "_clone"),
        (compiled(), "_jit_compile"),
        (keras.Model, "_resolve_auto_jit_compile"),
        (keras.Model, "_make_function"),
        (keras.Model, "_get_metrics_result_or_logs"),
        (keras.Model, "_maybe_symbolic_build"),
        (nn, "_compute_moments"),
        (compile_utils, "CompileMetrics"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_keras_still_has_the_private_name(owner: Any, name: str) -> None:
    assert hasattr(owner, name), f"Keras {keras.__version__} has no {name}: {ADVICE}"


def test_fit_still_keeps_the_iterator_of_its_validations() -> None:
    """It is none while a batch is trained before the first validation, and outside of `fit`."""
    seen = []
    model = compiled()
    kept = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: seen.append(model._eval_epoch_iterator)
    )
    model.fit(X, Y, verbose=0, callbacks=[kept])
    model.fit(X, Y, validation_data=(X, Y), verbose=0, callbacks=[kept])
    assert seen[0] is None and seen[1] is not None, ADVICE
    assert getattr(model, "_eval_epoch_iterator", None) is None


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
def test_keras_still_calls_the_overridden_hook(name: str, use: Callable[[Any], Any]) -> None:
    """Keras still calls each hook that we override."""
    model = compiled(_compat.HookedModel)
    original = getattr(_compat.HookedModel, name)
    with mock.patch.object(_compat.HookedModel, name, autospec=True, side_effect=original) as hook:
        use(model)
    assert hook.called, f"Keras {keras.__version__} does not call keras.Model.{name}: {ADVICE}"


def test_fit_still_marks_its_own_validation() -> None:
    class Marked(keras.Model):
        def evaluate(self, *args: Any, **options: Any) -> Any:
            marks.append(_compat.validates_in_fit(options))
            return super().evaluate(*args, **options)

    marks: list[bool] = []
    model = compiled(Marked)
    model.fit(X, Y, validation_data=(X, Y), verbose=0)
    model.evaluate(X, Y, verbose=0)
    assert marks == [True, False], f"fit passes no _use_cached_eval_dataset to evaluate: {ADVICE}"


def test_layers_of_includes_nested_layers() -> None:
    inner = network()
    outer = keras.Sequential([keras.Input((2,)), inner, keras.layers.Dense(3)])
    layers = {id(layer) for layer in _compat.layers_of(outer)}
    for layer in (outer, inner, inner.layers[0], outer.layers[1]):
        assert id(layer) in layers, f"_flatten_layers leaves layers out: {ADVICE}"


def test_operation_of_returns_the_layer_that_made_a_tensor() -> None:
    dense = keras.layers.Dense(1)
    assert _compat.operation_of(dense(keras.Input((2,)))) is dense, f"_keras_history: {ADVICE}"
    assert _compat.operation_of(np.zeros(2)) is None


def test_an_optimizer_trains_the_variables_of_its_first_use() -> None:
    optimizer = keras.optimizers.SGD()
    (kernel, bias), others = network().trainable_variables, network().trainable_variables
    assert _compat.trains(optimizer, others)
    optimizer.build([kernel, bias])
    for scaled in (optimizer, keras.optimizers.LossScaleOptimizer(optimizer)):
        assert _compat.trains(scaled, [bias]), f"_check_variables_are_known: {ADVICE}"
        assert not _compat.trains(scaled, others), f"_check_variables_are_known: {ADVICE}"


def test_loss_mean_averages_the_loss() -> None:
    model = compiled()
    logs = model.fit(X, Y + 1, verbose=0).history
    mean = float(_compat.loss_mean(model).result())
    assert mean == pytest.approx(logs["loss"][0]), f"_loss_tracker is another metric: {ADVICE}"


def test_callbacks_read_the_direction_of_a_metric() -> None:
    """The name of the metric does not contain its direction."""

    class Metrics(_compat.CompileMetrics):
        metrics = property(lambda self: [metric])

    metric = keras.metrics.Mean(name="oddness")
    for direction, better in (("up", 2.0), ("down", 0.0)):
        _compat.set_direction(metric, direction)
        callback = keras.callbacks.EarlyStopping("oddness")
        callback.set_model(types.SimpleNamespace(metrics=[Metrics(None, None)]))
        callback._set_monitor_op()
        assert callback.monitor_op(better, 1.0), f"callbacks do not read _direction: {ADVICE}"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("keepdims", [False, True])
def test_second_derivative_of_the_variance_is_complete(dtype: str, keepdims: bool) -> None:
    """In the directions e_i and u it is 2 (u_i - mean(u)) / n.

    That of Keras lacks the mean; value and first derivative are equal to the bit. In float16 Keras
    also has to cast its arguments.
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
    of_keras, wrong = derivatives()
    for actual, expected in zip(ours, of_keras, strict=True):
        np.testing.assert_array_equal(actual, expected)
    tolerance = dict.fromkeys(("rtol", "atol"), 1e-2 if dtype == "float16" else 1e-5)
    correct = 2 / 6 * (u - tf.reduce_mean(u, axis=0))
    np.testing.assert_allclose(second, correct, **tolerance, err_msg=f"_compute_moments: {ADVICE}")
    message = "Keras is right now, and needs no _compute_moments of ours"
    np.testing.assert_allclose(wrong, u * (2 / 6), **tolerance, err_msg=message)


def test_tensorflow_still_has_its_registry_of_gradients() -> None:
    with _compat.twice_differentiable():
        gradient = gradient_registry.lookup("ResizeBilinear")
    assert gradient.__module__ == _compat.__name__, f"_registry: {ADVICE}"


@pytest.mark.parametrize(
    "name", ["_project_dir", "_get_trial_dir", "_save_trial", "save", "get_state"]
)
def test_keras_tuner_still_has_the_private_name(name: str) -> None:
    tuner = importlib.import_module("keras_tuner")
    assert hasattr(tuner.Oracle, name), f"keras_tuner.Oracle has no {name}: {ADVICE}"


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
    assert "trial.json" in names, f"keras_tuner.Oracle does not call _save_trial: {ADVICE}"
    assert "oracle.json" in names, f"keras_tuner.Oracle.save is not ours: {ADVICE}"
    (file,) = tmp_path.glob("search/trial_*/trial.json")
    assert json.loads(file.read_text())["trial_id"] == trial.trial_id


def test_names_of_compat_are_documented() -> None:
    names = [name for name in _compat.__all__ if name != "CompileMetrics"]
    assert all(inspect.getdoc(getattr(_compat, name)) for name in names)
