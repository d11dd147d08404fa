"""MART: misclassification-aware adversarial training (Wang et al., 2020, ICLR)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks import PGD
from tfrobust.errors import number
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.serialization import serializable

MARGIN = 1e-4  # keeps the logarithm of 1 - p finite, as in the authors' code


@serializable
class Mart(RobustModel):
    """BCE(p(x'), y) + beta * KL(p(x) || p(x')) * (1 - p_y(x)).

    BCE is -log p_y - log(1 - max_{k != y} p_k): the cross entropy and a margin term. The divergence
    has the most weight where the network is unsure of the clean image. beta grows with eps.
    """

    example = {"beta": 1.0}
    mixed_labels = False  # the loss depends on the probability of the label
    default_attack = PGD(steps=10, start="normal")

    def __init__(self, network: keras.Model, *, beta: float = 5.0, **kwargs: Any):
        self.beta = number("beta", beta, at_least=0)
        super().__init__(network, **kwargs)

    def robust_loss(self, batch: Batch) -> Batch:
        label, logits_fn = batch["label"], self.logits_fn(batch, "train")
        clean, adversarial = logits_fn(batch["image"]), logits_fn(batch["adv"])
        # The probability of the most likely wrong class, max_{k != y} p_k.
        rival = tf.exp(losses.margin(adversarial, label) - losses.cross_entropy(adversarial, label))
        boosted = losses.cross_entropy(adversarial, self.truth(batch))
        boosted -= tf.math.log(1.0 + MARGIN - rival)
        divergence = losses.kl(adversarial, reference=clean)
        doubt = 1.0 - tf.exp(-losses.cross_entropy(clean, label))
        return {
            "loss": boosted + self.scale * self.beta * divergence * doubt,
            "kl": divergence,
            "accuracy": losses.correct(clean, label),
            "robust_accuracy": losses.correct(adversarial, label),
        }

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"beta": self.scale * self.beta}
