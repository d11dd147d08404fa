"""The reuse of one pass's BatchNorm statistics, to move the averages again or for other passes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
import tensorflow as tf

from tfrobust._compat import after_layers, layers_of
from tfrobust.errors import require
from tfrobust.models.layers import differentiable_statistics


def averages(network: keras.Model) -> list[tuple[keras.Variable, float]]:
    """Return the moving averages of a network's BatchNorm layers, each with its momentum.

    A pass in mode "train" moves each average a to momentum * a + (1 - momentum) * s, where s is the
    mean or the variance of the batch.
    """
    return [
        (average, layer.momentum)
        for layer in layers_of(network)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for average in (layer.moving_mean, layer.moving_variance)
    ]


class RepeatablePass:
    """A context that notes how its one pass in mode "train" moves the averages of BatchNorm.

        with RepeatablePass(network) as clean:
            logits = logits_fn(x)
        clean.move_averages()

    `move_averages` moves them as a second pass over the same images would, without its cost.
    """

    def __init__(self, network: keras.Model):
        self.network, self.averages = network, averages(network)

    def __enter__(self) -> RepeatablePass:
        self.before = [tf.identity(average.value) for average, _ in self.averages]
        return self

    def __exit__(self, *_: Any) -> None:
        pairs = zip(self.averages, self.before, strict=True)
        self.shares = [average.value - momentum * old for (average, momentum), old in pairs]

    def move_averages(self) -> None:
        """Move the averages as the pass does in mode "train"."""
        for (average, momentum), share in zip(self.averages, self.shares, strict=True):
            average.assign(momentum * average.value + share)


class SharedStatistics(RepeatablePass):
    """A context that keeps the batch statistics of its one pass in mode "train" for other passes.

        with SharedStatistics(network) as statistics:
            logits = logits_fn(x)
        with statistics.used():
            others = averaged_fn(x_adv)  # in mode "eval"

    Neither pass moves the averages of BatchNorm, unless by `move_averages`. Gradients flow through
    the statistics. Raises a UserError if the first pass leaves out a BatchNorm that is not frozen,
    calls it with training=False, or calls it twice: it has statistics of its own in each call.
    """

    def __enter__(self) -> SharedStatistics:
        self.calls: Counter[int] = Counter()
        self.counted = after_layers(self._count)
        self.counted.__enter__()
        # From an average of 0 the pass moves to (1 - momentum) * s.
        self.starts = [tf.zeros_like(average.value) for average, _ in self.averages]
        self.scope = self._with(self.starts)
        self.differentiable = differentiable_statistics()
        self.scope.__enter__()
        self.differentiable.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.differentiable.__exit__(*error)
        self.scope.__exit__(*error)
        self.counted.__exit__(*error)
        self.shares = [self.scope.get_current_value(average) for average, _ in self.averages]
        expected = "one whose BatchNorm layers take batch statistics in training or are frozen"
        for (average, _), start, share in zip(self.averages, self.starts, self.shares, strict=True):
            hint = f"{average.path} (freeze its layer: layer.trainable = False)"
            require(any(error) or share is not start, "network", expected, hint)
            calls = self.calls[id(average)]
            once = "one that calls a BatchNorm once, unless it is frozen"
            require(any(error) or calls == 1, "network", once, f"{calls} calls; {hint}")
        moved = {id(average) for average, _ in self.averages}
        for variable in self.network.non_trainable_variables:  # such as the seeds of Dropout
            if id(variable) not in moved:
                variable.assign(self.scope.get_current_value(variable))

    def _count(self, layer: keras.Layer, _: Any, outputs: Any) -> Any:
        if isinstance(layer, keras.layers.BatchNormalization):
            self.calls.update([id(layer.moving_mean), id(layer.moving_variance)])
        return outputs

    def used(self) -> keras.StatelessScope:
        """Return a context in which mode "eval" normalises by the statistics.

        It collects the penalties on activations, as `losses`.
        """
        pairs = zip(self.averages, self.shares, strict=True)
        return self._with([share / (1.0 - momentum) for (_, momentum), share in pairs])

    def _with(self, values: list[tf.Tensor]) -> keras.StatelessScope:
        """Return a context in which the averages have these values."""
        pairs = [(variable, variable.value) for variable in self.network.variables]
        pairs += [(a, value) for (a, _), value in zip(self.averages, values, strict=True)]
        return keras.StatelessScope(pairs, collect_losses=True)
