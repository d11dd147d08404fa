"""The threat model: the set of perturbed images from which an adversary chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrobust import noise, norms
from tfrobust.errors import choose, number, require
from tfrobust.serialization import Configurable, serializable

L1_MARGIN = 1e-6  # share of the radius that is left free, as rounding adds up over the pixels


@serializable
@dataclasses.dataclass(frozen=True)
class Threat(Configurable):
    """The set of all images x' in the box with ||x' - x||_p <= eps.

    Args:
        norm: "linf", "l2" or "l1".
        eps: The radius in image units, a number or a fraction such as "8/255". A tensor may be a
            scalar, or of shape [B] with one radius per example (see `at`).
        box: The range of valid pixels, (low, high).

    Raises:
        UserError: An argument is not as described.
    """

    norm: str = "linf"
    eps: Any = 0.0
    box: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        choose("norm", self.norm, norms.NORMS)
        if not tf.is_tensor(self.eps):
            object.__setattr__(self, "eps", number("eps", self.eps))
            require(self.eps >= 0, "eps", "a number >= 0", self.eps)
        object.__setattr__(self, "box", tuple(float(b) for b in self.box))
        require(len(self.box) == 2 and self.box[0] < self.box[1], "box", "(low, high)", self.box)

    def at(self, eps: Any) -> Threat:
        """Return this threat with another eps: a number, a scalar tensor or one of shape [B]."""
        return dataclasses.replace(self, eps=eps)

    def project(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Return the images moved into the threat set.

        For Linf and L2, x_adv is projected onto the ball, then onto the box. The second step only
        brings coordinates nearer to x, so the result lies in both. For L1, the result is the point
        of the intersection of ball and box that is nearest to x_adv (Croce and Hein, 2021).

        Args:
            x_adv: The images to move, [B, ...].
            x: The clean images, [B, ...], inside the box.

        Returns:
            Images of the same shape.
        """
        delta, (low, high) = x_adv - x, self.box
        if self.norm == "l1":
            room = tf.where(delta > 0, high - x, x - low)
            moved = norms.project_l1(delta, (1 - L1_MARGIN) * self.eps, room)
            # The sums are rounded towards x. Rounded to the nearest float, some coordinates would
            # grow again, and many of these together would leave the ball.
            near = tf.clip_by_value(x + moved, low, high)
            return tf.where(tf.abs(near - x) > tf.abs(moved), tf.math.nextafter(near, x), near)
        moved = norms.project(delta, self.eps, self.norm)
        return tf.clip_by_value(x + moved, low, high)

    def random_start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draw an image uniformly from the ball around each x, clipped to the box."""
        draw = noise.uniform_in_ball(tf.shape(x), seed, self.norm)
        draw = tf.ensure_shape(draw, x.shape)
        return tf.clip_by_value(x + norms.per_example(self.eps, x) * draw, *self.box)

    def steepest(self, gradient: tf.Tensor) -> tf.Tensor:
        """Return the unit direction in which a linear function with this gradient grows fastest."""
        return norms.steepest(gradient, self.norm)

    def distance(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Return ||x_adv - x||_p of each example, [B]."""
        return norms.norm(x_adv - x, self.norm)


def threats_of(threat: Threat | Sequence[Threat], where: str = "threat") -> tuple[Threat, ...]:
    """Return the threats of an argument that is one threat or a list of several.

    A list stands for the union of its threats: the adversary chooses the norm too.

    Raises:
        UserError: The list is empty, or has something else, a norm twice, or different boxes.
    """
    threats = (threat,) if isinstance(threat, Threat) else threat
    expected = "a tfrobust.Threat or a list of them"
    require(isinstance(threats, Sequence) and threats, where, expected, threat)
    for each in threats:
        require(isinstance(each, Threat), where, expected, each)
    norms_of = [each.norm for each in threats]
    require(len({*norms_of}) == len(threats), where, "threats of different norms", norms_of)
    boxes = [each.box for each in threats]
    require(len({*boxes}) == 1, where, "threats of one box", boxes)
    return tuple(threats)
