"""MMA: max-margin adversarial training (Ding et al., 2020, arXiv:1812.02637)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import PGD
from tfrobust.attacks.gradient import GradientAttack
from tfrobust.errors import choose, number, require
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.methods.table import Table
from tfrobust.norms import per_example, rows
from tfrobust.serialization import serializable

BISECTIONS = 10
REACH = 1.05  # the search for the boundary ends at this multiple of max_margin
CLEAN_WEIGHT = 1 / 3
BOUNDARIES = {"soft_margin": losses.soft_margin, "margin": losses.margin}


@serializable
class Mma(RobustModel):
    """CE(f(x), y) / 3 + 2 / 3 * CE(f(b), y), where b is a point of the decision boundary.

    `boundary` names a function of the logits, which is 0 on the boundary and negative on the side
    of the label. "soft_margin" is log sum_{k != y} exp z_k - z_y, which is 0 where p_y = 1/2, as in
    the authors' code. "margin" is max_{k != y} z_k - z_y, which is 0 where the predicted class
    changes.

    Where x is on the side of the label, b is x + delta, and its term is left out if delta is not
    shorter than `max_margin`. Elsewhere b is x. The direction of delta comes from an attack on the
    soft margin, within the example's last margin. Its length comes from a bisection that begins at
    the last margin. Margins are in image units and at least `min_margin`. The threat's eps plays no
    part in training.

    As in the authors' code, the attack uses the moving averages of BatchNorm, and the bisection
    uses the mode `craft`. Their bisection comes after the clean pass, and BatchNorm sees only the
    images on the side of the label; here it sees the batch. They do not clip b to the box.
    """

    example = {"max_margin": 0.1}
    default_attack = PGD(steps=10)
    attack_kind = GradientAttack
    crafting_loss = None
    one_threat = True
    requires = ("index",)
    mixed_labels = False  # a margin belongs to one image
    needs = ("num_examples",)
    reports = ("margin",)

    def __init__(
        self,
        network: keras.Model,
        *,
        max_margin: float | str,
        min_margin: float | str = 0.005,
        boundary: str = "soft_margin",
        craft: str = "train",
        **kwargs: Any,
    ):
        self.max_margin = number("max_margin", max_margin, above=0)
        self.min_margin = number("min_margin", min_margin)
        self.boundary = choose("boundary", boundary, BOUNDARIES)
        super().__init__(network, craft=craft, **kwargs)
        expected = f"a number above 0, at most the max_margin {self.max_margin:g}"
        require(0 < self.min_margin <= self.max_margin, "min_margin", expected, min_margin)
        assert self.num_examples is not None  # of `needs`
        self.margins = Table(self.num_examples, fill=self.min_margin)

    def perturb(self, batch: Batch) -> Batch:
        assert isinstance(self.attack, GradientAttack)
        x, label, logits_fn = batch["image"], batch["label"], self.logits_fn(batch, "eval")
        last = self.margins.read(batch["index"])
        x_adv = self.attack.maximise(
            lambda images: losses.soft_margin(logits_fn(images), label),
            x,
            threat=self.threat.at(last),
            seed=self.seed_for("attack"),
        )
        length = per_example(self.threat.distance(x_adv, x), x)
        direction = tf.math.divide_no_nan(x_adv - x, length)

        def at(length: tf.Tensor) -> tf.Tensor:
            moved = x + per_example(length, x) * direction
            return tf.clip_by_value(moved, *self.threat.box)

        def bisect(i: tf.Tensor, low: tf.Tensor, high: tf.Tensor, margin: tf.Tensor) -> Any:
            inside = self._inside(self.logits_fn(batch, self.craft)(at(margin)), label)
            low, high = tf.where(inside, margin, low), tf.where(inside, high, margin)
            return i + 1, low, high, 0.5 * (low + high)

        state = (tf.constant(0), 0.0 * last, 0.0 * last + REACH * self.max_margin, last)
        end = tf.while_loop(lambda i, *_: i < BISECTIONS, bisect, state, parallel_iterations=1)
        margin = end[3]
        return {"adv": at(margin), "margin": margin}

    def _inside(self, logits: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Return which examples are on the side of the label, bool [B]."""
        return BOUNDARIES[self.boundary](logits, label) < 0

    def robust_loss(self, batch: Batch) -> Batch:
        label, x, logits_fn = batch["label"], batch["image"], self.logits_fn(batch, "train")
        clean, truth = logits_fn(x), self.truth(batch)
        inside = self._inside(clean, label)
        boundary = logits_fn(tf.where(rows(inside, x), batch["adv"], x))
        counts = ~inside | (batch["margin"] < self.max_margin)
        clean_loss = losses.cross_entropy(clean, truth)
        boundary_loss = tf.cast(counts, tf.float32) * losses.cross_entropy(boundary, truth)
        return {
            "loss": CLEAN_WEIGHT * clean_loss + (1.0 - CLEAN_WEIGHT) * boundary_loss,
            "accuracy": losses.correct(clean, label),
            "margin": batch["margin"] * tf.cast(inside, tf.float32),
        }

    def after_update(self, batch: Batch) -> None:
        self.margins.write(batch["index"], tf.maximum(batch["margin"], self.min_margin))

    def tables(self) -> dict[str, Table]:
        return {"margin": self.margins}

    def scalars(self) -> dict[str, Any]:
        return {}
