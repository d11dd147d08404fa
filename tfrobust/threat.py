"""The threat model: the set of perturbed images from which an adversary chooses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust import noise, norms
from tfrobust.errors import UserError, choose, number, require
from tfrobust.serialization import Configurable, serializable

L1_MARGIN = 1e-6  # share of the radius that is left free, as rounding adds up over the pixels


@serializable
@dataclasses.dataclass(frozen=True)
class Threat(Configurable):
    """The set of all images x' in the box with ||x' - x||_p <= eps.

    With `per_feature` factors w it is {x + w z : ||z||_p <= eps}: under Linf, feature j moves by at
    most w_j eps. A distance is then ||(x' - x) / w||_p, which is infinite if a feature of factor 0
    moves.

    Args:
        norm: "linf", "l2" or "l1".
        eps: The radius in image units, a number or a fraction such as "8/255". A tensor may be a
            scalar, or of shape [B] with one radius per example (see `at`).
        box: The range of valid pixels, (low, high). Pipelines take [0, 1] alone.
        per_feature: The factors on eps, numbers >= 0 that broadcast to one input; 0 is a feature
            that cannot change. Or a mapping from numbers of features, which are places on the last
            axis, to their factors; the others have factor 1. None is 1 for all.

    Raises:
        UserError: An argument is not as described.
    """

    norm: str = "linf"
    eps: Any = 0.0
    box: tuple[float, float] = (0.0, 1.0)
    per_feature: Any = None

    def __post_init__(self) -> None:
        choose("norm", self.norm, norms.NORMS)
        if not tf.is_tensor(self.eps):
            expected = "a number (per_feature takes a factor for each channel or feature)"
            require(np.ndim(self.eps) == 0, "eps", expected, self.eps)
            object.__setattr__(self, "eps", number("eps", self.eps, at_least=0))
        object.__setattr__(self, "box", _checked_box(self.box))
        if self.per_feature is not None:
            object.__setattr__(self, "per_feature", _checked_factors(self.per_feature))

    def at(self, eps: Any) -> Threat:
        """Return this threat with another eps: a number, a scalar tensor or one of shape [B]."""
        return dataclasses.replace(self, eps=eps)

    def factors(self, shape: Sequence[int]) -> np.ndarray | None:
        """Return the factor on eps of each feature of an input of this shape; None if all are 1.

        Raises UserError if `per_feature` does not fit the shape.
        """
        if self.per_feature is None:
            return None
        shape = tuple(shape)
        if isinstance(self.per_feature, Mapping):
            last = max(self.per_feature)
            require(last < shape[-1], "per_feature", f"features 0 to {shape[-1] - 1}", last)
            factors = np.ones(shape[-1], np.float32)
            factors[list(self.per_feature)] = list(self.per_feature.values())
        else:
            factors = np.array(self.per_feature, np.float32)
        require(factors.any(), "per_feature", "at least one number above 0", self.per_feature)
        try:
            return np.broadcast_to(factors, shape)
        except ValueError:
            raise UserError(
                f"per_feature: expected numbers that broadcast to inputs {shape}, received "
                f"{factors.shape}"
            ) from None

    def reshaped(self, shape: Sequence[int], to: Sequence[int]) -> Threat:
        """Return the same threat for inputs of one shape that are reshaped to another."""
        factors = self.factors(shape)
        if factors is None:
            return self
        return dataclasses.replace(self, per_feature=factors.reshape(tuple(to)))

    def width(self, shape: Sequence[int] | None) -> float | None:
        """Return (high - low) * D^(1/p) / max(per_feature) for inputs of D features.

        With a larger eps the feature of the largest factor could leave the box. Without a shape the
        result is None if it depends on one.
        """
        if shape is None and (self.norm != "linf" or self.per_feature is not None):
            return None
        size = math.prod(shape or ())
        lengths = {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}
        factors = None if shape is None else self.factors(shape)
        largest = 1.0 if factors is None else float(factors.max())
        return (self.box[1] - self.box[0]) * lengths[self.norm] / largest

    def in_ball(self, delta: tf.Tensor) -> tf.Tensor:
        """Return the z [B, ...] with delta = per_feature * z; it is 0 where the factor is 0."""
        factors = self.factors(delta.shape[1:])
        return delta if factors is None else tf.math.divide_no_nan(delta, _like(factors, delta))

    def from_ball(self, z: tf.Tensor) -> tf.Tensor:
        """Return per_feature * z [B, ...]. It also turns a gradient at x into the one at z."""
        factors = self.factors(z.shape[1:])
        return z if factors is None else _like(factors, z) * z

    def mutable(self, z: tf.Tensor) -> tf.Tensor:
        """Return z [B, ...] with 0 at the features that cannot change."""
        return self.in_ball(self.from_ball(z))

    def kept(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Return x_adv with the features of x that cannot change, which rounding may have moved."""
        factors = self.factors(x.shape[1:])
        return x_adv if factors is None else tf.where(factors > 0, x_adv, x)

    def reach(self, x: tf.Tensor) -> Any:
        """Return how far each feature of x moves under Linf, in a shape that broadcasts with x."""
        factors, eps = self.factors(x.shape[1:]), self.eps
        return eps if factors is None else norms.per_example(eps, x) * _like(factors, x)

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
            room = self.in_ball(tf.where(delta > 0, high - x, x - low))
            radius = (1 - L1_MARGIN) * self.eps
            moved = self.from_ball(norms.project_l1(self.in_ball(delta), radius, room))
            # The sums are rounded towards x. Rounded to the nearest float, some coordinates would
            # grow again, and many of these together would leave the ball.
            near = tf.clip_by_value(x + moved, low, high)
            return tf.where(tf.abs(near - x) > tf.abs(moved), tf.math.nextafter(near, x), near)
        return tf.clip_by_value(x + self.shortened(delta), low, high)

    def shortened(self, delta: tf.Tensor) -> tf.Tensor:
        """Return perturbations [B, ...] projected onto the ball, whatever the box is."""
        return self.from_ball(norms.project(self.in_ball(delta), self.eps, self.norm))

    def draw(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draw perturbations uniformly from the ball of radius 1, in the shape of x [B, ...]."""
        shape = tf.shape(x)
        factors = self.factors(x.shape[1:])
        can_change = None if factors is None else _like(factors > 0, x)
        z = noise.uniform_in_ball(shape, seed, self.norm, can_change)
        return self.from_ball(tf.ensure_shape(z, x.shape))

    def random_start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draw an image uniformly from the ball around each x, clipped to the box."""
        return tf.clip_by_value(x + norms.per_example(self.eps, x) * self.draw(x, seed), *self.box)

    def steepest(self, gradient: tf.Tensor) -> tf.Tensor:
        """Return the unit direction in which a linear function with this gradient grows fastest."""
        return self.from_ball(norms.steepest(self.from_ball(gradient), self.norm))

    def distance(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Return ||(x_adv - x) / per_feature||_p of each example, [B]."""
        delta = tf.convert_to_tensor(x_adv - x)
        distance = norms.norm(self.in_ball(delta), self.norm)
        factors = self.factors(delta.shape[1:])
        if factors is None:
            return distance
        axes = list(range(1, len(delta.shape)))
        is_moved = tf.reduce_any((delta != 0) & tf.constant(factors == 0), axis=axes)
        return tf.where(is_moved, tf.constant(np.inf, distance.dtype), distance)


def threats_of(threat: Threat | Sequence[Threat], where: str = "threat") -> tuple[Threat, ...]:
    """Return the threats of an argument that is one threat or a list of several.

    A list stands for the union of its threats: the adversary chooses the norm too.

    Raises:
        UserError: The list is empty, or has something else, a norm twice, or different boxes.
    """
    threats = (threat,) if isinstance(threat, Threat) else threat
    expected = "a tfrobust.Threat or a list of them"
    require(isinstance(threats, Sequence) and threats, where, expected, threat)
    require(all(isinstance(each, Threat) for each in threats), where, expected, threat)
    norms_of = [each.norm for each in threats]
    require(len({*norms_of}) == len(threats), where, "threats of different norms", norms_of)
    boxes = [each.box for each in threats]
    require(len({*boxes}) == 1, where, "threats of one box", boxes)
    return tuple(threats)


def _like(factors: np.ndarray, x: tf.Tensor) -> tf.Tensor:
    return tf.constant(factors, x.dtype)


def _checked_box(value: Any) -> tuple[float, float]:
    """Return a box as two floats. Raises UserError if it is not one (low, high) for all pixels."""
    try:
        low, high = (float(end) for end in value)
        fits = -math.inf < low < high < math.inf
    except (TypeError, ValueError):
        fits = False
    require(fits, "box", "two numbers (low, high) for all channels", value)
    return low, high


def _checked_factors(value: Any) -> Any:
    """Return factors as nested tuples of floats, or as a mapping from ints to floats.

    Raises UserError if one is negative or no number, or all are 0.
    """
    name = "per_feature"
    if isinstance(value, Mapping):
        keys = [key for key in value if not str(key).isdecimal()]
        expected = "numbers of features from 0, each with its factor"
        require(value and not keys, name, expected, keys[0] if keys else value)
        factors = {int(key): number(f"{name}.{key}", value[key]) for key in value}
        least = min(factors.values())
    else:
        factors = _nested(value.tolist() if hasattr(value, "tolist") else value)
        try:
            array = np.array(factors, float)
        except ValueError:  # rows of several lengths
            array = np.zeros(0)
        require(array.size and array.ndim, name, "an array of numbers", value)
        require(array.max() > 0, name, "at least one number above 0", value)
        least = float(array.min())
    require(least >= 0, name, "numbers >= 0", least)
    return factors


def _nested(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_nested(item) for item in value)
    return number("per_feature", value)
