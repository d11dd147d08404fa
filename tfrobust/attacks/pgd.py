"""Projected gradient descent (Madry et al., 2018, arXiv:1706.06083)."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfrobust.attacks.gradient import GradientAttack
from tfrobust.errors import choose, number, require_at_least
from tfrobust.serialization import serializable

DEFAULT_SCALE = 2.5  # with steps of 2.5 eps / steps the attack can cross the ball (Madry et al.)


@serializable
@dataclasses.dataclass(frozen=True)
class PGD(GradientAttack):
    """Projected gradient descent: `steps` projected steps from each of `restarts` random starts.

    Args:
        steps: The number of steps.
        step_size: The step in image units: a number, a fraction such as "2/255", or a tensor
            (scalar or [B]). None is 2.5 * eps / steps.
        restarts: The number of starts. An example that none of them breaks gets the last iterate of
            highest loss.
        success: "last" returns the last iterate; "any" stops an example at its first misclassified
            iterate or start, so that a success on the way is not lost.
        loss: The loss to maximise: "cross_entropy", "kl" (divergence from the clean prediction) or
            "margin". None is cross entropy, or in training the loss that the method maximises.
        start: "uniform" in the ball, "normal" (0.001 * N(0, 1), as TRADES), or "none".
    """

    steps: int = 10
    step_size: Any = None
    restarts: int = 1
    success: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, steps=self.steps, restarts=self.restarts)
        choose("success", self.success, ("last", "any"))
        if self.step_size is not None and not tf.is_tensor(self.step_size):
            object.__setattr__(self, "step_size", number("step_size", self.step_size, above=0))

    @property
    def title(self) -> str:
        words = [f"PGD-{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")]
        words += self._loss_word
        words += [f"step {self.step_size:g}"] if isinstance(self.step_size, float) else []
        words += self._start_word
        words += ["any step"] if self.success == "any" else []
        return " ".join(words)

    @property
    def schedule(self) -> tuple[int, int, bool]:
        return self.steps, self.restarts, self.success == "any"

    def step(self, eps: Any) -> Any:
        return DEFAULT_SCALE * eps / self.steps if self.step_size is None else self.step_size
