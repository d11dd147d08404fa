"""FAB, the fast adaptive boundary attack (Croce and Hein, 2020, arXiv:1907.02044), and FAB-T."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfrobust import losses, noise, norms
from tfrobust.attacks.base import Attack, LogitsFn, Outcome
from tfrobust.attacks.compaction import State, hunt, taken
from tfrobust.attacks.fab_projections import to_zero
from tfrobust.attacks.gradient import pullback
from tfrobust.errors import number, require, require_at_least
from tfrobust.norms import rows
from tfrobust.serialization import serializable
from tfrobust.threat import Threat


@serializable
@dataclasses.dataclass(frozen=True)
class FAB(Attack):
    """A search for the nearest misclassified image along the boundaries between classes.

    At iterate x_k, the difference z_t - z_y between a class and the label is approximated as
    linear. With d_k and d the smallest steps within the box, from x_k and from the clean image x,
    to where the approximation is zero,

        x_{k+1} = (1 - a) (x_k + eta d_k) + a (x + eta d),
        a = min(||d_k|| / (||d_k|| + ||d||), alpha_max).

    A misclassified x_{k+1} is a find, from which the search goes on at x + beta (x_{k+1} - x). An
    example stops at its first find within eps. The nearest find of any other example is projected
    into the ball, where it may still be misclassified.

    Args:
        steps: The number of steps of each search.
        targets: For FAB-T, the number of target classes t, the most likely wrong ones at the clean
            image, each with `restarts` searches; all of them if there are fewer. None is FAB, which
            in every step takes the class whose boundary is nearest, at one backward pass per class.
        restarts: The number of searches. The first begins at x, the others at a distance of eps / 2
            from it in random directions.
        alpha_max, eta, beta: The constants above.
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
        for name in ("alpha_max", "eta", "beta"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        require(0 <= self.alpha_max <= 1, "alpha_max", "a number from 0 to 1", self.alpha_max)
        require(self.eta >= 1, "eta", "a number >= 1", self.eta)
        require(0 <= self.beta <= 1, "beta", "a number from 0 to 1", self.beta)

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

        def look(_: tf.Tensor, s: State) -> State:
            return s | {"broken": ~losses.correct(logits_fn(s["images"]), s["y"])}

        end = hunt(look, {"images": images, "y": state["y"], "broken": state["broken"]}, 1)
        queries = 1 + 2 * state["steps"] + tf.cast(missed, tf.int32)
        return Outcome(tf.stop_gradient(images), end["broken"], queries, state["gradients"])

    def search(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> State:
        """Return the nearest "find" of each example, its "distance" [B], and its cost.

        An example without a find has the clean image, at distance inf. An example that is "broken"
        stopped at its first find within eps; with eps 0 none stops.
        """
        x, y = tf.convert_to_tensor(x), tf.cast(y, tf.int32)
        logits = logits_fn(x)
        classes, wrong = logits.shape[-1], ~losses.correct(logits, y)
        targets = self.fitted(classes).targets or 1

        def tick(i: tf.Tensor, s: State) -> State:
            row, image, run = s["row"], s["x"], i // self.steps

            def begin() -> tf.Tensor:
                return tf.gather(self._begin(x, threat, seed, run), row)

            here = tf.cond(tf.equal(i % self.steps, 0), begin, lambda: s["here"])
            if self.targets is None:
                value, slope = nearest_boundary(logits_fn, here, s["y"], threat.norm)
            else:
                target = tf.gather(s["targets"], run // self.restarts, axis=1)
                value, slope = boundary(logits_fn, here, s["y"], target)
            moved = self._moved(here, image, value, slope, threat)
            wrong = ~losses.correct(logits_fn(moved), s["y"])
            distance = threat.distance(moved, image)
            nearer = wrong & (distance < s["distance"])
            return s | {
                "here": tf.where(rows(wrong, x), image + self.beta * (moved - image), moved),
                "find": tf.where(rows(nearer, x), moved, s["find"]),
                "distance": tf.where(nearer, distance, s["distance"]),
                "broken": nearer & (distance <= taken(threat.eps, row)),
                "steps": s["steps"] + 1,
                "gradients": s["gradients"] + (classes if self.targets is None else 1),
            }

        state = {
            "x": x,
            "y": y,
            "targets": tf.math.top_k(logits, targets + 1).indices[:, 1:],
            "here": x,
            "find": x,
            "distance": tf.where(wrong, 0.0, float("inf")),
            "broken": wrong,
            "steps": tf.zeros_like(y),
            "gradients": tf.zeros_like(y),
        }
        return hunt(tick, state, targets * self.restarts * self.steps)

    def _begin(self, x: tf.Tensor, threat: Threat, seed: Any, run: tf.Tensor) -> tf.Tensor:
        """Return the start of a search: the clean image, or a random one at eps / 2 from it."""
        if self.restarts == 1:
            return x

        def random() -> tf.Tensor:
            draw = noise.uniform if threat.norm == "linf" else noise.normal
            way = tf.ensure_shape(draw(tf.shape(x), noise.fold(seed, run)), x.shape)
            way /= norms.per_example(norms.norm(way, threat.norm), way)
            start = x + 0.5 * norms.per_example(threat.eps, x) * way
            return tf.clip_by_value(start, *threat.box)

        return tf.cond(tf.equal(run % self.restarts, 0), lambda: x, random)

    def _moved(
        self, here: tf.Tensor, image: tf.Tensor, value: tf.Tensor, slope: tf.Tensor, threat: Threat
    ) -> tf.Tensor:
        """Return x_{k+1} by the linear function with this value and slope at x_k."""
        # What is not finite gives no step: the iterates must stay images.
        value, slope = (tf.where(tf.math.is_finite(t), t, 0.0) for t in (value, slope))
        shape = tf.shape(here)
        here, image, slope = (tf.reshape(t, [shape[0], -1]) for t in (here, image, slope))
        at_image = value + tf.reduce_sum(slope * (image - here), axis=1)
        from_here = to_zero(here, slope, value, threat.box, threat.norm)
        from_image = to_zero(image, slope, at_image, threat.box, threat.norm)
        # The floor decides where both are 0.
        a, b = (tf.maximum(norms.norm(d, threat.norm), 1e-8) for d in (from_here, from_image))
        alpha = tf.minimum(a / (a + b), self.alpha_max)[:, None]
        moved = (1 - alpha) * (here + self.eta * from_here)
        moved += alpha * (image + self.eta * from_image)
        return tf.reshape(tf.clip_by_value(moved, *threat.box), shape)


def boundary(
    logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, target: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return z_t - z_y [B] and its gradient, shaped as x."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = logits_fn(x)
        classes = logits.shape[-1]
        way = tf.one_hot(target, classes) - tf.one_hot(y, classes)
        value = tf.reduce_sum(way * logits, axis=-1)
    return value, tape.gradient(value, x, unconnected_gradients="zero")


def nearest_boundary(
    logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, p: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return z_t - z_y [B] and its gradient for the class t whose boundary is nearest.

    Nearest is meant in the Lp norm, with the boundaries approximated as linear, without the box.
    """

    def above(x: tf.Tensor) -> tf.Tensor:
        logits = logits_fn(x)
        return logits - tf.gather(logits, y, axis=-1, batch_dims=1)[:, None]

    value, gradient = pullback(above, x)
    classes = value.shape[-1]

    def look(c: tf.Tensor, least: tf.Tensor, height: tf.Tensor, nearest: tf.Tensor) -> Any:
        slope = gradient(tf.ones_like(value) * tf.one_hot(c, classes))
        there, steepness = tf.gather(value, c, axis=1), norms.norm(slope, norms.DUAL[p])
        far = tf.where(tf.equal(c, y), float("inf"), tf.abs(there) / (steepness + 1e-12))
        nearer = far < least
        least, height = tf.where(nearer, far, least), tf.where(nearer, there, height)
        return c + 1, least, height, tf.where(rows(nearer, x), slope, nearest)

    zeros = tf.zeros_like(value[:, 0])
    state = (tf.constant(0, y.dtype), zeros + float("inf"), zeros, tf.zeros_like(x))
    end = tf.while_loop(lambda c, *_: c < classes, look, state, parallel_iterations=1)
    return end[2], end[3]
