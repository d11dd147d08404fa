"""FGSM-PGI: FGSM from a prior-guided initialisation (Jia et al., 2022, arXiv:2207.08859)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses, noise, norms
from tfrobust.attacks.gradient import input_gradient
from tfrobust.errors import number, require, require_at_least
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.methods.table import Table
from tfrobust.norms import per_example
from tfrobust.serialization import serializable


@serializable
class FgsmPgi(RobustModel):
    """CE(f(x'), y) + weight * mean_c (f_c(x') - f_c(x + p))^2, FGSM-MEP of the paper.

    p is the image's prior perturbation, carried from epoch to epoch. With g = grad CE at x + p,

        x' = project(x + p + eps * steepest(g)),
        m  <- decay * m + g / ||g||_1,
        p  <- project(x + p + eps * steepest(m)) - x.

    Every `reset_epochs` epochs m is set to 0 and p to a random vertex of the ball (Linf: a random
    sign for each pixel, times eps). x + p is not clipped to the box, because p may come from
    another crop of the image. By default g uses batch statistics (`craft`).

    The authors' code (github.com/jiaxiaojunQAQ/FGSM-PGI) divides g by its norm over the batch. Here
    it is divided by its norm over the image, which does not depend on the number of devices. Their
    label smoothing gives the label a probability of 0.6, which is `label_smoothing` 4/9 for ten
    classes. Their g is the gradient of the smoothed cross entropy, ours that of the plain one.

    Two tables of num_examples images in float32 hold p and m: 1.2 GB for CIFAR-10, as much again
    while they are written, and as much in each checkpoint.
    """

    default_attack = None
    one_threat = True
    requires = ("index",)
    mixed_labels = False  # a perturbation belongs to one image
    needs = ("num_examples", "steps_per_epoch")
    reports = ("pairing",)

    def __init__(
        self,
        network: keras.Model,
        *,
        weight: float = 10.0,
        decay: float = 0.3,
        reset_epochs: int = 40,
        craft: str = "frozen",
        **kwargs: Any,
    ):
        self.weight = number("weight", weight, at_least=0)
        self.decay = number("decay", decay, at_least=0)
        self.reset_epochs = reset_epochs
        super().__init__(network, craft=craft, **kwargs)
        require_at_least(1, reset_epochs=reset_epochs)
        assert self.num_examples is not None  # of `needs`
        shape: Any = self.signature.image_shape
        expected = "one with images of one size (FgsmPgi keeps a perturbation of each image)"
        require(None not in shape, "network", expected, shape)
        self.priors = Table(self.num_examples, shape)
        self.momenta = Table(self.num_examples, shape)

    def perturb(self, batch: Batch) -> Batch:
        x, label, threat = batch["image"], batch["label"], self.threat_now
        logits_fn = self.logits_fn(batch, self.craft)
        signs = threat.steepest(noise.normal(tf.shape(x), self.seed_for("prior")))
        is_reset = self.epoch % self.reset_epochs == 0
        prior = tf.where(is_reset, threat.eps * signs, self.priors.read(batch["index"]))
        momentum = tf.where(is_reset, 0.0, self.momenta.read(batch["index"]))
        gradient = input_gradient(lambda z: losses.cross_entropy(logits_fn(z), label), x + prior)
        length = per_example(norms.norm(gradient, "l1"), gradient)
        momentum = self.decay * momentum + tf.math.divide_no_nan(gradient, length)

        def moved(direction: tf.Tensor) -> tf.Tensor:
            return threat.project(x + prior + threat.eps * threat.steepest(direction), x)

        return {
            "adv": moved(gradient),
            "noisy": x + prior,
            "prior": moved(momentum) - x,
            "momentum": momentum,
        }

    def robust_loss(self, batch: Batch) -> Batch:
        logits_fn, label = self.logits_fn(batch, "train"), batch["label"]
        noisy_logits, logits = logits_fn(batch["noisy"]), logits_fn(batch["adv"])
        pairing = tf.reduce_mean((logits - noisy_logits) ** 2, axis=-1)
        cross_entropy = losses.cross_entropy(logits, self.truth(batch))
        return {
            "loss": cross_entropy + self.scale * self.weight * pairing,
            "pairing": pairing,
            "robust_accuracy": losses.correct(logits, label),
        }

    def after_update(self, batch: Batch) -> None:
        self.priors.write(batch["index"], batch["prior"])
        self.momenta.write(batch["index"], batch["momentum"])

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"weight": self.scale * self.weight}
