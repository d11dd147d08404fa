"""What every attack is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfrobust.registry import Configurable
from tfrobust.threat import Threat

LogitsFn = Callable[[tf.Tensor], tf.Tensor]


class Outcome(NamedTuple):
    """Adversarial images and what they cost.

    images: [B, H, W, C], inside the threat's set. success: bool [B], misclassified there.
    queries, gradients: int32 [B], the forward and the backward passes spent on each example.
    """

    images: tf.Tensor
    success: tf.Tensor
    queries: tf.Tensor
    gradients: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Attack(Configurable):
    """A search for adversarial images; its fields are its hyper-parameters, it has no state.

    The attack says how to search, the threat where, so one attack serves every eps: training with
    a growing eps, with one eps per example, and evaluation.
    """

    @property
    def title(self) -> str:
        """A short name for tables, such as "PGD-20"."""
        raise NotImplementedError

    def settings(self, threat: Threat) -> dict[str, Any]:
        """What a number made with this attack must state: its name and every hyper-parameter."""
        return {"name": type(self).__name__.lower(), **dataclasses.asdict(self)}

    def check(self, threat: Threat) -> None:
        """Raise a UserError where it does not work under this threat."""

    def fitted(self, classes: int) -> Attack:
        """This attack on a network of so many classes: with another loss or fewer targets where
        its own do not fit. Raises UserError where it cannot run."""
        return self

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        """Adversarial images with their record.

        logits_fn: x [B, H, W, C] in the box -> logits [B, C], for any B. y: int labels [B]. seed:
        int [2]; the same seed gives the same images.
        """
        raise NotImplementedError

    def __call__(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> tf.Tensor:
        """The images alone [B, H, W, C]: what training needs."""
        return self.run(logits_fn, x, y, threat=threat, seed=seed).images
