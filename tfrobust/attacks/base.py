"""The base class of attacks, and the outcome of one."""

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
    """Adversarial images and their cost.

    Attributes:
        images: [B, H, W, C], inside the threat set.
        success: bool [B], true where the image is misclassified.
        queries, gradients: int32 [B], the forward and backward passes spent on each example.
    """

    images: tf.Tensor
    success: tf.Tensor
    queries: tf.Tensor
    gradients: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Attack(Configurable):
    """A search for adversarial images. Its fields are its hyper-parameters; it has no state.

    The attack says how to search and the threat says where. So one attack serves every eps: in
    training with a growing eps or one eps per example, and in evaluation.
    """

    @property
    def title(self) -> str:
        """A short name for tables, such as "PGD-20"."""
        raise NotImplementedError

    def settings(self, threat: Threat) -> dict[str, Any]:
        """Return the attack's name and every hyper-parameter, as a result must state them."""
        from tfrobust.attacks import registered_name  # the registry needs this class first

        return {"name": registered_name(self), **dataclasses.asdict(self)}

    @property
    def files(self) -> list[Path]:
        """The files that the attack reads, such as a surrogate. Raises UserError if absent."""
        return []

    def check(self, threat: Threat, image_shape: tuple[int, ...] | None = None) -> None:
        """Raise a UserError if the attack does not work under a threat.

        A step size that exceeds every distance within the box is refused too.

        Args:
            threat: The threat.
            image_shape: (H, W, C), on which L2 and L1 distances depend. Without it, only steps
                under Linf are checked.
        """
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
        """Return this attack adapted to a number of classes, such as with fewer targets.

        Raises UserError if it cannot run on so few classes.
        """
        return self

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        """Search for adversarial images.

        Args:
            logits_fn: Images [B, H, W, C] in the box -> logits [B, C], for any B.
            x: Clean images [B, H, W, C].
            y: Labels, int [B].
            threat: The set to search in.
            seed: Two integers [2]. The same seed gives the same images.

        Returns:
            The images with their success and cost.
        """
        raise NotImplementedError

    def __call__(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> tf.Tensor:
        """Return the images of `run` alone, [B, H, W, C], as training needs them."""
        return self.run(logits_fn, x, y, threat=threat, seed=seed).images
