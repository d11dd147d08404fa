"""Every private API of Keras and KerasTuner that tfrobust uses, behind a public name.

`tests/unit/test_compat.py` tests each of them by its name, so that a release without it fails
there first. KerasTuner is imported only by a search, which passes its classes in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers.compile_utils import CompileMetrics

from tfrobust.io import write_text
from tfrobust.xla import on_gpus

__all__ = [
    "CompileMetrics",  # Keras's callbacks ask no other class for the direction of a metric
    "HookedModel",
    "layers_of",
    "loss_mean",
    "operation_of",
    "set_direction",
    "validates_in_fit",
    "with_whole_files",
]


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """Return the model and every layer in it, nested ones included (`_flatten_layers`)."""
    return list(model._flatten_layers())


def operation_of(tensor: Any) -> Any:
    """Return the layer or operation that made a symbolic tensor; None for other tensors.

    Keras keeps it as `_keras_history`.
    """
    history = getattr(tensor, "_keras_history", None)
    return history.operation if history else None


def set_direction(metric: keras.metrics.Metric, direction: str) -> None:
    """Say whether a metric is better "up" or "down" (`_direction`), for Keras's callbacks."""
    metric._direction = direction


def loss_mean(model: keras.Model) -> keras.metrics.Mean:
    """Return the metric in which a compiled model averages its loss (`_loss_tracker`)."""
    return model._loss_tracker


def validates_in_fit(options: Mapping[str, Any]) -> bool:
    """Return whether `fit` calls `evaluate` with these options (`_use_cached_eval_dataset`)."""
    return bool(options.get("_use_cached_eval_dataset"))


class HookedModel(keras.Model):
    """A Keras model with the private hooks of Keras's trainer that we override."""

    _jit_compile: bool | None

    def _resolve_auto_jit_compile(self) -> bool:
        """Return whether to use XLA: on GPUs, under a tf.distribute strategy too."""
        return on_gpus(self.distribute_strategy)

    def _make_function(self, step_function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that runs the steps, without XLA: the step compiles its parts.

        Keras would compile the whole step: its assertions too, which XLA drops, and what several
        devices do together.
        """
        jit_compile, self._jit_compile = self._jit_compile, False
        try:
            return super()._make_function(step_function)
        finally:
            self._jit_compile = jit_compile

    def _get_metrics_result_or_logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Return the logs of the last step, their metrics over all replicas.

        Keras averages the means of the replicas, which is wrong where they hold unequal weights.
        """
        with self.distribute_strategy.scope():
            results = self.get_metrics_result()
            return logs | {name: value for name, value in results.items() if name in logs}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Build the optimizer on several machines, where Keras's own build fails (keras#20585).

        The network is built before, so only the optimizer is left.
        """
        if isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
        else:
            super()._maybe_symbolic_build(iterator, data_batch)


def with_whole_files(oracle: Any) -> Any:
    """Return a subclass of a KerasTuner oracle class that never leaves a half-written file.

    It overrides `save` and `_save_trial`, and asks `_project_dir` and `_get_trial_dir` for the
    folders.
    """

    class WholeFiles(oracle):
        def save(self) -> None:
            write_text(Path(self._project_dir) / "oracle.json", json.dumps(self.get_state()))

        def _save_trial(self, trial: Any) -> None:
            path = Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
            write_text(path, json.dumps(trial.get_state()))

    return WholeFiles
