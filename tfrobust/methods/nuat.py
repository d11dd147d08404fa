"""NuAT: nuclear-norm adversarial training (Sriramanan et al., 2021, NeurIPS).

https://proceedings.neurips.cc/paper/2021/hash/62889e73828c756c961c5a6d6c01a463-Abstract.html
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks.gradient import input_gradient
from tfrobust.errors import number, require_at_least
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.serialization import serializable

ZERO = 1e-6  # singular values below this share of the largest have no direction


@serializable
class Nuat(RobustModel):
    """CE(f(x), y) + c * ||f(X) - f(X')||_* / B, the nuclear norm of the logits of B images.

    x' is one step of eps from noise: project(x + n + eps * steepest(grad at x + n)), where n is a
    vertex of the ball of noise_scale * eps (Linf: a random sign for each pixel, Bernoulli noise).
    The step ascends the cross entropy; in every second training step it ascends the complete loss,
    whose f(x) uses batch statistics. c grows from 0 to `weight` over `warmup_epochs`, by epochs.

    The norm couples the images of a batch. It is taken over `group` consecutive images, 64 as in
    the authors' batches, and each image's loss has the mean of its group. The last group may be
    smaller. So the loss does not depend on the number of devices if `group` divides the number of
    images of a device. Images of weight 0 do not count.

    The gradient of the norm is U V^T of the singular value decomposition, without the directions
    whose singular value is 0. The authors (github.com/val-iisc/NuAT) craft with moving averages
    (craft="eval").
    """

    default_attack = None
    example = {"warmup_epochs": 0}
    needs = ("steps_per_epoch",)
    reports = ("nuclear",)

    def __init__(
        self,
        network: keras.Model,
        *,
        weight: float = 4.5,
        warmup_epochs: int = 90,
        noise_scale: float = 0.5,
        group: int = 64,
        **kwargs: Any,
    ):
        self.weight, self.warmup_epochs = number("weight", weight, at_least=0), warmup_epochs
        self.noise_scale, self.group = number("noise_scale", noise_scale, at_least=0), group
        super().__init__(network, **kwargs)
        require_at_least(0, warmup_epochs=warmup_epochs)
        require_at_least(1, group=group)

    @property
    def coefficient(self) -> tf.Tensor:
        """The weight of the nuclear norm in this epoch."""
        if not self.warmup_epochs:
            return self.scale * self.weight
        share = tf.minimum(tf.cast(self.epoch, tf.float32) / self.warmup_epochs, 1.0)
        return self.scale * self.weight * share

    def perturb(self, batch: Batch) -> Batch:
        x, label, threat = batch["image"], batch["label"], self.threat_now
        logits_fn, clean = self.logits_fn(batch, self.craft), self.logits_fn(batch, "train")(x)
        signs = threat.steepest(noise.normal(tf.shape(x), self.seed_for("attack")))
        start = tf.clip_by_value(x + self.noise_scale * threat.eps * signs, *threat.box)
        is_second = tf.cast(tf.convert_to_tensor(self.step) % self.steps_per_epoch % 2, tf.float32)

        def objective(images: tf.Tensor) -> tf.Tensor:
            logits = logits_fn(images)
            nuclear = self.nuclear(batch, clean - logits)
            return losses.cross_entropy(logits, label) + is_second * self.coefficient * nuclear

        step = threat.eps * threat.steepest(input_gradient(objective, start))
        return {"adv": threat.project(start + step, x)}

    def robust_loss(self, batch: Batch) -> Batch:
        logits_fn, label = self.logits_fn(batch, "train"), batch["label"]
        adv, clean = logits_fn(batch["adv"]), logits_fn(batch["image"])
        nuclear = self.nuclear(batch, clean - adv)
        return {
            "loss": losses.cross_entropy(clean, self.truth(batch)) + self.coefficient * nuclear,
            "nuclear": nuclear,
            "accuracy": losses.correct(clean, label),
            "robust_accuracy": losses.correct(adv, label),
        }

    def nuclear(self, batch: Batch, difference: tf.Tensor) -> tf.Tensor:
        """Return, for each image, the mean nuclear norm of its group's differences of logits."""
        weight = batch.get("weight", tf.ones_like(difference[:, 0]))
        return mean_nuclear_norm(difference, weight > 0, self.group)

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"weight": self.coefficient}


def mean_nuclear_norm(rows: tf.Tensor, counted: tf.Tensor, group: int) -> tf.Tensor:
    """Return, for each row, the nuclear norm of its group divided by the number of rows in it.

    Args:
        rows: The rows [B, C], of which consecutive ones form groups.
        counted: Whether each row counts, bool [B]. The others are left out of their group.
        group: The number of rows in a group. The last group may have fewer.

    Returns:
        Values [B], equal within a group.
    """
    size, counted = tf.shape(rows)[0], tf.cast(counted, rows.dtype)[:, None]
    padding = [[0, -size % group], [0, 0]]  # rows of zeros do not change the norm
    matrices = tf.reshape(tf.pad(counted * rows, padding), [-1, group, rows.shape[-1]])
    counts = tf.reduce_sum(tf.reshape(tf.pad(counted, padding), [-1, group]), axis=1)
    return tf.repeat(tf.math.divide_no_nan(nuclear_norm(matrices), counts), group)[:size]


@tf.custom_gradient
def nuclear_norm(matrices: tf.Tensor) -> Any:
    """Return the sum of the singular values of matrices [..., R, C], with the gradient U V^T.

    They come from the eigenvalues of the smaller Gram matrix, in float64, because squares have half
    the digits. XLA takes 25 times as long for the singular value decomposition itself.
    """
    wide = matrices.shape[-2] < matrices.shape[-1]
    exact = tf.cast(matrices, tf.float64)
    tall = tf.linalg.matrix_transpose(exact) if wide else exact
    squares, axes = tf.linalg.eigh(tf.matmul(tall, tall, transpose_a=True))
    values = tf.sqrt(tf.maximum(squares, 0.0))
    directed = values > ZERO * tf.reduce_max(values, axis=-1, keepdims=True)
    inverse = tf.where(directed, 1.0 / tf.where(directed, values, 1.0), 0.0)
    polar = tf.matmul(tall, tf.matmul(axes * inverse[..., None, :], axes, transpose_b=True))
    polar = tf.cast(tf.linalg.matrix_transpose(polar) if wide else polar, matrices.dtype)
    norms = tf.cast(tf.reduce_sum(values, axis=-1), matrices.dtype)
    return norms, lambda upstream: upstream[..., None, None] * polar
