"""Multi-targeted attack (Gowal et al., 2019, arXiv:1910.09338)."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks.base import Attack, LogitsFn, Outcome
from tfrobust.attacks.pgd import PGD
from tfrobust.errors import require, require_at_least
from tfrobust.serialization import serializable
from tfrobust.threat import Threat


@serializable
@dataclasses.dataclass(frozen=True)
class MultiTargeted(Attack):
    """Projected steepest ascent on z_i - z_y, for every wrong class i in turn.

    An untargeted loss follows the wrong class that is nearest at each iterate. This attack takes
    every wrong class in turn, from the most likely one at the clean image on. An example stops at
    its first misclassified iterate, even a random start, whatever the predicted class.

    Args:
        steps: The number of steps of each ascent.
        step_size: The step in image units, as in PGD; None is 2.5 * eps / steps.
        restarts: The number of random starts for each class.
        top: The number of wrong classes to take, those of the largest clean logits; None is all. A
            network with fewer wrong classes raises a UserError.
    """

    steps: int = 50
    step_size: Any = None
    restarts: int = 1
    top: int | None = None

    def __post_init__(self) -> None:
        require_at_least(1, restarts=self.restarts)
        if self.top is not None:
            require_at_least(1, top=self.top)
        object.__setattr__(self, "step_size", self._ascent(1).step_size)  # PGD's checks

    def _ascent(self, rivals: int) -> PGD:
        """Return the attack whose restarts take a number of wrong classes in turn."""
        restarts = self.restarts * rivals
        return PGD(steps=self.steps, step_size=self.step_size, restarts=restarts, success="any")

    @property
    def title(self) -> str:
        words = [f"Multi-T {self.restarts}x{self.steps}"]
        words += [f"top {self.top}"] if self.top is not None else []
        words += [f"step {self.step_size:g}"] if isinstance(self.step_size, float) else []
        return " ".join(words)

    @property
    def differentiates(self) -> bool:
        return True

    def settings(self, threat: Threat) -> dict[str, Any]:
        """Return the settings, with the loss, the start and the step size in image units."""
        return super().settings(threat) | {
            "loss": "targeted_margin",
            "start": "uniform",
            "step_size": self._ascent(1).step(threat.eps),
        }

    def fitted(self, classes: int) -> MultiTargeted:
        """Return this attack; raise a UserError if a class has fewer than `top` rivals."""
        expected = f"at most the {classes - 1} rivals of a class"
        require(self.top is None or self.top < classes, "top", expected, self.top)
        return self

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        x, y = tf.convert_to_tensor(x), tf.cast(y, tf.int32)
        clean = tf.stop_gradient(logits_fn(x))
        classes = clean.shape[-1]
        rivals = self.fitted(classes).top or classes - 1
        # The first index is the label, except for misclassified images, which are not attacked.
        targets = tf.math.top_k(clean, rivals + 1).indices[:, 1:]

        def evaluate(x_adv: tf.Tensor, row: tf.Tensor, restart: Any) -> tuple[tf.Tensor, tf.Tensor]:
            logits, label = logits_fn(x_adv), tf.gather(y, row)
            target = tf.gather(targets[:, restart % rivals], row)
            z_i = tf.gather(logits, target, axis=-1, batch_dims=1)
            z_y = tf.gather(logits, label, axis=-1, batch_dims=1)
            return z_i - z_y, ~losses.correct(logits, label)

        broken = ~losses.correct(clean, y)
        end = self._ascent(rivals).search(evaluate, x, threat=threat, seed=seed, broken=broken)
        return end._replace(queries=end.queries + 1)
