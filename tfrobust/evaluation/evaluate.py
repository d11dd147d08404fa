"""Attack a network on a test set and count what stays right."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfrobust import noise
from tfrobust.attacks import Attack
from tfrobust.registry import require
from tfrobust.threat import Threat

LogitsFn = Callable[[Any], Any]
TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Trial:
    """An attack of an evaluation: its name in tables, and on how many of the first images it runs
    (None: all)."""

    attack: Attack
    name: str
    examples: int | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What an attack left standing.

    robust: bool [n] of the first n images: right on the clean image and on the adversarial one.
    """

    trial: Trial
    robust: np.ndarray
    seconds: float

    @property
    def accuracy(self) -> float:
        """Robust accuracy, a fraction of the n images."""
        return float(self.robust.mean())


def predictions(logits_fn: LogitsFn, x: np.ndarray, batch_size: int = 250) -> np.ndarray:
    """Predicted classes [N] of images [N, H, W, C]; -1 where a logit is not finite."""

    def predict(images: Any, _: Any, __: Any) -> Any:
        logits = logits_fn(images)
        finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
        return tf.where(finite, tf.argmax(logits, axis=-1, output_type=tf.int32), -1)

    return _in_batches(predict, x, np.zeros(len(x), np.int32), batch_size, None)


def adversaries(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    attack: Attack,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = 250,
    progress: str | None = None,
) -> np.ndarray:
    """Adversarial images [N, H, W, C] of x, checked: finite, inside the box and within eps.

    The noise is a function of (seed, the attack's title, the batch's number). progress: the label
    of a progress bar, none by default. Raises RuntimeError if the attack left the threat's set:
    nothing is clipped here.
    """

    def craft(images: Any, labels: Any, number: Any) -> Any:
        return attack(
            logits_fn, images, labels, threat=threat,
            seed=noise.seed_for(seed, number, attack.title),
        )  # fmt: skip

    x_adv = _in_batches(craft, x, y, batch_size, progress)
    low, high = threat.box
    if not np.isfinite(x_adv).all():
        raise RuntimeError(f"{attack.title}: made images that are not finite")
    if x_adv.min() < low or x_adv.max() > high:
        raise RuntimeError(
            f"{attack.title}: made images in [{x_adv.min()}, {x_adv.max()}], "
            f"outside the box [{low}, {high}]"
        )
    distance = threat.distance(x_adv.astype(np.float64), x.astype(np.float64)).numpy()
    if (distance > threat.eps + TOLERANCE).any():
        raise RuntimeError(
            f"{attack.title}: made images at distance {distance.max()}, eps is {threat.eps}"
        )
    return x_adv


def evaluate(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    trials: Sequence[Trial],
    *,
    seed: int = 0,
    batch_size: int = 250,
    progress: bool = True,
) -> Iterator[Result]:
    """The results of the attacks, one after the other, each on all its images.

    logits_fn: [B, H, W, C] in the box -> logits [B, C]; x: float32 [N, H, W, C]; y: int [N].
    """
    names = [trial.name for trial in trials]
    require(len(set(names)) == len(names), "attacks", "names that differ", names)
    right = predictions(logits_fn, x, batch_size) == y
    for trial in trials:
        n = len(x) if trial.examples is None else min(trial.examples, len(x))
        begun = time.perf_counter()
        x_adv = adversaries(
            logits_fn, x[:n], y[:n], trial.attack, threat,
            seed=seed, batch_size=batch_size, progress=trial.name if progress else None,
        )  # fmt: skip
        robust = right[:n] & (predictions(logits_fn, x_adv, batch_size) == y[:n])
        yield Result(trial, robust, time.perf_counter() - begun)


def worst_case(results: Sequence[Result], clean: np.ndarray) -> np.ndarray:
    """bool [n]: right under every attack, for the images that all of them saw."""
    n = min([len(clean), *(len(result.robust) for result in results)])
    return np.logical_and.reduce([clean[:n], *(result.robust[:n] for result in results)])


def _in_batches(
    function: Callable[[Any, Any, Any], Any],
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    progress: str | None,
) -> np.ndarray:
    """function(images, labels, number of the batch) over full batches: one trace, the last batch
    filled up with its own first image, whose results are dropped."""
    size = min(batch_size, len(x))
    compiled = tf.function(function)
    outputs = []
    starts = range(0, len(x), size)
    for number, start in enumerate(tqdm(starts, desc=progress, disable=progress is None)):
        rows = np.arange(start, start + size)
        rows[rows >= len(x)] = start
        images, labels = (tf.constant(a[rows]) for a in (x, y.astype(np.int32)))
        outputs.append(compiled(images, labels, tf.constant(number)).numpy())
    return np.concatenate(outputs)[: len(x)]
