"""FAT: friendly adversarial training (Zhang et al., 2020, arXiv:2002.11242)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks import PGD
from tfrobust.attacks.gradient import GradientAttack, differentiated
from tfrobust.errors import number, require
from tfrobust.methods.adv import Adv
from tfrobust.methods.base import Batch
from tfrobust.norms import per_example, rows
from tfrobust.serialization import serializable


@serializable
class Fat(Adv):
    """CE(f(x'), y), where the attack on x ends tau steps after the first misclassification.

    `patience` is the tau of each phase of the training, and `patience_epochs` are the epochs,
    counted from 0, in which the second and later phases begin. Each step adds jitter * N(0, 1), as
    in the authors' code. The loop ends early when the attacks on all examples of the batch have
    ended. `clean_weight` mixes in the clean loss, as in `adv`.
    """

    default_attack = PGD(steps=10)
    attack_kind = GradientAttack
    crafting_loss = None
    needs = ("steps_per_epoch",)

    def __init__(
        self,
        network: keras.Model,
        *,
        patience: list[int] | None = None,
        patience_epochs: list[int] | None = None,
        jitter: float = 0.001,
        **kwargs: Any,
    ):
        self.patience = [0, 1, 2] if patience is None else patience
        self.patience_epochs = [50, 90] if patience_epochs is None else patience_epochs
        self.jitter = number("jitter", jitter, at_least=0)
        super().__init__(network, **kwargs)
        require(min(self.patience, default=-1) >= 0, "patience", "numbers >= 0", self.patience)
        expected = f"{len(self.patience) - 1} rising epochs, for {len(self.patience)} patiences"
        fits = len(self.patience_epochs) == len(self.patience) - 1
        rising = sorted(set(self.patience_epochs)) == self.patience_epochs
        require(fits and rising, "patience_epochs", expected, self.patience_epochs)
        assert isinstance(self.attack, GradientAttack)
        self.attack.check_single_path()

    @property
    def patience_now(self) -> tf.Tensor:
        """tau in the current epoch, int32."""
        phase = tf.reduce_sum(tf.cast(self.epoch >= self.patience_epochs, tf.int32))
        return tf.gather(self.patience, phase)

    def adversary(self, batch: Batch) -> tf.Tensor:
        attack, threat, seed = self.attack, self.threat_now, self.seed_for("attack")
        assert isinstance(attack, GradientAttack)
        x, label, logits_fn = batch["image"], batch["label"], self.logits_fn(batch, self.craft)
        step = per_example(attack.step(threat.eps), x)

        def evaluate(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = logits_fn(images)
            return losses.cross_entropy(logits, label), ~losses.correct(logits, label)

        def body(i: tf.Tensor, x_adv: tf.Tensor, steps_left: tf.Tensor) -> Any:
            _, wrong, gradient = differentiated(evaluate, x_adv)
            steps_left -= tf.cast(wrong, tf.int32)
            moved = x_adv + step * threat.steepest(gradient)
            if self.jitter:
                moved += self.jitter * noise.normal(tf.shape(x), noise.fold(seed, i + 1))
            moved = tf.ensure_shape(threat.project(moved, x), x.shape)
            return i + 1, tf.where(rows(steps_left >= 0, x), moved, x_adv), steps_left

        def goes_on(i: tf.Tensor, x_adv: tf.Tensor, steps_left: tf.Tensor) -> tf.Tensor:
            return (i < attack.schedule[0]) & tf.reduce_any(steps_left >= 0)

        start = attack.begin(x, threat, noise.fold(seed, 0))
        state = (tf.constant(0), start, tf.fill(tf.shape(label), self.patience_now))
        return tf.while_loop(goes_on, body, state, parallel_iterations=1)[1]

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"patience": self.patience_now}
