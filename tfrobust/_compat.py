"""Every private API of Keras, KerasTuner and TensorFlow that we use, behind a public name.

`tests/unit/test_compat.py` tests each of them by its name, so that a release that lacks one fails
there first. KerasTuner is not imported here: a search passes its class in.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import nn
from keras.src.trainers.compile_utils import CompileMetrics
from tensorflow.python.framework.ops import gradient_registry

from tfrobust.errors import require
from tfrobust.io import write_text
from tfrobust.xla import on_gpus

__all__ = [
    "CompileMetrics",  # Keras's callbacks ask no other class for the direction of a metric
    "HookedModel",
    "after_layers",
    "in_inference_mode",
    "layers_of",
    "loss_mean",
    "operation_of",
    "set_direction",
    "trained_by",
    "trains",
    "twice_differentiable",
    "untraced",
    "validates_in_fit",
    "with_whole_files",
]


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """Return the model and every layer in it, nested ones included (`_flatten_layers`)."""
    return list(model._flatten_layers())


def trained_by(layer: keras.Layer) -> list[keras.Variable]:
    """Return a layer's own weights that are trained unless it is frozen.

    Keras keeps them as `_trainable_variables`. Those of inner layers are not among them.
    """
    return list(layer._trainable_variables)


def operation_of(tensor: Any) -> Any:
    """Return the layer or operation that made a symbolic tensor; None for other tensors.

    Keras keeps it as `_keras_history`.
    """
    history = getattr(tensor, "_keras_history", None)
    return history.operation if history else None


def set_direction(metric: keras.metrics.Metric, direction: str) -> None:
    """Tell Keras's callbacks whether a metric is better "up" or "down" (`_direction`)."""
    metric._direction = direction


def loss_mean(model: keras.Model) -> keras.metrics.Mean:
    """Return the metric in which a compiled model averages its loss (`_loss_tracker`)."""
    return model._loss_tracker


def trains(optimizer: Any, variables: Sequence[keras.Variable]) -> bool:
    """Return whether an optimizer can train variables: it is new, or was first used with them.

    Keras raises an error that prints a variable (`_check_variables_are_known`).
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    try:
        if optimizer.built:
            optimizer._check_variables_are_known(variables)
    except ValueError:
        return False
    return True


def validates_in_fit(options: Mapping[str, Any]) -> bool:
    """Return whether `fit` calls `evaluate` with these options (`_use_cached_eval_dataset`)."""
    return bool(options.get("_use_cached_eval_dataset"))


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Complete the second derivatives of Keras's normalisations and bilinear resizing.

    In this context `keras.ops.moments` has all its derivatives. `tf.image.resize` has them from the
    first such context on. Values and first derivatives do not change.
    """
    _replace_moments()
    _register_resizing()
    token = _complete.set(True)
    try:
        yield
    finally:
        _complete.reset(token)


_complete = contextvars.ContextVar("complete", default=False)


@functools.cache
def _replace_moments() -> None:
    """Let `keras.ops.moments` call `_moments` in the context of `twice_differentiable`."""
    keras_moments = nn._compute_moments

    def moments(x: Any, axes: Any, keepdims: bool) -> Any:
        compute = _moments if _complete.get() else keras_moments
        return compute(x, axes, keepdims)

    nn._compute_moments = moments


