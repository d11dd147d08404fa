"""GradAlign (Andriushchenko and Flammarion, 2020, arXiv:2007.02617)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses, norms
from tfrobust.attacks.gradient import input_gradient
from tfrobust.errors import number
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.serialization import serializable


@serializable
class GradAlign(RobustModel):
    """CE(f(x'), y) + weight * (1 - cos(grad CE at x, grad CE at x + eta)), eta uniform in the ball.

    x' is one step of step_scale * eps from x along the first gradient. The term is left out where
    either gradient is zero. As in the authors' code, the first gradient is a constant in the
    cosine, x + eta is not clipped to the box, and all three passes (at x, x' and x + eta) use batch
    statistics and move BatchNorm's averages (craft="train").
    """

    default_attack = None
    reports = ("alignment",)

    def __init__(
        self,
        network: keras.Model,
        *,
        weight: float = 0.2,
        step_scale: float = 1.0,
        craft: str = "train",
        **kwargs: Any,
    ):
        self.weight = number("weight", weight, at_least=0)
        self.step_scale = number("step_scale", step_scale, above=0)
        super().__init__(network, craft=craft, **kwargs)

    def perturb(self, batch: Batch) -> Batch:
        threat, x = self.threat_now, batch["image"]
        gradient = input_gradient(self._loss(batch), x)
        step = self.step_scale * threat.eps * threat.steepest(gradient)
        entries = {"adv": threat.project(x + step, x)}
        if self.weight:
            eta = threat.eps * threat.draw(x, self.seed_for("alignment"))
            entries |= {"gradient": gradient, "noisy": x + eta}
        return entries

    def robust_loss(self, batch: Batch) -> Batch:
        logits = self.logits_fn(batch, "train")(batch["adv"])
        terms = {
            "loss": losses.cross_entropy(logits, self.truth(batch)),
            "robust_accuracy": losses.correct(logits, batch["label"]),
        }
        if self.weight:
            clean = _unit(batch["gradient"])
            noisy = _unit(input_gradient(self._loss(batch), batch["noisy"]))
            lengths = tf.reduce_sum(clean * clean, axis=-1) * tf.reduce_sum(noisy * noisy, axis=-1)
            terms["alignment"] = tf.reduce_sum(clean * noisy, axis=-1)
            misalignment = tf.where(lengths > 0, 1.0 - terms["alignment"], 0.0)
            terms["loss"] += self.scale * self.weight * misalignment
        return terms

    def _loss(self, batch: Batch) -> Any:
        """Return the function from images to their cross entropy [B]."""
        logits_fn = self.logits_fn(batch, self.craft)
        return lambda x: losses.cross_entropy(logits_fn(x), batch["label"])

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"weight": self.scale * self.weight}


def _unit(gradient: tf.Tensor) -> tf.Tensor:
    """Return gradients [B, ...] as unit vectors [B, D]; a zero gradient stays zero."""
    flat = tf.reshape(gradient, [tf.shape(gradient)[0], -1])
    # The entries are divided by the largest, a constant: squares of small ones would underflow.
    largest = tf.stop_gradient(norms.norm(flat, "linf"))
    flat = tf.math.divide_no_nan(flat, largest[:, None])
    return tf.math.l2_normalize(flat, axis=-1, epsilon=1e-24)  # differentiable at zero too
