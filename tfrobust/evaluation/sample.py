"""The images that the checks of an evaluation look at, and the decorator that makes a check."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import PGD, Attack
from tfrobust.distribution import worker
from tfrobust.errors import OutOfMemory, UserError
from tfrobust.evaluation.batching import map_batches
from tfrobust.evaluation.crafting import (
    Crafted,
    LogitsFn,
    Predict,
    compiled,
    craft,
    float32_logits,
    predictor,
)
from tfrobust.evaluation.results import Check, Result
from tfrobust.gate import outputs
from tfrobust.threat import Threat

PGD_50 = PGD(steps=50)

Measurement = tuple[Any, str, Any]  # the value or None, the text, whether it warns


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """The images that the checks look at, and the measurements that several checks share.

    Attributes:
        logits_fn: Function from images [B, H, W, C] to logits [B, C], in inference mode.
        x: Images [n, H, W, C] that are right when clean.
        y: Their labels [n].
        threat: The threat of the evaluation.
        results: The results of the evaluation, the clean one first.
        rows: The places of the images in the test set, int [n].
        unselected: Images of the test set, right or wrong, and their labels.
        seed: The seed of the noise.
        batch_size: The number of images in a pass.
        progress: Whether to show a bar on a terminal.
    """

    logits_fn: LogitsFn
    x: np.ndarray
    y: np.ndarray
    threat: Threat
    results: Sequence[Result]
    rows: np.ndarray
    unselected: tuple[np.ndarray, np.ndarray]
    seed: int
    batch_size: int
    progress: bool

    def craft(
        self,
        attack: Attack,
        name: str,
        eps: float | None = None,
        search: LogitsFn | None = None,
    ) -> Crafted:
        """Attack the images.

        Args:
            attack: The attack.
            name: Its name on the bar.
            eps: Another eps than that of the threat.
            search: Another network on which the attack searches. The network itself judges.
        """
        threat = self.threat if eps is None else self.threat.at(eps)
        options: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size}
        options |= {"progress": self.bar_label(name), "predict": self.predict, "search": search}
        return craft(self.logits_fn, self.x, self.y, attack, threat, **options)

    def bar_label(self, name: str) -> str | None:
        """Return the label of a check's progress bar; None for no bar."""
        return f"check: {name}" if self.progress else None

    @cached_property
    def predict(self) -> Predict:
        return predictor(self.logits_fn, self.batch_size)

    @cached_property
    def pgd_50(self) -> Crafted:
        return self.craft(PGD_50, "PGD-50")

    def measure(
        self, function: Callable[..., Any], images: np.ndarray, batch_size: int | None = None
    ) -> np.ndarray:
        """Return V values of a function at each image, float32 [V, n].

        Args:
            function: Images [B, H, W, C] and labels [B] -> a list of V values [B].
            images: The images [n, H, W, C], in the order of the labels.
            batch_size: The number of images in a pass, by default that of the sample.
        """
        traced = compiled(function, images.shape[1:], tf.TensorSpec([None], tf.int32))
        labels, size = self.y.astype(np.int32), batch_size or self.batch_size
        return np.stack(map_batches(traced, images, labels, batch_size=size))

    def losses(self, *sets: np.ndarray) -> list[np.ndarray]:
        """Return the cross entropies [n] of each set of images [n, H, W, C]."""

        def cross_entropy(x: Any, y: Any) -> Any:
            return [losses.cross_entropy(float32_logits(self.logits_fn)(x), y)]

        return [self.measure(cross_entropy, images)[0] for images in sets]

    @cached_property
    def logits(self) -> np.ndarray:
        return self.outputs()

    def outputs(self, batch_size: int | None = None) -> np.ndarray:
        """Return the logits [n, C] of a new pass, by default in the batches of the sample.

        The pass is not compiled, as compiling may turn a random number into a constant.
        """
        return outputs(self.logits_fn, self.x, batch_size or self.batch_size)

    @property
    def n(self) -> int:
        return len(self.x)


def sanity_check(
    name: str,
) -> Callable[[Callable[[Sample], Measurement]], Callable[[Sample], Check]]:
    """Return a decorator that turns a function from a sample to a measurement into a check.

    If the function raises an error, the check has no value, and the message is its text.
    """

    def decorate(measure: Callable[[Sample], Measurement]) -> Callable[[Sample], Check]:
        @functools.wraps(measure)
        def check(sample: Sample) -> Check:
            try:
                value, text, warns = measure(sample)
            except Exception as error:
                if worker()[1] > 1:  # the other workers wait for this one's numbers
                    raise
                return Check(name, None, f"Not measured: {reason(error)}.", False)
            finite = value is not None and math.isfinite(value)
            return Check(name, float(value) if finite else None, text, bool(warns))

        return check

    return decorate


def reason(error: Exception) -> str:
    """Return the message of an error in one line."""
    if isinstance(error, MemoryError | OutOfMemory | tf.errors.ResourceExhaustedError):
        return "the memory does not suffice; lower the batch size"
    line = " ".join(str(error).split())[:200].rstrip(".")
    if isinstance(error, UserError):
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
