"""FAB, the fast adaptive boundary attack (Croce and Hein, 2020, arXiv:1907.02044), and FAB-T."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfrobust import losses, noise, norms
from tfrobust.attacks.base import Attack, LogitsFn, Outcome
from tfrobust.attacks.compaction import State, hunt, take_rows
from tfrobust.attacks.fab_projections import to_zero
from tfrobust.attacks.gradient import differentiated, pullback
from tfrobust.errors import number, require_at_least
from tfrobust.norms import rows
from tfrobust.serialization import serializable
from tfrobust.threat import Threat


@serializable
@dataclasses.dataclass(frozen=True)
class FAB(Attack):
    """A search for the nearest misclassified image along the boundaries between classes.

    At iterate x_k, the difference z_t - z_y between a class and the label is approximated by a
    linear function. d_k and d are the smallest steps within the box to the zeros of this function,
    from x_k and from the clean image x:

        x_{k+1} = (1 - a) (x_k + eta d_k) + a (x + eta d),
        a = min(||d_k|| / (||d_k|| + ||d||), alpha_max).

    After a misclassified x_{k+1}, called a find, the search goes on at x + beta (x_{k+1} - x). An
    example stops at its first find within eps. The nearest find of any other example is projected
    into the ball, where it may still be misclassified.

    Args:
        steps: The number of steps of each search.
        targets: For FAB-T, the number of target classes t, which are the most likely wrong classes
            at the clean image; if there are fewer, all of them. Each has `restarts` searches. None
            is FAB, which takes the class with the nearest boundary in every step, at one backward
            pass for each class.
        restarts: The number of searches. The first begins at x, the others in random directions at
            a distance of eps / 2 from x.
        alpha_max, eta, beta: The constants of the formula.
    """

    steps: int = 100
    targets: int | None = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, restarts=self.restarts)
        if self.targets is not None:
            require_at_least(1, targets=self.targets)
        alpha_max = number("alpha_max", self.alpha_max, at_least=0, at_most=1)
        object.__setattr__(self, "alpha_max", alpha_max)
        object.__setattr__(self, "eta", number("eta", self.eta, at_least=1))
        object.__setattr__(self, "beta", number("beta", self.beta, at_least=0, at_most=1))

    @property
    def title(self) -> str:
        words = ["FAB" if self.targets is None else "FAB-T"]
        words += [f"{self.steps} steps"] if self.steps != 100 else []
        words += [f"x{self.restarts}"] if self.restarts > 1 else []
        words += [f"{self.targets} targets"] if self.targets not in (None, 9) else []
        for name, usual in (("alpha_max", 0.1), ("eta", 1.05), ("beta", 0.9)):
            value = getattr(self, name)
            words += [f"{name} {value:g}"] if value != usual else []
        return " ".join(words)

    @property
    def differentiates(self) -> bool:
        return self.targets is not None

    def fitted(self, classes: int) -> FAB:
        """Return this attack with at most all wrong classes as targets."""
        targets = None if self.targets is None else min(self.targets, classes - 1)
        return dataclasses.replace(self, targets=targets)

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        state = self.search(logits_fn, x, y, threat=threat, seed=seed)
        missed = ~state["broken"]
        inside = threat.project(state["find"], state["x"])
        images = tf.where(rows(missed, inside), inside, state["find"])

        def judge(_: tf.Tensor, s: State) -> State:
            return s | {"broken": ~losses.correct(logits_fn(s["images"]), s["y"])}

        end = hunt(judge, {"images": images, "y": state["y"], "broken": state["broken"]}, 1)
        queries = 1 + 2 * state["steps"] + tf.cast(missed, tf.int32)
        return Outcome(tf.stop_gradient(images), end["broken"], queries, state["gradients"])

    def search(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> State:
        """Return the nearest "find" of each example, its "distance" [B], and its cost.

        Without a find these are the clean image and inf. A "broken" example has stopped at its
        first find within eps; with eps 0 no example stops.
        """
        x, y = tf.convert_to_tensor(x), tf.cast(y, tf.int32)
        logits = logits_fn(x)
        classes, wrong = logits.shape[-1], ~losses.correct(logits, y)
        targets = self.fitted(classes).targets or 1

        def tick(i: tf.Tensor, s: State) -> State:
            row, image, number = s["row"], s["x"], i // self.steps  # the number of the search

            def begin() -> tf.Tensor:
                return tf.gather(self._begin(x, threat, seed, number), row)

            iterate = tf.cond(tf.equal(i % self.steps, 0), begin, lambda: s["iterate"])
            if self.targets is None:
                value, slope = nearest_boundary(logits_fn, iterate, s["y"], threat)
            else:
                target = tf.gather(s["targets"], number // self.restarts, axis=1)
                value, slope = boundary(logits_fn, iterate, s["y"], target)
            moved = self._moved(iterate, image, value, slope, threat)
            wrong = ~losses.correct(logits_fn(moved), s["y"])
            distance = threat.distance(moved, image)
            nearer = wrong & (distance < s["distance"])
            return s | {
                "iterate": tf.where(rows(wrong, x), image + self.beta * (moved - image), moved),
                "find": tf.where(rows(nearer, x), moved, s["find"]),
                "distance": tf.where(nearer, distance, s["distance"]),
                "broken": nearer & (distance <= take_rows(threat.eps, row)),
                "steps": s["steps"] + 1,
                "gradients": s["gradients"] + (classes if self.targets is None else 1),
            }

        state = {
            "x": x,
            "y": y,
            "targets": tf.math.top_k(logits, targets + 1).indices[:, 1:],
            "iterate": x,
            "find": x,
            "distance": tf.where(wrong, 0.0, float("inf")),
            "broken": wrong,
            "steps": tf.zeros_like(y),
            "gradients": tf.zeros_like(y),
        }
        return hunt(tick, state, targets * self.restarts * self.steps)

    def _begin(self, x: tf.Tensor, threat: Threat, seed: Any, number: tf.Tensor) -> tf.Tensor:
        """Return the start of a search: the clean image, or a random image at eps / 2 from it."""
        if self.restarts == 1:
            return x

        def random() -> tf.Tensor:
            draw = noise.uniform if threat.norm == "linf" else noise.normal
            direction = tf.ensure_shape(draw(tf.shape(x), noise.fold(seed, number)), x.shape)
            direction = threat.mutable(direction)
            direction /= norms.per_example(norms.norm(direction, threat.norm), direction)
            start = x + 0.5 * norms.per_example(threat.eps, x) * threat.from_ball(direction)
            return tf.clip_by_value(start, *threat.box)

        return tf.cond(tf.equal(number % self.restarts, 0), lambda: x, random)

    def _moved(
        self, x_k: tf.Tensor, x: tf.Tensor, value: tf.Tensor, slope: tf.Tensor, threat: Threat
    ) -> tf.Tensor:
        """Return x_{k+1} by the linear function with this value [B] and slope at x_k."""
        # Values that are not finite give no step, as the iterates must stay images.
        value, slope = (tf.where(tf.math.is_finite(t), t, 0.0) for t in (value, slope))
        shape, features = tf.shape(x_k), x.shape[1:]
        size = features.num_elements()
        x_k, x, slope = (tf.reshape(t, [shape[0], size]) for t in (x_k, x, slope))
        threat = threat.reshaped(features, [size])
        value_at_x = value + tf.reduce_sum(slope * (x - x_k), axis=1)
        d_k = to_zero(x_k, slope, value, threat)
        d = to_zero(x, slope, value_at_x, threat)
        # The floor gives alpha a value if both steps are 0.
        length_k = tf.maximum(norms.norm(threat.in_ball(d_k), threat.norm), 1e-8)
        length = tf.maximum(norms.norm(threat.in_ball(d), threat.norm), 1e-8)
        alpha = tf.minimum(length_k / (length_k + length), self.alpha_max)[:, None]
        moved = (1 - alpha) * (x_k + self.eta * d_k)
        moved = threat.kept(moved + alpha * (x + self.eta * d), x)
        return tf.reshape(tf.clip_by_value(moved, *threat.box), shape)


def boundary(
    logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, target: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return z_t - z_y [B] and its gradient, shaped as x."""

    def difference(x: tf.Tensor) -> tuple[tf.Tensor, None]:
        logits = logits_fn(x)
        classes = logits.shape[-1]
        signs = tf.one_hot(target, classes) - tf.one_hot(y, classes)
        return tf.reduce_sum(signs * logits, axis=-1), None

    value, _, slope = differentiated(difference, x)
    return value, slope


