"""IKL (Cui et al., 2024, arXiv:2305.13948) and GKL (2025, arXiv:2503.08038): TRADES's KL split."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import PGD
from tfrobust.errors import number
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.serialization import serializable


@serializable
class Gkl(RobustModel):
    """CE(z, y) + alpha * CE(p(z), z') + beta / 4 * sum_jk w_j w_k ((z_j - z_k) - (z'_j - z'_k))^2.

    z and z' are the logits at x and x', and p(z) = softmax(z) is a constant. With alpha = beta = 1
    and w = p(z), the gradient of KL(p(z) || p(z')) in z is that of the last term, and its gradient
    in z' is that of the middle term. Here the last term has a gradient in z' too.

    w is a constant of the class: the weighted mean of softmax(z / temperature) over the examples of
    the class in the epoch before (1 / C in the first epoch), to the power gamma, scaled to sum to 1
    for each example (over the batch, in the authors' code). GKL has gamma 0.2 (CIFAR-10) or 0.4
    (CIFAR-100) and temperature 1, IKL has gamma 1 and temperature 4. As in the authors' code, x' is
    crafted on the KL divergence in five steps of eps / 2, alpha and beta do not grow with eps, and
    x' passes in training mode before x.
    """

    example = {"alpha": 0.01, "beta": 1.0}
    default_attack = PGD(steps=5, start="normal")
    crafting_loss = "kl"
    mixed_labels = False  # the weights w belong to one class
    needs = ("steps_per_epoch",)

    def __init__(
        self,
        network: keras.Model,
        *,
        alpha: float = 4.0,
        beta: float = 20.0,
        temperature: float = 1.0,
        gamma: float = 0.2,
        **kwargs: Any,
    ):
        self.alpha, self.beta = number("alpha", alpha, at_least=0), number("beta", beta, at_least=0)
        self.temperature = number("temperature", temperature, above=0)
        self.gamma = number("gamma", gamma, at_least=0)
        super().__init__(network, **kwargs)
        classes = self.signature.classes
        self.class_means = self._state((classes, classes), 1.0 / classes)
        self.sums = self._state((classes, classes), 0.0)
        self.counts = self._state((classes,), 0.0)

    def robust_loss(self, batch: Batch) -> Batch:
        label, logits_fn = batch["label"], self.logits_fn(batch, "train")
        adversarial, clean = logits_fn(batch["adv"]), logits_fn(batch["image"])
        weight = tf.gather(tf.convert_to_tensor(self.class_means), label) ** self.gamma
        weight /= tf.reduce_sum(weight, axis=-1, keepdims=True)
        # sum_jk w_j w_k (d_j - d_k)^2 is twice the variance of d under w, whose sum is 1.
        difference = clean - adversarial
        mean = tf.reduce_sum(weight * difference, axis=-1, keepdims=True)
        variance = tf.reduce_sum(weight * tf.square(difference - mean), axis=-1)
        target = tf.stop_gradient(tf.nn.softmax(clean))
        soft = tf.nn.softmax_cross_entropy_with_logits(target, adversarial)
        terms = self.alpha * soft + 0.5 * self.beta * variance
        return {
            "loss": losses.cross_entropy(clean, self.truth(batch)) + terms,
            "kl": losses.kl(adversarial, reference=clean),
            "accuracy": losses.correct(clean, label),
            "robust_accuracy": losses.correct(adversarial, label),
            "clean_logits": clean,
        }

    def after_update(self, batch: Batch) -> None:
        classes = self.counts.shape[0]
        label, soft = batch["label"], tf.nn.softmax(batch["clean_logits"] / self.temperature)
        weight = batch.get("weight", tf.ones_like(soft[:, 0]))
        replica_sums = [
            tf.math.unsorted_segment_sum(weight[:, None] * soft, label, classes),
            tf.math.unsorted_segment_sum(weight, label, classes),
        ]
        sums, counts = tf.distribute.get_replica_context().all_reduce("SUM", replica_sums)
        sums, counts = self.sums + sums, self.counts + counts
        divisor = tf.where(counts > 0, counts, 1.0)[:, None]
        means = tf.where(counts[:, None] > 0, sums / divisor, self.class_means)
        epoch_ends = (tf.convert_to_tensor(self.step) + 1) % self.steps_per_epoch == 0
        self.class_means.assign(tf.where(epoch_ends, means, self.class_means))
        self.sums.assign(tf.where(epoch_ends, 0.0, sums))
        self.counts.assign(tf.where(epoch_ends, 0.0, counts))

    def _state(self, shape: tuple[int, ...], fill: float) -> Any:
        """Add a weight to which all replicas assign the same values."""
        return self.add_weight(
            shape=shape,
            initializer=keras.initializers.Constant(fill),
            trainable=False,
            aggregation="only_first_replica",
        )
