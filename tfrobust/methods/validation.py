"""The measurements of validation: accuracy, robust accuracy and the Jacobian."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks import FGSM, Attack
from tfrobust.jacobian import squared_jacobian
from tfrobust.methods.batch import Batch
from tfrobust.threat import Threat


def measured(model: Any, batch: Batch) -> Batch:
    """Return the values [B] of a batch that validation reports; see `RobustModel.test_step`.

    Under several threats an example is right if it is right under all of them, its loss is the
    greatest, and its Jacobian is that at the adversarial image of the first threat.
    """
    x, y, logits_fn = batch["image"], batch["label"], model.logits_fn(batch, "eval")

    def attacked(attack: Attack, threat: Threat, purpose: str) -> tf.Tensor:
        seed = noise.seed_for(model.seed, 0, purpose)
        return attack.images(logits_fn, x, y, threat=threat, seed=seed)

    def under(threat: Threat) -> Batch:
        robust = logits_fn(attacked(model.validation_attack, threat, "validation"))
        x_fgsm = attacked(FGSM(), threat, "validation fgsm")
        seed = noise.seed_for(model.seed, 0, "validation projection")
        projections = model.projections(batch, seed)
        fgsm, jacobian = squared_jacobian(logits_fn, x_fgsm, projections, threat)
        return {
            "loss": losses.cross_entropy(robust, y),
            "robust_accuracy": losses.correct(robust, y),
            "fgsm_accuracy": losses.correct(fgsm, y),
            "jacobian": jacobian,
        }

    terms, *others = map(under, model.threats)
    for other in others:
        terms["loss"] = tf.maximum(terms["loss"], other["loss"])
        for name in ("robust_accuracy", "fgsm_accuracy"):
            terms[name] &= other[name]
    return terms | {"accuracy": losses.correct(logits_fn(x), y)}
