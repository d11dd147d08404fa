"""MMA: max-margin adversarial training (Ding et al., 2020, arXiv:1812.02637)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import PGD
from tfrobust.attacks.gradient import GradientAttack
from tfrobust.errors import number, require
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.methods.table import Table
from tfrobust.norms import per_example
from tfrobust.serialization import serializable

HALVINGS = 10
BEYOND = 1.05  # the search for the boundary ends at this multiple of max_margin
CLEAN = 1 / 3  # the weight of the clean loss


@serializable
class Mma(RobustModel):
    """CE(f(x), y) / 3 + 2 / 3 * CE(f(b), y), where b is the decision boundary.

    Where x is classified correctly, b = x + delta with the shortest delta found that changes the
    class; the term is left out if delta is longer than `max_margin`. Where x is misclassified,
    b = x. The direction of delta comes from an attack on the soft margin, within the example's last
    margin; its length from a bisection. Margins are in image units and are kept between
    `min_margin` and `max_margin`. The threat's eps plays no part in training.
    """

    example = {"max_margin": 0.1}

    default_attack = PGD(steps=10)
    attack_kind = GradientAttack
    crafting_loss = None
    requires = ("index",)
    needs = ("num_examples",)
    reports = ("margin",)

    def __init__(
        self,
        network: keras.Model,
        *,
        max_margin: float | str,
        min_margin: float | str = 0.005,
        **kwargs: Any,
    ):
        self.max_margin = number("max_margin", max_margin)
        self.min_margin = number("min_margin", min_margin)
        super().__init__(network, **kwargs)
        require(self.max_margin > 0, "max_margin", "a number > 0", max_margin)
        expected = f"a number above 0, at most the max_margin {self.max_margin:g}"
        require(0 < self.min_margin <= self.max_margin, "min_margin", expected, min_margin)
        assert self.num_examples is not None  # of `needs`
        self.margins = Table(self.num_examples, fill=self.min_margin)

    def perturb(self, batch: Batch) -> Batch:
        assert isinstance(self.attack, GradientAttack)
        x, label, logits_fn = batch["image"], batch["label"], self.logits_fn(batch, self.craft)
        x_adv = self.attack.maximise(
            lambda images: losses.soft_margin(logits_fn(images), label),
            x,
            threat=self.threat.at(self.margins.read(batch["index"])),
            seed=self.seed_for("attack"),
        )
        length = per_example(self.threat.distance(x_adv, x), x)
        direction = tf.math.divide_no_nan(x_adv - x, length)

        def at(length: tf.Tensor) -> tf.Tensor:
            moved = x + per_example(length, x) * direction
            return tf.clip_by_value(moved, *self.threat.box)

        def halve(i: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> Any:
            middle = 0.5 * (low + high)
            right = losses.correct(logits_fn(at(middle)), label)
            return i + 1, tf.where(right, middle, low), tf.where(right, high, middle)

        low = tf.zeros_like(length, tf.float32)
        low = tf.reshape(low, [-1])
        state = (tf.constant(0), low, low + BEYOND * self.max_margin)
        margin = tf.while_loop(lambda i, *_: i < HALVINGS, halve, state, parallel_iterations=1)[2]
        return {"adv": at(margin), "margin": margin}

    def robust_loss(self, batch: Batch) -> Batch:
        label, logits_fn = batch["label"], self.logits_fn(batch, "train")
        clean, beyond = logits_fn(batch["image"]), logits_fn(batch["adv"])
        right, here = losses.correct(clean, label), losses.cross_entropy(clean, label)
        near = tf.cast(batch["margin"] < self.max_margin, tf.float32)
        boundary = tf.where(right, near * losses.cross_entropy(beyond, label), here)
        return {
            "loss": CLEAN * here + (1.0 - CLEAN) * boundary,
            "accuracy": right,
            "margin": batch["margin"] * tf.cast(right, tf.float32),
        }

    def after_update(self, batch: Batch) -> None:
        kept = tf.where(batch["accuracy"], batch["margin"], self.min_margin)
        kept = tf.clip_by_value(kept, self.min_margin, self.max_margin)
        self.margins.write(batch["index"], kept)

    def tables(self) -> dict[str, Table]:
        return {"margin": self.margins}

    def scalars(self) -> dict[str, Any]:
        return {}
