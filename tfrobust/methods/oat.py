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
    """(1 - lambda) * CE(f(x, lambda), y) + lambda * CE(f(x', lambda), y), lambda an input of the
    network, "strength", that is drawn anew for each example.

    lambdas: what is drawn; None is those that the network was built with (`lambdas` of
    tfrobust.models). Of a batch of B ceil(B / n) examples get lambda 0 and are not attacked; the
    others draw one of the other n - 1. x' is crafted at the example's lambda. default: the lambda
    of validation, of `predict`, and of whatever calls the model without one. The authors' step is
    1.25 eps / 7.

    OATS: a network with `widths` has the input "width" too. Each step draws one of them for all of
    its batch, and so costs as much as without; validation is at the whole width. (The authors have
    published the network, not its training; slimmable networks without lambda sum a step's loss
    over the widths, for as many times the cost.)
    """

    default_attack = PGD(steps=7)
    network_inputs: Sequence[str] = ("image", "strength")
    sizes_vary = True  # of several replicas: where the zeros of a global batch fall differs

    def __init__(
        self,
        network: keras.Model,
        *,
        lambdas: list[float] | None = None,
        default: float = 1.0,
        **kwargs: Any,
    ):
        self.default = default
        encodings = [la for la in getattr(network, "layers", ()) if isinstance(la, Encoding)]
        sizes = next((la.lambdas for la in encodings if la.name == "widths"), None)
        if sizes is not None:
            self.network_inputs = (*Oat.network_inputs, "width")
        super().__init__(network, **kwargs)
        self.widths = None if sizes is None else list(sizes)
        known = next((la for la in encodings if la.name != "widths"), None)
        drawn = lambdas if known is None or lambdas is not None else known.lambdas
        require(drawn, "lambdas", "those to draw (the network has no encoding of any)", drawn)
        self.lambdas = list(drawn or ())
        rising = sorted(set(self.lambdas)) == self.lambdas
        inside = len(self.lambdas) > 1 and self.lambdas[0] == 0 and self.lambdas[-1] <= 1
        require(rising and inside, "lambdas", "0 and rising numbers up to 1", self.lambdas)
        if known is not None and known.encoding != "none":
            for name, values in (("lambdas", self.lambdas), ("default", [default])):
                fits = set(values) <= set(known.lambdas)
                require(fits, name, f"some of the network's, {list(known.lambdas)}", values)
        require(0 <= default <= 1, "default", "a number in [0, 1]", default)

    def inputs(self, batch: Batch, x: tf.Tensor) -> Any:
        defaults = {"strength": self.default} | ({} if self.widths is None else {"width": 1.0})
        given = {name: tf.cast(batch.get(name, at), tf.float32) for name, at in defaults.items()}
        rows = tf.shape(x)[:1]
        return {"image": x} | {name: tf.broadcast_to(v, rows) for name, v in given.items()}

    def perturb(self, batch: Batch) -> Batch:
        drawn = {"strength": noise.sliced(self._drawn, tf.shape(batch["label"]))}
        if self.widths is not None:
            drawn["width"] = tf.fill(tf.shape(batch["label"]), self._width())
        attacked = self._attacked(drawn["strength"])
        chosen = {key: tf.gather(value, attacked) for key, value in (batch | drawn).items()}
        with noise.of_rows(tf.size(drawn["strength"]), attacked):
            found = self.adversary(chosen)
        adv = tf.tensor_scatter_nd_update(batch["image"], attacked[:, None], found)
        return drawn | {"adv": adv}

    def robust_loss(self, batch: Batch) -> Batch:
        label, strength = batch["label"], batch["strength"]
        clean = self.logits_fn(batch, "train")(batch["image"])
        attacked = self._attacked(strength)
        names = ("adv", "label", "strength", "width")
        part = {key: tf.gather(batch[key], attacked) for key in names if key in batch}
        with noise.of_rows(tf.size(strength), attacked):  # that of dropout
            adversarial = self.logits_fn(part, "train")(part["adv"])
        hard, right = (
            tf.scatter_nd(attacked[:, None], values, tf.shape(label, tf.int64))
            for values in (
                losses.cross_entropy(adversarial, part["label"]),
                tf.cast(losses.correct(adversarial, part["label"]), tf.float32),
            )
        )
        return {
            "loss": (1.0 - strength) * losses.cross_entropy(clean, label) + strength * hard,
            "accuracy": losses.correct(clean, label),
            "robust_accuracy": (right, tf.cast(strength > 0, tf.float32)),
        }

    def _zeros(self, size: tf.Tensor) -> tf.Tensor:
        """How many of a global batch get lambda 0."""
        return -(-size // len(self.lambdas))

    def _drawn(self, shape: tf.Tensor) -> tf.Tensor:
        """lambda for each example of the global batch: the zeros at random places."""
        size, seed = shape[0], self.seed_for("strength")
        which = tf.random.stateless_uniform(
            [size], seed, 1, len(self.lambdas), tf.int32, alg="philox"
        )
        drawn = tf.gather(tf.constant(list(self.lambdas), tf.float32), which)
        drawn = tf.where(tf.range(size) < self._zeros(size), 0.0, drawn)
        return noise.shuffled(drawn, self.seed_for("lambda's places"))

    def _attacked(self, strength: tf.Tensor) -> tf.Tensor:
        """The rows of lambda > 0; one at least, whatever its lambda: no convolution takes none."""
        if has_fixed_shapes():  # of one replica, which has the whole batch, their number is known
            size = tf.size(strength)
            count = tf.maximum(size - self._zeros(size), 1)
            order = tf.argsort(tf.cast(strength == 0, tf.int32), stable=True)
            return tf.cast(order[:count], tf.int64)
        alone = (tf.reduce_max(strength) == 0) & (tf.range(tf.size(strength)) == 0)
        return tf.where((strength > 0) | alone)[:, 0]

    def _width(self) -> tf.Tensor:
        """That of this step, on every replica."""
        seed, count = self.seed_for("width"), len(self.widths or ())
        which = tf.random.stateless_uniform([], seed, 0, count, tf.int32, alg="philox")
        return tf.gather(tf.constant(self.widths, tf.float32), which)
