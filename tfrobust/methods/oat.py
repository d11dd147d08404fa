"""OAT: once-for-all adversarial training (Wang et al., 2020, arXiv:2010.11828)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks import PGD
from tfrobust.errors import require
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.models.conditional import Encoding
from tfrobust.serialization import serializable
from tfrobust.xla import has_fixed_shapes


@serializable
class Oat(RobustModel):
    """(1 - lambda) * CE(f(x, lambda), y) + lambda * CE(f(x', lambda), y), lambda drawn per example.

    lambda is the input "strength" of the network. `lambdas` are the n values that are drawn; None
    stands for those that the network was built with (`lambdas` in tfrobust.models). In a batch of B
    examples ceil(B / n) get lambda 0 and are not attacked; each of the others draws one of the
    other n - 1 values. x' is crafted at the example's lambda. `default` is the lambda of
    validation, of `predict`, and of any call without one. The authors' step size is 1.25 eps / 7.

    OATS: a network that was built with `widths` also has the input "width". Each step draws one
    width for its batch, so that widths add no cost. Validation is at the full width. (The authors
    published this network, but not its training. Slimmable networks without lambda sum the loss
    over the widths in each step, which multiplies the cost by their number.)
    """

    default_attack = PGD(steps=7)
    example = {"lambdas": [0.0, 1.0]}
    network_inputs: Sequence[str] = ("image", "strength")
    sizes_vary = True  # replicas get different numbers of examples with lambda 0

    def __init__(
        self,
        network: keras.Model,
        *,
        lambdas: list[float] | None = None,
        default: float = 1.0,
        **kwargs: Any,
    ):
        self.default = default
        layers = getattr(network, "layers", ())
        encodings = {layer.name: layer for layer in layers if isinstance(layer, Encoding)}
        widths = encodings.pop("widths", None)
        if widths is not None:
            self.network_inputs = (*Oat.network_inputs, "width")
        super().__init__(network, **kwargs)
        self.widths = None if widths is None else list(widths.lambdas)
        encoding = next(iter(encodings.values()), None)
        if lambdas is None and encoding is not None:
            lambdas = list(encoding.lambdas)
        require(lambdas, "lambdas", "those to draw (the network was built with none)", lambdas)
        self.lambdas = list(lambdas or ())
        rising = sorted(set(self.lambdas)) == self.lambdas
        inside = len(self.lambdas) > 1 and self.lambdas[0] == 0 and self.lambdas[-1] <= 1
        require(rising and inside, "lambdas", "0 and rising numbers up to 1", self.lambdas)
        if encoding is not None and encoding.encoding != "none":
            for name, values in (("lambdas", self.lambdas), ("default", [default])):
                fits = set(values) <= set(encoding.lambdas)
                require(fits, name, f"some of the network's, {list(encoding.lambdas)}", values)

    def inputs(self, batch: Batch, x: tf.Tensor) -> Any:
        defaults = {"strength": self.default}
        if self.widths is not None:
            defaults["width"] = 1.0
        inputs = {"image": x}
        for name, default in defaults.items():
            value = tf.cast(batch.get(name, default), tf.float32)
            value = noise.of_standing(value) if value.shape.rank else value
            inputs[name] = tf.broadcast_to(value, tf.shape(x)[:1])
        return inputs

    def perturb(self, batch: Batch) -> Batch:
        drawn = {"strength": noise.sliced(self._drawn, tf.shape(batch["label"]))}
        if self.widths is not None:
            drawn["width"] = tf.fill(tf.shape(batch["label"]), self._width())
        attacked = self._attacked(drawn["strength"])
        subset = {key: tf.gather(value, attacked) for key, value in (batch | drawn).items()}
        with noise.of_rows(tf.size(drawn["strength"]), attacked):
            images = self.adversary(subset)
        adv = tf.tensor_scatter_nd_update(batch["image"], attacked[:, None], images)
        return drawn | {"adv": adv}

    def robust_loss(self, batch: Batch) -> Batch:
        label, strength = batch["label"], batch["strength"]
        clean = self.logits_fn(batch, "train")(batch["image"])
        attacked = self._attacked(strength)
        names = ("adv", "label", "other_label", "other_share", "strength", "width")
        subset = {key: tf.gather(batch[key], attacked) for key in names if key in batch}
        with noise.of_rows(tf.size(strength), attacked):  # for Dropout
            adversarial = self.logits_fn(subset, "train")(subset["adv"])

        def scattered(values: tf.Tensor) -> tf.Tensor:
            return tf.scatter_nd(attacked[:, None], values, tf.shape(label, tf.int64))

        clean_loss = losses.cross_entropy(clean, self.truth(batch))
        adv_loss = scattered(losses.cross_entropy(adversarial, self.truth(subset)))
        right = scattered(tf.cast(losses.correct(adversarial, subset["label"]), tf.float32))
        return {
            "loss": (1.0 - strength) * clean_loss + strength * adv_loss,
            "accuracy": losses.correct(clean, label),
            "robust_accuracy": (right, tf.cast(strength > 0, tf.float32)),
        }

    def _zeros(self, size: tf.Tensor) -> tf.Tensor:
        """Return how many examples of a global batch of `size` get lambda 0."""
        return -(-size // len(self.lambdas))

    def _drawn(self, shape: tf.Tensor) -> tf.Tensor:
        """Return the lambda of each example of the global batch, with zeros in random places."""
        size, seed, count = shape[0], self.seed_for("strength"), len(self.lambdas)
        place = tf.random.stateless_uniform([size], seed, 1, count, tf.int32, alg="philox")
        drawn = tf.gather(tf.constant(list(self.lambdas), tf.float32), place)
        drawn = tf.where(tf.range(size) < self._zeros(size), 0.0, drawn)
        return noise.shuffled(drawn, self.seed_for("lambda's places"))

    def _attacked(self, strength: tf.Tensor) -> tf.Tensor:
        """Return the rows with lambda > 0, or the first row if there is none.

        Convolutions need one row at least.
        """
        if has_fixed_shapes():  # one replica has the global batch, so the number of rows is fixed
            size = tf.size(strength)
            count = tf.maximum(size - self._zeros(size), 1)
            order = tf.argsort(tf.cast(strength == 0, tf.int32), stable=True)
            return tf.cast(order[:count], tf.int64)
        is_substitute = (tf.reduce_max(strength) == 0) & (tf.range(tf.size(strength)) == 0)
        return tf.where((strength > 0) | is_substitute)[:, 0]

    def _width(self) -> tf.Tensor:
        """Return the width of this step, which is the same on every replica."""
        seed, count = self.seed_for("width"), len(self.widths or ())
        place = tf.random.stateless_uniform([], seed, 0, count, tf.int32, alg="philox")
        return tf.gather(tf.constant(self.widths, tf.float32), place)
