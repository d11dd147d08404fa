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

    An untargeted loss follows the wrong class that is nearest at each iterate. Here every wrong
    class has its turn, the most likely one at the clean image first. An example stops at its first
    misclassified iterate, a random start included, whatever the predicted class.

    Args:
        steps, step_size: Those of each ascent, as in PGD. None is a step of 2.5 * eps / steps.
        restarts: The number of random starts for each class.
        top: The number of wrong classes, those of the largest clean logits; None is all of them. It
            is a UserError if the network has fewer.
    """

    steps: int = 50
    step_size: Any = None
    restarts: int = 1
    top: int | None = None

    def __post_init__(self) -> None:
        if self.top is not None:
            require_at_least(1, top=self.top)
        object.__setattr__(self, "step_size", self._ascent(1).step_size)  # PGD's checks

    def _ascent(self, rivals: int) -> PGD:
        runs = self.restarts * rivals
        return PGD(steps=self.steps, step_size=self.step_size, restarts=runs, success="any")

    @property
    def title(self) -> str:
        words = [f"Multi-T {self.restarts}x{self.steps}"]
        words += [f"top {self.top}"] if self.top is not None else []
        words += [f"step {self.step_size:g}"] if isinstance(self.step_size, float) else []
        return " ".join(words)

    def settings(self, threat: Threat) -> dict[str, Any]:
        """Return the settings, with the loss, the start and the step size (image units) in use."""
        return super().settings(threat) | {
            "loss": "targeted_margin",
            "start": "uniform",
            "step_size": self._ascent(1).step(threat.eps),
        }

    def fitted(self, classes: int) -> MultiTargeted:
        """Itself, if there are `top` rivals."""
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
        # The first is the label: rows where it is not are broken, and never looked at.
        targets = tf.math.top_k(clean, rivals + 1).indices[:, 1:]

        def evaluate(x_adv: tf.Tensor, row: tf.Tensor, run: Any) -> tuple[tf.Tensor, tf.Tensor]:
            logits, label = logits_fn(x_adv), tf.gather(y, row)
            target = tf.gather(targets[:, run % rivals], row)
            towards, away = (tf.gather(logits, i, axis=-1, batch_dims=1) for i in (target, label))
            return towards - away, ~losses.correct(logits, label)

        broken = ~losses.correct(clean, y)
        end = self._ascent(rivals).search(evaluate, x, threat=threat, seed=seed, broken=broken)
        return end._replace(queries=end.queries + 1)
