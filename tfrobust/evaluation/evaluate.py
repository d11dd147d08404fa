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
TOLERANCE = 1e-6  # of a distance beyond eps: float32 rounding


@dataclasses.dataclass(frozen=True)
class Trial:
    """A row of an evaluation: an attack, its name in tables, and on how many of the first images
    it runs (None: all)."""

    attack: Attack
    name: str
    examples: int | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What an attack left standing.

    name: "clean" or the trial's. robust: bool [n] of the first n images: right on the clean image
    and on the adversarial one.
    """

    name: str
    robust: np.ndarray
    seconds: float

    @property
    def accuracy(self) -> float:
        """The fraction of the n images still right."""
        return float(self.robust.mean())


def predictor(logits_fn: LogitsFn, batch_size: int = 250) -> Callable[[np.ndarray], np.ndarray]:
    """Images [N, H, W, C] -> predicted classes [N], -1 where a logit is not finite; compiled once
    for each shape of batch."""

    @tf.function(autograph=False)
    def predict(images: Any) -> Any:
        logits = logits_fn(images)
        finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
        return tf.where(finite, tf.argmax(logits, axis=-1, output_type=tf.int32), -1)

    return lambda x: _in_batches(lambda rows, _: predict(tf.constant(x[rows])), len(x), batch_size)


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

    _check(x, y, threat)

    @tf.function(autograph=False)
    def craft(images: Any, labels: Any, number: Any) -> Any:
        return attack(
            logits_fn,
            images,
            labels,
            threat=threat,
            seed=noise.seed_for(seed, number, attack.title),
        )

    def crafted(rows: np.ndarray, number: int) -> Any:
        return craft(tf.constant(x[rows]), tf.constant(y[rows], tf.int32), tf.constant(number))

    x_adv = _in_batches(crafted, len(x), batch_size, progress)
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
    progress: bool = True,  # on a terminal
) -> Iterator[Result]:
    """The clean result, then those of the trials, one after the other, each on all its images.

    logits_fn: [B, H, W, C] in the box -> logits [B, C]; x: float32 [N, H, W, C]; y: int [N].
    """
    _check(x, y, threat)
    names = [trial.name for trial in trials]
    require(len({"clean", *names}) == len(names) + 1, "attacks", "names that differ", names)
    predict = predictor(logits_fn, batch_size)
    begun = time.perf_counter()
    right = predict(x) == y
    yield Result("clean", right, time.perf_counter() - begun)
    for trial in trials:
        n = min(trial.examples or len(x), len(x))
        begun = time.perf_counter()
        x_adv = adversaries(
            logits_fn,
            x[:n],
            y[:n],
            trial.attack,
            threat,
            seed=seed,
            batch_size=batch_size,
            progress=trial.name if progress else None,
        )
        robust = right[:n] & (predict(x_adv) == y[:n])
        yield Result(trial.name, robust, time.perf_counter() - begun)


def worst_case(results: Sequence[Result]) -> np.ndarray:
    """bool [n]: right in every trial, for the images that all of them saw."""
    n = min(len(result.robust) for result in results)
    return np.logical_and.reduce([result.robust[:n] for result in results])


def _check(x: np.ndarray, y: np.ndarray, threat: Threat) -> None:
    low, high = threat.box
    require(x.dtype == np.float32, "x", "float32 images", x.dtype.name)
    require(len(x), "x", "at least one image", "none")
    inside = low <= x.min() and x.max() <= high
    require(inside, "x", f"images in [{low:g}, {high:g}]", (float(x.min()), float(x.max())))
    require(y.shape == x.shape[:1], "y", f"{len(x)} class numbers [N]", f"shape {y.shape}")


def _in_batches(
    function: Callable[[np.ndarray, int], Any], n: int, batch_size: int, progress: str | None = None
) -> np.ndarray:
    """function(rows, number of the batch) over full batches of n rows: one shape, one trace. The
    last batch is filled up with its own first row, whose results are dropped."""
    size = min(batch_size, n)
    outputs = []
    for number, start in enumerate(
        tqdm(range(0, n, size), progress, disable=None if progress else True)
    ):
        rows = np.arange(start, start + size)
        outputs.append(function(np.where(rows < n, rows, start), number).numpy())
    return np.concatenate(outputs)[:n]
