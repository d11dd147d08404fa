"""The binarisation test: do attacks find adversarial images that are made to exist?

Zimmermann et al., 2022, arXiv:2206.13991. For each image the last layer of the network is replaced
by a linear readout that tells points well inside the ball, among them the image, from one point on
its surface. This point is an adversarial image of the new network, so an attack that finds none is
too weak, and its result on the network itself means little.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tfrobust import noise
from tfrobust._compat import operation_of
from tfrobust.attacks import Attack, registered_name
from tfrobust.attacks.apgd import random_start
from tfrobust.errors import UserError
from tfrobust.evaluation.batching import map_batches
from tfrobust.evaluation.crafting import LogitsFn, compiled, float32_logits, predictor
from tfrobust.evaluation.image_checks import check_adversarial
from tfrobust.evaluation.progress import progress_bar
from tfrobust.evaluation.results import Check
from tfrobust.evaluation.sample import Measurement, Sample, sanity_check
from tfrobust.gate import representative
from tfrobust.models import SavedNetwork
from tfrobust.models.signatures import forward, is_symbolic
from tfrobust.threat import Threat

NAME = "binarisation"
INNER = 999  # points inside the ball beside the image, as in the paper
GAP = 0.05  # the share of eps between them and the surface, as in the paper's code
RANDOM = 200  # points on the surface that the random attack tries
ENOUGH = 0.95  # the share of the images at which an evaluation passes


class Readout(NamedTuple):
    """A linear function of the features, which is -1 at the clean image and > 0 at the point."""

    weights: np.ndarray
    bias: float

    @classmethod
    def between(cls, inner: np.ndarray, point: np.ndarray) -> Readout | None:
        """Return the readout that separates inner features [n, F] from those of a point, [F].

        The first of the inner features are those of the clean image. Returns None if logistic
        regression does not separate them.
        """
        both = np.concatenate([inner, point[None]]).astype(np.float64)
        scaler, labels = StandardScaler().fit(both), np.arange(len(both)) == len(inner)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it need not converge, only separate
            fit = LogisticRegression(C=np.inf, max_iter=1000).fit(scaler.transform(both), labels)
        weights = fit.coef_[0] / scaler.scale_
        bias = fit.intercept_[0] - weights @ scaler.mean_
        value = both @ weights + bias
        if not ((value > 0) == labels).all():
            return None
        return cls(weights / -value[0], float(bias / -value[0]))


def features_of(network: LogitsFn) -> LogitsFn:
    """Return the function from images to the input of a network's last layer, [B, F].

    For networks that are neither functional nor Sequential it is the network itself.
    """
    model = network.network if isinstance(network, SavedNetwork) else network
    if not isinstance(model, keras.Model) or not is_symbolic(model):
        return network
    values: Any = getattr(operation_of(model.outputs[0]), "input", None)
    if getattr(values, "shape", None) is None or len(values.shape) != 2:
        return network
    images = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    call = functools.partial(forward, keras.Model(images, values))
    if not isinstance(network, SavedNetwork):
        return call
    return dataclasses.replace(network, forward=call, classes=values.shape[1], outputs="logits")


def binarised(features: LogitsFn, examples: int) -> Callable[[Sample], Check]:
    """Return the check that the attacks of an evaluation find images that were made to exist.

    Each image costs 1,200 forward passes and the passes of the attacks, one after the other until
    one succeeds.

    Args:
        features: Function from images [B, H, W, C] to features [B, F], as of `features_of`. The
            more features there are, the better they tell the points apart.
        examples: The largest number of images. They are some of those of the other checks.
    """

    @sanity_check(NAME)
    def check(sample: Sample) -> Measurement:
        x, size = sample.x[representative(sample.y, examples)], sample.batch_size
        test = _Binarised(features, x.shape[1:], sample.threat, sample.seed, size)
        listed = [result.listed.attack for result in sample.results if result.listed]
        attempts = [test.attempt(attack) for attack in listed if test.takes(attack, x[:1])]
        if not attempts:
            text = "it takes an attack that reads no file and runs on two classes"
            return None, f"Not measured: {text}.", False
        made = hit = by_chance = 0
        bar = progress_bar(sample.bar_label(NAME), x)
        for number, image in enumerate(bar):
            if test.plant(image, number):
                made += 1
                by_chance += test.by_chance(image, number)
                hit += any(attempt(image, number) for attempt in attempts)
        if not made:
            text = f"no readout tells a point of the surface from those inside at {len(x)} images"
            return None, f"Not measured: {text}.", False
        text = (
            f"An adversarial image was made to exist at {made} of {len(x)} images. The attacks "
            f"find one at {hit} of them; at least {100 * ENOUGH:g} % are expected. {RANDOM} random "
            f"points find one at {by_chance}."
        )
        return hit / made, text, hit < ENOUGH * made

    return check


class _Binarised:
    """The network of two classes whose readout changes from image to image.

    Class 0 is the inside of the ball, class 1 the point on its surface.
    """

    def __init__(
        self, features: LogitsFn, shape: Any, threat: Threat, seed: int, batch_size: int
    ) -> None:
        self.shape, self.threat, self.seed, self.batch_size = shape, threat, seed, batch_size
        self._features = float32_logits(features)
        self._describe = compiled(lambda images: [self._features(images)], shape)
        (described,) = self._describe.structured_outputs
        self._weights, self._bias = tf.Variable(tf.zeros(described.shape[1])), tf.Variable(0.0)
        self._predict = predictor(self._logits, batch_size)

    def _logits(self, images: Any) -> tf.Tensor:
        value = tf.linalg.matvec(self._features(images), self._weights) + self._bias
        return tf.stack([-value, value], axis=1)

    def _draw(self, image: np.ndarray, count: int, number: int, where: str) -> np.ndarray:
        """Return random points [count, H, W, C], "inside" the ball or on its "surface"."""
        images = tf.repeat(image[None], count, axis=0)
        seed = noise.seed_for(self.seed, number, f"{NAME} {where} {count}")
        if where == "inside":
            inside = self.threat.at((1 - GAP) * self.threat.eps)
            return inside.random_start(images, seed).numpy()
        return self.threat.project(random_start(images, self.threat, seed), images).numpy()

    def plant(self, image: np.ndarray, number: int) -> bool:
        """Make one point on the surface an adversarial image, and return whether it is one."""
        inner = np.concatenate([image[None], self._draw(image, INNER, number, "inside")])
        points = np.concatenate([inner, self._draw(image, 1, number, "surface")])
        (values,) = map_batches(self._describe, points, batch_size=self.batch_size)
        readout = Readout.between(values[:-1], values[-1]) if np.isfinite(values).all() else None
        if readout is None:
            return False
        self._weights.assign(readout.weights)
        self._bias.assign(readout.bias)
        return bool((self._predict(points[[0, -1]]) == [0, 1]).all())

    def by_chance(self, image: np.ndarray, number: int) -> bool:
        """Return whether one of several random points is an adversarial image."""
        return bool(self._predict(self._draw(image, RANDOM, number, "surface")).any())

    def takes(self, attack: Attack, images: np.ndarray) -> bool:
        """Return whether an attack runs on this network: without files, and on its two classes."""
        if attack.files:
            return False
        try:
            attack.fitted(2).check_network(self._logits, images)
        except UserError:  # it needs more classes, or a layer that the readout replaces
            return False
        return True

    def attempt(self, attack: Attack) -> Callable[[np.ndarray, int], bool]:
        """Return a function (image, its number) -> whether the attack finds an adversary."""
        attack = attack.fitted(2)

        def run(images: tf.Tensor, number: tf.Tensor) -> Any:
            labels = tf.zeros(tf.shape(images)[:1], tf.int32)
            seed = noise.seed_for(self.seed, number, f"{NAME} {registered_name(attack)}")
            return attack.outcome(self._logits, images, labels, threat=self.threat, seed=seed)

        traced = compiled(run, self.shape, tf.TensorSpec([], tf.int32))

        def succeeds(image: np.ndarray, number: int) -> bool:
            images = np.asarray(traced(tf.constant(image[None]), tf.constant(number)).images)
            check_adversarial(attack.title, self.threat, images, image[None])
            return bool(self._predict(images).any())

        return succeeds
