"""LLR: local linearity regularisation (Qin et al., 2019, arXiv:1907.02610)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import PGD
from tfrobust.attacks.gradient import GradientAttack, differentiated
from tfrobust.errors import choose, require
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.methods.batch_norm import SharedStatistics
from tfrobust.serialization import serializable


@serializable
class Llr(RobustModel):
    """l(x) + alpha * g(x') + beta * |delta . grad l(x)|, where l = CE(f(.), y) and delta = x' - x.

    g(x') = |l(x') - l(x) - delta . grad l(x)| is the distance of l at x' from its tangent plane at
    x. The attack chooses x' to maximise g (the authors ascend with Adam). The paper calls alpha
    lambda and beta mu; the authors' code has alpha 2 and beta 0.6 at twice the learning rate, and
    decays only the kernels (l2_on="kernels").

    BatchNorm normalises x and x' by the statistics of the batch of x, in the attack too, and its
    averages move by them once, as in the authors' code; so there is no choice of `craft`.
    """

    example = {"alpha": 0.01, "beta": 1.0}

    default_attack = PGD(steps=10)
    attack_kind = GradientAttack
    crafting_loss = None
    reports = ("linearity_gap",)

    def __init__(
        self,
        network: keras.Model,
        *,
        alpha: float = 4.0,
        beta: float = 3.0,
        craft: str = "frozen",
        **kwargs: Any,
    ):
        self.alpha, self.beta = alpha, beta
        super().__init__(network, craft=choose("craft", craft, ("frozen",)), **kwargs)
        require(alpha >= 0, "alpha", "a number >= 0", alpha)
        require(beta >= 0, "beta", "a number >= 0", beta)
        random_start = getattr(self.attack, "start", None) != "none"
        expected = "a random one (the gradient is zero at the image itself)"
        require(random_start, "attack.start", expected, "none")

    def adversary(self, batch: Batch) -> tf.Tensor:
        assert isinstance(self.attack, GradientAttack)
        x, label = batch["image"], batch["label"]
        loss = self._loss(batch, label, "eval")
        with self.substituted({}):  # crafting moves no averages
            (here, _, slope), statistics = self._at_image(batch, label)

            def gap(x_adv: tf.Tensor) -> tf.Tensor:
                with statistics.used():
                    there, _ = loss(x_adv)
                return tf.abs(there - here - _dot(x_adv - x, slope))

            return self.attack.maximise(
                gap, x, threat=self.threat_now, seed=self.seed_for("attack")
            )

    def robust_loss(self, batch: Batch) -> Batch:
        x, x_adv, truth = batch["image"], batch["adv"], self.truth(batch)
        (here, right, slope), statistics = self._at_image(batch, truth)
        with statistics.used():
            there, right_there = self._loss(batch, truth, "eval")(x_adv)
        statistics.move_averages()
        along = _dot(x_adv - x, slope)
        gap = tf.abs(there - here - along)
        return {
            "loss": here + self.scale * (self.alpha * gap + self.beta * tf.abs(along)),
            "linearity_gap": gap,
            "accuracy": right,
            "robust_accuracy": right_there,
        }

    def _loss(self, batch: Batch, truth: tf.Tensor, mode: str) -> Any:
        """Return the function from images to their cross entropy with the truth (labels or targets)
        and whether they are right."""
        logits_fn, label = self.logits_fn(batch, mode), batch["label"]

        def loss(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = logits_fn(images)
            return losses.cross_entropy(logits, truth), losses.correct(logits, label)

        return loss

    def _at_image(self, batch: Batch, truth: tf.Tensor) -> tuple[Any, SharedStatistics]:
        """Return the cross entropy at x, whether x is right, and the gradient; the statistics."""
        with SharedStatistics(self.network) as statistics:
            return differentiated(self._loss(batch, truth, "train"), batch["image"]), statistics

    def scalars(self) -> dict[str, Any]:
        now = {"alpha": self.scale * self.alpha, "beta": self.scale * self.beta}
        return super().scalars() | now


def _dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return the inner product [B] of tensors [B, ...]."""
    return tf.reduce_sum(a * b, axis=list(range(1, len(a.shape))))
