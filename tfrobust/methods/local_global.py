"""The framework of the ATLAS paper, section 4: a local term at a centre and a global term."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfrobust import losses
from tfrobust.attacks import FGSM, Attack
from tfrobust.attacks.gradient import GradientAttack
from tfrobust.jacobian import squared_jacobian
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.registry import require


class LocalGlobal(RobustModel):
    """CE(f(c), y) + alpha * ||J(c)||_F^2 + beta * KL(p(c) || p(o)), means over the batch.

    The centre c is the image x or its adversary x', and o is the other of the two. alpha and beta
    grow with eps (paper, section 5.3). A term whose coefficient is 0 costs nothing, and where
    neither centre nor global term needs an adversary none is made. ||J||_F^2 is estimated by one
    random projection (`tfrobust.jacobian`), without the factor 1/2 of Hoffman's package.
    """

    adversarial_centre = False
    crafting_loss = "cross_entropy"
    alpha = 0.0
    beta = 0.0

    def __init__(self, network: keras.Model, *, attack: Attack | None = None, **kwargs: Any):
        super().__init__(network, attack=attack, **kwargs)
        require(self.alpha >= 0, "alpha", "a number >= 0", self.alpha)
        require(self.beta >= 0, "beta", "a number >= 0", self.beta)
        if not (self.adversarial_centre or self.beta):
            require(
                attack is None,
                "attack",
                f"none ({type(self).__name__} makes no adversaries)",
                attack,
            )
            return
        self.attack = attack or FGSM()
        # The method's own crafting loss unless the attack names one.
        if isinstance(self.attack, GradientAttack) and self.attack.loss is None:
            self.attack = dataclasses.replace(self.attack, loss=self.crafting_loss)

    def perturb(self, batch: Batch) -> Batch:
        entries: Batch = {}
        if self.attack is not None:
            entries["adv"] = self.adversary(batch)
        if self.alpha:
            entries["projection"] = self.projections(batch, self.seed_for("projection"))
        return entries

    def robust_loss(self, batch: Batch) -> Batch:
        label, logits_fn = batch["label"], self.logits_fn(batch, "train")
        centre, other = batch["image"], batch.get("adv")
        at_centre, at_other = "accuracy", "robust_accuracy"
        if self.adversarial_centre:
            centre, other, at_centre, at_other = other, centre, at_other, at_centre

        terms: Batch = {}
        if self.alpha:
            logits, terms["jacobian"] = squared_jacobian(logits_fn, centre, batch["projection"])
        else:
            logits = logits_fn(centre)
        terms["loss"] = losses.cross_entropy(logits, label)
        terms[at_centre] = losses.correct(logits, label)
        if self.alpha:
            terms["loss"] += self.scale * self.alpha * terms["jacobian"]
        if self.beta:
            logits_other = logits_fn(other)
            terms["kl"] = losses.kl(logits_other, reference=logits)
            terms[at_other] = losses.correct(logits_other, label)
            terms["loss"] += self.scale * self.beta * terms["kl"]
        return terms

    def scalars(self) -> dict[str, Any]:
        now = {n: self.scale * getattr(self, n) for n in ("alpha", "beta") if getattr(self, n)}
        return ({} if self.attack is None else super().scalars()) | now
