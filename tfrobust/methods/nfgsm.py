"""N-FGSM (de Jorge et al., 2022, arXiv:2202.01181)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks.gradient import input_gradient
from tfrobust.errors import number
from tfrobust.methods.adv import Adv
from tfrobust.methods.base import Batch
from tfrobust.serialization import serializable


@serializable
class Nfgsm(Adv):
    """CE(f(x'), y), where x' is one step of steepest ascent from a noisy image.

    x' = x + eta + step_scale * eps * sign(grad CE at x + eta), and eta is uniform in the ball of
    radius noise_scale * eps. x + eta and x' are clipped to the box but not projected onto the ball,
    so x' may be as far away as (noise_scale + step_scale) * eps. The noise keeps one-step training
    from catastrophic overfitting. `clean_weight` mixes in the clean loss, as in `adv`. As in the
    authors' code, both passes use batch statistics and move BatchNorm's averages (craft="train").
    """

    default_attack = None

    def __init__(
        self,
        network: keras.Model,
        *,
        noise_scale: float = 2.0,
        step_scale: float = 1.0,
        craft: str = "train",
        **kwargs: Any,
    ):
        self.noise_scale = number("noise_scale", noise_scale, at_least=0)
        self.step_scale = number("step_scale", step_scale, above=0)
        super().__init__(network, craft=craft, **kwargs)

    def adversary(self, batch: Batch) -> tf.Tensor:
        threat, label = self.threat_now, batch["label"]
        logits_fn = self.logits_fn(batch, self.craft)
        wider = threat.at(self.noise_scale * threat.eps)
        start = wider.random_start(batch["image"], self.seed_for("attack"))
        gradient = input_gradient(lambda x: losses.cross_entropy(logits_fn(x), label), start)
        moved = start + self.step_scale * threat.eps * threat.steepest(gradient)
        return tf.clip_by_value(moved, *threat.box)
