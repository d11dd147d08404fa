"""What every attack is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from tfrobust.errors import UserError
from tfrobust.serialization import Configurable
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

    @property
    def files(self) -> list[Path]:
        """The files that it reads, as a surrogate or saved images. Raises UserError where there are
        none to read."""
        return []

    def check(self, threat: Threat, image_shape: tuple[int, ...] | None = None) -> None:
        """Raise a UserError where it does not work under this threat, or its step is longer than
        any way inside the box. image_shape: [H, W, C], which L2 and L1 lengths depend on; without
        it only steps in Linf are measured."""
        step = getattr(self, "step_size", None)
        if not isinstance(step, float) or (image_shape is None and threat.norm != "linf"):
            return
        (low, high), pixels = threat.box, math.prod(image_shape or ())
        longest = (high - low) * {"linf": 1.0, "l2": math.sqrt(pixels), "l1": pixels}[threat.norm]
        if step > longest:
            hint = f" (did you mean {step * (high - low):g}/255?)" if step <= 255 else ""
            raise UserError(
                f"step_size: expected a step within the box [{low:g}, {high:g}], received "
                f"{step:g}{hint}"
            )

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
