"""FGSM with a random start: one gradient step (Wong et al., 2020, arXiv:2001.03994)."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfrobust.attacks.gradient import GradientAttack
from tfrobust.errors import number
from tfrobust.serialization import serializable


@serializable
@dataclasses.dataclass(frozen=True)
class FGSM(GradientAttack):
    """One step of `step_scale` * eps from a random start, as in the training of the ATLAS paper.

    Args:
        step_scale: The step size in units of eps. The default 1.25 is that of ATLAS, appendix B.1.
            A step of 1 with start="none" is the FGSM of Goodfellow et al. (2015).
        loss: The loss to maximise: "cross_entropy", "kl" (divergence from the clean prediction) or
            "margin". None is cross entropy, or in training the loss that the method maximises.
        start: "uniform" in the ball, "normal" (0.001 * N(0, 1), as TRADES), or "none".
    """

    step_scale: float = 1.25

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "step_scale", number("step_scale", self.step_scale, above=0))

    @property
    def title(self) -> str:
        words = ["FGSM", *self._loss_word]
        words += [f"step {self.step_scale:g} eps"] if self.step_scale != 1.25 else []
        return " ".join([*words, *self._start_word])

    @property
    def schedule(self) -> tuple[int, int, bool]:
        return 1, 1, False

    def step(self, eps: Any) -> Any:
        return self.step_scale * eps