def nearest_boundary(
    logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, threat: Threat
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return z_t - z_y [B] and its gradient for the class t whose boundary is nearest.

    The distance is that to the linear approximation of the boundary, as the threat measures it and
    without the box.
    """

    def above(x: tf.Tensor) -> tf.Tensor:
        logits = logits_fn(x)
        return logits - tf.gather(logits, y, axis=-1, batch_dims=1)[:, None]

    value, gradient = pullback(above, x)
    classes = value.shape[-1]

    def compare(c: tf.Tensor, least: tf.Tensor, height: tf.Tensor, nearest: tf.Tensor) -> Any:
        slope = gradient(tf.ones_like(value) * tf.one_hot(c, classes))
        height_c = tf.gather(value, c, axis=1)
        steepness = norms.norm(threat.from_ball(slope), norms.DUAL[threat.norm])
        distance = tf.where(tf.equal(c, y), float("inf"), tf.abs(height_c) / (steepness + 1e-12))
        nearer = distance < least
        least, height = tf.where(nearer, distance, least), tf.where(nearer, height_c, height)
        return c + 1, least, height, tf.where(rows(nearer, x), slope, nearest)

    zeros = tf.zeros_like(value[:, 0])
    state = (tf.constant(0, y.dtype), zeros + float("inf"), zeros, tf.zeros_like(x))
    end = tf.while_loop(lambda c, *_: c < classes, compare, state, parallel_iterations=1)
    return end[2], end[3]
