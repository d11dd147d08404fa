"""The threat model: which perturbed images an adversary may choose."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfrobust import noise, norms
from tfrobust.errors import choose, number, require
from tfrobust.serialization import Configurable, serializable

L1_MARGIN = 1e-6  # of the radius: rounding adds up over the pixels


@serializable
@dataclasses.dataclass(frozen=True)
class Threat(Configurable):
    """All x' with ||x' - x||_p <= eps inside the box.

    norm: "linf", "l2" or "l1". eps: radius in image units, a number or a fraction such as "8/255";
    a scalar tensor or one of shape [B] gives every example its own (see `at`). box: the range of
    valid pixels.
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
        """The same threat with another eps: a number, a scalar tensor or one of shape [B]."""
        return dataclasses.replace(self, eps=eps)

    def project(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """x_adv moved into the ball around x, then into the box; x must lie in the box.

        The second step only brings coordinates nearer to x, so the result is inside both. For L1
        ball and box count at once: the nearest point in both (Croce and Hein, 2021).
        """
        delta, (low, high) = x_adv - x, self.box
        if self.norm == "l1":
            room = tf.where(delta > 0, high - x, x - low)
            moved = norms.project_l1(delta, (1 - L1_MARGIN) * self.eps, room)
            # Towards x: shorter by less than half a float, many coordinates would round back.
            near = tf.clip_by_value(x + moved, low, high)
            return tf.where(tf.abs(near - x) > tf.abs(moved), tf.math.nextafter(near, x), near)
        moved = norms.project(delta, self.eps, self.norm)
        return tf.clip_by_value(x + moved, low, high)

    def random_start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Uniform in the ball around x, clipped to the box."""
        draw = noise.uniform_in_ball(tf.shape(x), seed, self.norm)
        draw = tf.ensure_shape(draw, x.shape)
        return tf.clip_by_value(x + norms.per_example(self.eps, x) * draw, *self.box)

    def steepest(self, gradient: tf.Tensor) -> tf.Tensor:
        """The direction of unit norm in which a linear function with this gradient grows most."""
        return norms.steepest(gradient, self.norm)

    def distance(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """||x_adv - x||_p [B]."""
        return norms.norm(x_adv - x, self.norm)