def _moments(x: Any, axes: Any, keepdims: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Return mean(x) and var(x) = mean((x - c)^2) - (mean(x) - c)^2 for a constant c = mean(x).

    The last term and its first derivative are 0; its second derivative is what `tf.nn.moments`
    lacks. A gradient through c would cost more, because x would be read once more.
    """
    mean = tf.reduce_mean(x, axes, keepdims=True)
    centre = tf.stop_gradient(mean)
    variance = tf.reduce_mean(tf.math.squared_difference(x, centre), axes, keepdims=True)
    variance -= tf.square(mean - centre)
    return (mean, variance) if keepdims else (tf.squeeze(mean, axes), tf.squeeze(variance, axes))


@functools.cache
def _register_resizing() -> None:
    """Replace the gradient of bilinear resizing in TensorFlow's registry by a differentiable one.

    The gradient is the transpose of the resizing, and the gradient of the transpose is the resizing
    again. TensorFlow declares the transpose `NotDifferentiable`.
    """
    gradient_registry._registry.pop("ResizeBilinear")

    @tf.RegisterGradient("ResizeBilinear")
    def gradient(op: Any, dy: Any) -> Any:
        names = ("align_corners", "half_pixel_centers")
        options = {name: op.get_attr(name) for name in names}
        image, size = op.inputs[0], tf.shape(dy)[1:3]

        @tf.custom_gradient
        def transposed(dy: Any) -> Any:
            dx = tf.raw_ops.ResizeBilinearGrad(grads=dy, original_image=image, **options)
            return dx, lambda u: tf.raw_ops.ResizeBilinear(images=u, size=size, **options)

        return transposed(dy), None


@contextlib.contextmanager
def after_layers(function: Callable[[keras.Layer, Any, Any], Any]) -> Iterator[None]:
    """Pass the outputs of every layer that is called in this context through a function.

    The function of a context around this one comes after it.

    Args:
        function: A function (layer, positional inputs, outputs) -> the outputs to go on with.
    """
    _replace_call()
    outer = _after.get()

    def both(layer: keras.Layer, inputs: Any, outputs: Any) -> Any:
        outputs = function(layer, inputs, outputs)
        return outputs if outer is None else outer(layer, inputs, outputs)

    token = _after.set(both)
    try:
        yield
    finally:
        _after.reset(token)


_after: contextvars.ContextVar[Callable[..., Any] | None]
_after = contextvars.ContextVar("after", default=None)


@contextlib.contextmanager
def in_inference_mode() -> Iterator[None]:
    """Call the layers in this context in inference mode, unless their call says `training`.

    Keras's own default is training for some random layers, such as RandomFlip. The layers inside
    another follow its mode.
    """
    _replace_call()
    token = _by_default.set(False)
    try:
        yield
    finally:
        _by_default.reset(token)


_by_default: contextvars.ContextVar[bool | None]
_by_default = contextvars.ContextVar("by_default", default=None)


@functools.cache
def _replace_call() -> None:
    """Let `keras.Layer.__call__` do what `after_layers` and `in_inference_mode` say."""
    keras_call = keras.Layer.__call__

    @functools.wraps(keras_call)
    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        if _by_default.get() is None:
            outputs = keras_call(layer, *args, **kwargs)
        else:
            token = _by_default.set(None)  # the layers inside follow this one
            try:
                outputs = keras_call(layer, *args, **{"training": False} | kwargs)
            finally:
                _by_default.reset(token)
        function = _after.get()
        return outputs if function is None else function(layer, args, outputs)

    keras.Layer.__call__ = call


def untraced(function: Any) -> Any:
    """Return a tf.function without its graphs (`_clone`); other callables are returned unchanged.

    A graph has the mode of the layers in which it was traced. A function of a SavedModel, whose
    class is another one, has nothing but its graphs.
    """
    is_traced = type(function) is type(tf.function(lambda: None))
    return function._clone(None) if is_traced else function


class HookedModel(keras.Model):
    """A Keras model with the private hooks of Keras's trainer that we override."""

    _jit_compile: bool | None

    def _resolve_auto_jit_compile(self) -> bool:
        """Return whether to use XLA: on GPUs, under a tf.distribute strategy too."""
        return on_gpus(self.distribute_strategy)

    def _make_function(self, step_function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that runs the steps, without XLA: the step compiles its parts.

        Keras would compile the step with its assertions, which XLA drops, and with the
        communication between devices.
        """
        jit_compile, self._jit_compile = self._jit_compile, False
        try:
            return super()._make_function(step_function)
        finally:
            self._jit_compile = jit_compile

    def _get_metrics_result_or_logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Return the logs of the last step, with their metrics taken over all replicas.

        Keras averages the means of the replicas, which is wrong if their weights are unequal.
        Raises a UserError if there was no step, as with an empty data set of unknown length, but
        not in the validations of a `fit` (`_eval_epoch_iterator`), whose data may have run out.
        """
        validates = getattr(self, "_eval_epoch_iterator", None) is not None
        require(logs or validates, "x", "at least one batch", 0)
        with self.distribute_strategy.scope():
            results = self.get_metrics_result()
            return logs | {name: value for name, value in results.items() if name in logs}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Build the optimizer on several devices, where Keras's own build may fail.

        It fails on several machines (keras#20585), and if the devices get different numbers of
        examples. The network is built already, so only the optimizer is left.
        """
        if self.distribute_strategy.num_replicas_in_sync > 1:
            if self.compiled and not self.optimizer.built:
                with self.distribute_strategy.scope():
                    self.optimizer.build(self.trainable_variables)
        else:
            super()._maybe_symbolic_build(iterator, data_batch)


def with_whole_files(oracle: Any) -> Any:
    """Return a subclass of a KerasTuner oracle class that never leaves a half-written file.

    It overrides `save` and `_save_trial`; the folders come from `_project_dir` and
    `_get_trial_dir`.
    """

    class WholeFiles(oracle):
        def save(self) -> None:
            write_text(Path(self._project_dir) / "oracle.json", json.dumps(self.get_state()))

        def _save_trial(self, trial: Any) -> None:
            path = Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
            write_text(path, json.dumps(trial.get_state()))

    return WholeFiles
