"""IAAT: instance-adaptive adversarial training (Balaji et al., 2019, arXiv:1910.08051)."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import PGD
from tfrobust.errors import choose, number, require, require_at_least
from tfrobust.methods.adv import Adv
from tfrobust.methods.base import Batch
from tfrobust.methods.table import Table
from tfrobust.norms import rows
from tfrobust.serialization import serializable


@serializable
class Iaat(Adv):
    """CE(f(x'), y), where each training image has a radius eps_i of its own (Algorithm 1).

    For `warmup_epochs` eps_i is the threat's eps, or 0 where the clean image is misclassified.
    Then, before each step, it moves a fraction `smoothing` of the way to

        eps_i + gamma  where the attack at eps_i + gamma fails,
        eps_i          where only the attack at eps_i fails,
        eps_i - gamma  where both succeed,
        0              where the clean image is misclassified.

    This is rule "probe", Algorithm 2 as in the authors' code, without an upper bound. Rule "simple"
    is that of the paper's section 3 and needs no further attack: it adds gamma where the training
    attack fails, and subtracts gamma where it succeeds. A misclassified image is trained on as it
    is (misclassified="clean", Algorithm 1) or attacked at its eps_i ("adversarial", the authors'
    code).

    The attack's step size is 2 eps_i / steps, but at least `min_step`. gamma and min_step are in
    image units. `clean_weight` mixes in the clean loss, as in `adv`. All passes use batch
    statistics and move BatchNorm's averages, as in the authors' code (craft="train").
    """

    default_attack = PGD(steps=10)
    one_threat = True
    attack_kind = PGD
    requires = ("index",)
    mixed_labels = False  # a radius belongs to one image
    needs = ("num_examples", "steps_per_epoch")
    reports = ("radius",)

    def __init__(
        self,
        network: keras.Model,
        *,
        warmup_epochs: int = 10,
        gamma: float | str = 1.9 / 255,
        smoothing: float = 0.1,
        min_step: float | str = 2 / 255,
        rule: str = "probe",
        misclassified: str = "clean",
        craft: str = "train",
        **kwargs: Any,
    ):
        self.warmup_epochs = warmup_epochs
        self.smoothing = number("smoothing", smoothing, above=0, at_most=1)
        self.gamma = number("gamma", gamma, at_least=0)
        self.min_step = number("min_step", min_step, above=0)
        self.rule = choose("rule", rule, ("probe", "simple"))
        self.misclassified = choose("misclassified", misclassified, ("clean", "adversarial"))
        super().__init__(network, craft=craft, **kwargs)
        require_at_least(0, warmup_epochs=warmup_epochs)
        step_size = getattr(self.attack, "step_size", None)
        expected = "none (the method's step size grows with eps_i)"
        require(step_size is None, "attack.step_size", expected, step_size)
        assert self.num_examples is not None  # of `needs`
        self.radii = Table(self.num_examples)

    def perturb(self, batch: Batch) -> Batch:
        label, logits_fn = batch["label"], self.logits_fn(batch, self.craft)
        right = losses.correct(logits_fn(batch["image"]), label)
        last = self.radii.read(batch["index"])

        def probed() -> tf.Tensor:
            near = self._attacked(batch, last, "same")
            far = self._attacked(batch, last + self.gamma, "wider")
            near_fails = losses.correct(logits_fn(near), label)
            far_fails = losses.correct(logits_fn(far), label)
            change = tf.where(far_fails, self.gamma, tf.where(near_fails, 0.0, -self.gamma))
            target = tf.where(right, tf.maximum(last + change, 0.0), 0.0)
            return self.smoothing * target + (1.0 - self.smoothing) * last

        uniform = self.threat_now.eps * tf.cast(right, tf.float32)
        warms_up = self.epoch < self.warmup_epochs
        if self.rule == "probe":
            radius = tf.cond(warms_up, lambda: uniform, probed)
            adv = self._attacked(batch, radius, "attack")
        else:
            radius = tf.where(warms_up, uniform, last)
            adv = self._attacked(batch, radius, "attack")
            fails = losses.correct(logits_fn(adv), label)
            moved = tf.maximum(radius + tf.where(fails, self.gamma, -self.gamma), 0.0)
            radius = tf.where(warms_up, radius, moved)
        if self.misclassified == "clean":
            adv = tf.where(rows(right, adv), adv, batch["image"])
        return {"adv": adv, "radius": radius, "accuracy": right}

    def robust_loss(self, batch: Batch) -> Batch:
        entries = {name: batch[name] for name in ("radius", "accuracy")}
        return super().robust_loss(batch) | entries

    def after_update(self, batch: Batch) -> None:
        self.radii.write(batch["index"], batch["radius"])

    def tables(self) -> dict[str, Table]:
        return {"radius": self.radii}

    def _attacked(self, batch: Batch, eps: tf.Tensor, purpose: str) -> tf.Tensor:
        """Return adversarial images at radii eps [B]."""
        assert isinstance(self.attack, PGD)
        step = tf.maximum(eps / (0.5 * self.attack.steps), self.min_step)
        return dataclasses.replace(self.attack, step_size=step).images(
            self.logits_fn(batch, self.craft),
            batch["image"],
            batch["label"],
            threat=self.threat.at(eps),
            seed=self.seed_for(purpose),
        )
