"""LLR: local linearity regularisation (Qin et al., 2019, arXiv:1907.02610)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import PGD
from tfrobust.attacks.gradient import GradientAttack, differentiated
from tfrobust.errors import require
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.serialization import serializable


@serializable
class Llr(RobustModel):
    """l(x) + alpha * g(x') + beta * |delta . grad l(x)|, where l = CE(f(.), y) and delta = x' - x.

    g(x') = |l(x') - l(x) - delta . grad l(x)| is the distance of l at x' from its tangent plane at
    x. The attack chooses x' to maximise g (the authors ascend with Adam). The paper calls alpha
    lambda and beta mu; the authors' code has alpha 2 and beta 0.6 at twice the learning rate.
    """

    example = {"alpha": 0.01, "beta": 1.0}

    default_attack = PGD(steps=10)
    attack_kind = GradientAttack
    crafting_loss = None
    reports = ("linearity_gap",)

    def __init__(
        self, network: keras.Model, *, alpha: float = 4.0, beta: float = 3.0, **kwargs: Any
    ):
        self.alpha, self.beta = alpha, beta
        super().__init__(network, **kwargs)
        require(alpha >= 0, "alpha", "a number >= 0", alpha)
        require(beta >= 0, "beta", "a number >= 0", beta)
        random_start = getattr(self.attack, "start", None) != "none"
        expected = "a random one (the gradient is zero at the image itself)"
        require(random_start, "attack.start", expected, "none")

    def adversary(self, batch: Batch) -> tf.Tensor:
        assert isinstance(self.attack, GradientAttack)
        logits_fn, x = self.logits_fn(batch, self.craft), batch["image"]

        def loss(images: tf.Tensor) -> tf.Tensor:
            return losses.cross_entropy(logits_fn(images), batch["label"])

        here, _, slope = differentiated(lambda images: (loss(images), None), x)
        return self.attack.maximise(
            lambda x_adv: tf.abs(loss(x_adv) - here - _dot(x_adv - x, slope)),
            x,
            threat=self.threat_now,
            seed=self.seed_for("attack"),
        )

    def robust_loss(self, batch: Batch) -> Batch:
        label, logits_fn = batch["label"], self.logits_fn(batch, "train")
        x, x_adv = batch["image"], batch["adv"]

        def loss(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = logits_fn(images)
            return losses.cross_entropy(logits, label), losses.correct(logits, label)

        here, right, slope = differentiated(loss, x)
        along = _dot(x_adv - x, slope)
        there, right_there = loss(x_adv)
        gap = tf.abs(there - here - along)
        return {
            "loss": here + self.scale * (self.alpha * gap + self.beta * tf.abs(along)),
            "linearity_gap": gap,
            "accuracy": right,
            "robust_accuracy": right_there,
        }

    def scalars(self) -> dict[str, Any]:
        now = {"alpha": self.scale * self.alpha, "beta": self.scale * self.beta}
        return super().scalars() | now


def _dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return the inner product [B] of tensors [B, ...]."""
    return tf.reduce_sum(a * b, axis=list(range(1, len(a.shape))))
