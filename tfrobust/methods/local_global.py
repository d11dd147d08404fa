"""The framework of the ATLAS paper (section 4): a local term at a centre, and a global term."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust import losses
from tfrobust.errors import number
from tfrobust.jacobian import squared_jacobian
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.methods.batch_norm import RepeatablePass


class LocalGlobal(RobustModel):
    """CE(f(c), y) + alpha * ||J(c)||_F^2 + beta * KL(p(c) || p(o)), averaged over the batch.

    The centre c is the image x or its adversary x', and o is the other of the two. alpha and beta
    grow with eps (paper, section 5.3). A term whose coefficient is 0 is not computed, and no
    adversary is crafted if neither the centre nor the global term needs it. ||J||_F^2 is estimated
    by one random projection (`tfrobust.jacobian`), without the factor 1/2 of Hoffman's package.

    BatchNorm's averages move by the statistics at c, then by those at o if a term needs o. With a
    clean centre they then move by those at x again, as in TRADES's code, which passes x twice.
    """

    adversarial_centre = False
    alpha = 0.0
    beta = 0.0
    clean_weight = 0.0  # w for (1 - w) CE(f(x'), y) + w CE(f(x), y), with an adversarial centre

    def __init__(self, network: keras.Model, **kwargs: Any):
        self.alpha = number("alpha", self.alpha, at_least=0)
        self.beta = number("beta", self.beta, at_least=0)
        if not (self.adversarial_centre or self.beta):
            self.default_attack = None
        super().__init__(network, **kwargs)

    def perturb(self, batch: Batch) -> Batch:
        entries: Batch = {}
        if self.adversarial_centre or self.beta:
            entries["adv"] = self.adversary(batch)
        if self.alpha:
            entries["projection"] = self.projections(batch, self.seed_for("projection"))
        return entries

    def robust_loss(self, batch: Batch) -> Batch:
        label, logits_fn = batch["label"], self.logits_fn(batch, "train")
        centre, other = batch["image"], batch.get("adv")
        centre_accuracy, other_accuracy = "accuracy", "robust_accuracy"
        if self.adversarial_centre:
            centre, other = other, centre
            centre_accuracy, other_accuracy = other_accuracy, centre_accuracy

        terms: Batch = {}
        with RepeatablePass(self.network) as centre_pass:
            if self.alpha:
                logits, terms["jacobian"] = squared_jacobian(
                    logits_fn, centre, batch["projection"], self.threat
                )
            else:
                logits = logits_fn(centre)
        terms["loss"] = losses.cross_entropy(logits, self.truth(batch))
        terms[centre_accuracy] = losses.correct(logits, label)
        if self.beta or self.clean_weight:
            logits_other = logits_fn(other)
            if not self.adversarial_centre:
                centre_pass.move_averages()  # a second time
            terms[other_accuracy] = losses.correct(logits_other, label)
        if self.clean_weight:
            terms["loss"] *= 1.0 - self.clean_weight
            loss_other = losses.cross_entropy(logits_other, self.truth(batch))
            terms["loss"] += self.clean_weight * loss_other
        if self.alpha:
            terms["loss"] += self.scale * self.alpha * terms["jacobian"]
        if self.beta:
            terms["kl"] = losses.kl(logits_other, reference=logits)
            terms["loss"] += self.scale * self.beta * terms["kl"]
        return terms

    def scalars(self) -> dict[str, Any]:
        values = super().scalars() if self.adversarial_centre or self.beta else {}
        for name in ("alpha", "beta"):
            if getattr(self, name):
                values[name] = self.scale * getattr(self, name)
        return values
