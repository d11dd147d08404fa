"""The base class of attacks, and the outcome of an attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from tfrobust import gate
from tfrobust.errors import UserError, require
from tfrobust.serialization import Configurable
from tfrobust.threat import Threat

ROUNDING = 1e-6  # the relative rounding of a step that is as long as the box is wide
LogitsFn = Callable[[tf.Tensor], tf.Tensor]


class Outcome(NamedTuple):
    """Adversarial images and their cost.

    Attributes:
        images: The images [B, H, W, C], inside the threat set.
        success: Whether each image is misclassified, bool [B].
        queries, gradients: The forward and the backward passes for each example, int32 [B].
    """

    images: tf.Tensor
    success: tf.Tensor
    queries: tf.Tensor
    gradients: tf.Tensor


def check_one_eps(threat: Threat) -> None:
    """Raise a UserError if a threat has an eps for each example."""
    shape = tuple(threat.eps.shape) if tf.is_tensor(threat.eps) else ()
    require(not shape, "threat.eps", "one number for all examples, of shape ()", shape)


@dataclasses.dataclass(frozen=True)
class Attack(Configurable):
    """A search for adversarial images. Its fields are its hyper-parameters; it has no state.

    The attack says how to search, and the threat says where. One attack therefore works with every
    eps: in evaluation, and in training with a growing eps or an eps for each example. (APGD, Square
    and RayS need one eps for all.)

    Attributes:
        needs_gradients: Whether the attack follows gradients of the attacked network.
    """

    needs_gradients: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """A short name for tables, such as "PGD-20"."""
        raise NotImplementedError

    @property
    def differentiates(self) -> bool:
        """Whether each step follows the gradient of one loss by `differentiated`, as EOT needs."""
        return False

    def settings(self, threat: Threat) -> dict[str, Any]:
        """Return the attack's name and all its hyper-parameters, for the record of a result."""
        from tfrobust.attacks import registered_name  # not above, as the registry imports this file

        return {"name": registered_name(self), **dataclasses.asdict(self)}

    @property
    def files(self) -> list[Path]:
        """The files that the attack reads. Raises UserError if one is missing."""
        return []

    def check(self, threat: Threat, image_shape: tuple[int, ...] | None = None) -> None:
        """Raise a UserError if the attack does not work under a threat.

        A step size that exceeds every distance within the box is refused too.

        Args:
            threat: The threat.
            image_shape: (H, W, C), on which L2 and L1 distances and factors of features depend.
                Without it, only steps under Linf without factors are checked.
        """
        step, longest = getattr(self, "step_size", None), threat.width(image_shape)
        if isinstance(step, float) and longest is not None and step > longest * (1 + ROUNDING):
            low, high = threat.box
            hint = f" (did you mean {step * (high - low):g}/255?)" if step <= 255 else ""
            raise UserError(
                f"step_size: expected a step within the box [{low:g}, {high:g}], received "
                f"{step:g}{hint}"
            )

    def check_network(self, logits_fn: LogitsFn, images: np.ndarray) -> None:
        """Raise a UserError if the attack cannot run on a network.

        Args:
            logits_fn: The network, as in `run`.
            images: A few clean images [n, H, W, C].
        """

    def fitted(self, classes: int) -> Attack:
        """Return this attack adapted to a number of classes, for instance with fewer targets.

        Raises UserError if the attack needs more classes.
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
            threat: The set in which to search.
            seed: Two integers, int [2]. The same seed gives the same images.

        Returns:
            The images with their success and cost.
        """
        raise NotImplementedError

    def outcome(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        """Return the outcome of `run`. Raises a UserError if what it returns is none."""
        outcome = self.run(logits_fn, x, y, threat=threat, seed=seed)
        where, expected = f"{type(self).__name__}.run", f"an Outcome{Outcome._fields}"
        require(isinstance(outcome, Outcome), where, expected, type(outcome).__name__)
        return outcome

    def images(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> tf.Tensor:
        """Return only the images of `run`, [B, H, W, C], with no pass that they do not need."""
        return self.outcome(logits_fn, x, y, threat=threat, seed=seed).images

    def __call__(
        self, logits_fn: LogitsFn, x: Any, y: Any, *, threat: Threat, seed: Any
    ) -> tf.Tensor:
        """Check the arguments, and return the adversarial images of `run`, float32 [B, H, W, C].

        Keras layers within the network are in inference mode, unless the network says otherwise.
        Within a tf.function, where no value is known, nothing is checked.

        Args:
            logits_fn: As in `run`.
            x: Clean images [B, H, W, C] in the box, an array or tensor of floats of any width.
            y: Labels [B], class numbers of any integer type.
            threat, seed: As in `run`.

        Raises:
            UserError: If an argument is not as described, or the attack does not work under the
                threat.
        """
        if not tf.executing_eagerly():
            return self.images(logits_fn, x, y, threat=threat, seed=seed)
        require(isinstance(threat, Threat), "threat", "a Threat", threat)
        images = gate.check_images(x, "x", threat.box, layout="channels_last")
        if tf.is_tensor(threat.eps):
            threat = threat.at(tf.cast(threat.eps, tf.float32))
        else:
            gate.check_threat(threat, images.shape[1:])
        self.check(threat, images.shape[1:])
        classes = gate.check_network(logits_fn, images[:1], threat.box).shape[1]
        labels = gate.check_labels(y, len(images), classes)
        pair = np.shape(seed) == (2,) and np.asarray(seed).dtype.kind in "iu"
        require(pair, "seed", "two integers, such as (0, 1)", seed)
        attack, network = self.fitted(classes), gate.inference(logits_fn)
        attack.check_network(network, images[:1])
        x, y = tf.constant(images), tf.constant(labels)
        return attack.images(network, x, y, threat=threat, seed=seed)
