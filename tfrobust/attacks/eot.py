"""Expectation over transformation (Athalye et al., 2018, arXiv:1707.07397)."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfrobust.attacks.base import LogitsFn, Outcome
from tfrobust.attacks.gradient import averaged
from tfrobust.attacks.wrapper import Wrapper
from tfrobust.errors import require, require_at_least
from tfrobust.serialization import serializable
from tfrobust.threat import Threat


@serializable
@dataclasses.dataclass(frozen=True)
class EOT(Wrapper):
    """An attack whose gradients are means over draws of a network with random outputs.

    grad E[loss(f(x), y)] = E[grad loss(f(x), y)], with `samples` draws of f in each step. The
    attack sees the loss and the prediction of the last draw.

    Args:
        attack: The attack, an Attack, or its name and settings as in a config. It must follow the
            gradient of a loss, as FGSM, PGD, APGD, FAB-T and the multi-targeted attack do.
        samples: The number of draws for each gradient.
    """

    attack: Any
    samples: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "one that follows the gradient of a loss, such as pgd or apgd"
        require(self.attack.differentiates, "attack", expected, self.attack.title)
        require_at_least(1, samples=self.samples)

    @property
    def title(self) -> str:
        return f"{self.attack.title} EOT {self.samples}"

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        with averaged(self.samples):
            outcome = self.attack.outcome(logits_fn, x, y, threat=threat, seed=seed)
        # The attack counts one forward and one backward pass for each of its gradients.
        others = (self.samples - 1) * outcome.gradients
        queries, gradients = outcome.queries + others, outcome.gradients + others
        return outcome._replace(queries=queries, gradients=gradients)
