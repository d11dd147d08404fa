"""LLR: local linearity regularisation (Qin et al., 2019, arXiv:1907.02610)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust._compat import layers_of
from tfrobust.attacks import PGD
from tfrobust.attacks.gradient import GradientAttack, differentiated
from tfrobust.errors import choose, number, require
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.methods.batch_norm import SharedStatistics
from tfrobust.serialization import serializable


@serializable
class Llr(RobustModel):
    """l(x) + alpha * g(x') + beta * |delta . grad l(x)|, where l = CE(f(.), y) and delta = x' - x.

    g(x') = |l(x') - l(x) - delta . grad l(x)| is the distance of l at x' from its tangent plane at
    x. The attack chooses x' to maximise g (the authors ascend with Adam). The paper calls alpha
    lambda, and beta mu. The authors' code has alpha 2 and beta 0.6 at twice the learning rate, and
    decays only the kernels (l2_on="kernels").

    As in the authors' code, BatchNorm normalises x and x' by the statistics of the batch of x, in
    the attack too, and its averages move once, by these statistics. So `craft` is always "frozen".
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
        self.alpha, self.beta = number("alpha", alpha, at_least=0), number("beta", beta, at_least=0)
        super().__init__(network, craft=choose("craft", craft, ("frozen",)), **kwargs)
        random_start = getattr(self.attack, "start", None) != "none"
        expected = "a random one (the gradient is zero at the image itself)"
        require(random_start, "attack.start", expected, "none")

    def adversary(self, batch: Batch) -> tf.Tensor:
        assert isinstance(self.attack, GradientAttack)
        x, label = batch["image"], batch["label"]
        loss = self._loss(batch, label, "eval")
        with self.substituted({}):  # crafting moves no averages
            (clean_loss, _, slope), statistics = self._at_image(batch, label)

            def gap(x_adv: tf.Tensor) -> tf.Tensor:
                with statistics.used():
                    adv_loss, _ = loss(x_adv)
                return tf.abs(adv_loss - clean_loss - _dot(x_adv - x, slope))

            return self.attack.maximise(
                gap, x, threat=self.threat_now, seed=self.seed_for("attack")
            )

    def robust_loss(self, batch: Batch) -> Batch:
        x, x_adv, truth = batch["image"], batch["adv"], self.truth(batch)
        (clean_loss, clean_right, slope), statistics = self._at_image(batch, truth)
        with statistics.used() as scope:
            adv_loss, adv_right = self._loss(batch, truth, "eval")(x_adv)
        layer = layers_of(self.network)[-1]  # a functional model itself takes no losses
        # Copies, as the layers of the losses would count the same tensors in an outer scope too.
        layer.add_loss([tf.identity(penalty) for penalty in scope.losses])
        statistics.move_averages()
        rise = _dot(x_adv - x, slope)
        gap = tf.abs(adv_loss - clean_loss - rise)
        return {
            "loss": clean_loss + self.scale * (self.alpha * gap + self.beta * tf.abs(rise)),
            "linearity_gap": gap,
            "accuracy": clean_right,
            "robust_accuracy": adv_right,
        }

    def _loss(self, batch: Batch, truth: tf.Tensor, mode: str) -> Any:
        """Return the function from images to their losses [B] and whether they are right [B].

        The loss is the cross entropy with the truth, which is labels or targets.
        """
        logits_fn, label = self.logits_fn(batch, mode), batch["label"]

        def loss(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = logits_fn(images)
            return losses.cross_entropy(logits, truth), losses.correct(logits, label)

        return loss

    def _at_image(self, batch: Batch, truth: tf.Tensor) -> tuple[Any, SharedStatistics]:
        """Return (the loss at x, whether x is right, the gradient) and the batch statistics."""
        with SharedStatistics(self.network) as statistics:
            return differentiated(self._loss(batch, truth, "train"), batch["image"]), statistics

    def scalars(self) -> dict[str, Any]:
        coefficients = {"alpha": self.scale * self.alpha, "beta": self.scale * self.beta}
        return super().scalars() | coefficients


def _dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return the inner product [B] of tensors [B, ...]."""
    return tf.reduce_sum(a * b, axis=list(range(1, len(a.shape))))
