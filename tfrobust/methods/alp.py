"""ALP: adversarial logit pairing (Kannan et al., 2018, arXiv:1803.06373)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import PGD
from tfrobust.attacks.gradient import GradientAttack
from tfrobust.errors import number, require_bool
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.serialization import serializable


@serializable
class Alp(RobustModel):
    """(CE(f(x), y) + CE(f(x'), y)) / 2 + weight * mean_c (f_c(x) - f_c(x'))^2.

    As in the authors' code, x and x' are in one batch, of which BatchNorm takes the statistics, and
    with `least_likely` the attack targets the class with the lowest logit at x. Engstrom et al.
    (2018, arXiv:1807.10272) broke the paper's claim of robustness, so the method serves as a
    baseline.
    """

    default_attack = PGD(steps=10)
    attack_kind = GradientAttack

    def __init__(
        self,
        network: keras.Model,
        *,
        weight: float = 0.5,
        least_likely: bool = False,
        **kwargs: Any,
    ):
        require_bool(least_likely=least_likely)
        self.weight, self.least_likely = number("weight", weight, at_least=0), least_likely
        if least_likely:
            self.crafting_loss = None
        super().__init__(network, **kwargs)

    def adversary(self, batch: Batch) -> tf.Tensor:
        if not self.least_likely:
            return super().adversary(batch)
        assert isinstance(self.attack, GradientAttack)
        logits_fn, x = self.logits_fn(batch, self.craft), batch["image"]
        target = tf.argmin(logits_fn(x), axis=-1, output_type=tf.int32)
        return self.attack.maximise(
            lambda x_adv: -losses.cross_entropy(logits_fn(x_adv), target),
            x,
            threat=self.threat_now,
            seed=self.seed_for("attack"),
        )

    def robust_loss(self, batch: Batch) -> Batch:
        label, x = batch["label"], batch["image"]
        # Each image precedes its adversary, so that replicas take the same rows of Dropout's noise.
        pairs = tf.stack([x, batch["adv"]], axis=1)
        images = tf.reshape(pairs, tf.concat([[-1], tf.shape(x)[1:]], axis=0))
        logits = self.logits_fn(batch, "train")(tf.ensure_shape(images, [None, *x.shape[1:]]))
        clean, adversarial = logits[::2], logits[1::2]
        truth = self.truth(batch)
        total = losses.cross_entropy(clean, truth) + losses.cross_entropy(adversarial, truth)
        pairing = tf.reduce_mean(tf.square(clean - adversarial), axis=-1)
        return {
            "loss": 0.5 * total + self.scale * self.weight * pairing,
            "accuracy": losses.correct(clean, label),
            "robust_accuracy": losses.correct(adversarial, label),
        }

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"weight": self.scale * self.weight}
