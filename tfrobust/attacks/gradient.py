"""The core of gradient attacks: projected steepest ascent with restarts."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks.base import Attack, LogitsFn, Outcome
from tfrobust.attacks.compaction import State, hunt, take_rows
from tfrobust.errors import UserError, choose, require
from tfrobust.norms import per_example, rows
from tfrobust.threat import Threat

LOSSES = ("cross_entropy", "kl", "margin")
STARTS = ("uniform", "normal", "none")
LEAST_REACH = 0.05  # of eps; steps that reach less have nearly always another unit than eps
# (images, their rows in the batch, number of the restart) -> loss [B], misclassified [B].
Evaluate = Callable[..., tuple[tf.Tensor, tf.Tensor]]

_samples = contextvars.ContextVar("samples", default=1)


@contextlib.contextmanager
def averaged(samples: int) -> Iterator[None]:
    """Return a context in which `differentiated` averages its gradients over several draws.

    In such a context inside another, the mean over `samples` is taken for each draw of the other.
    """
    token = _samples.set(_samples.get() * samples)
    try:
        yield
    finally:
        _samples.reset(token)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """Projected steepest ascent, x_{k+1} = project(x_k + step * steepest(grad objective(x_k))).

    Args:
        loss: The loss to maximise: "cross_entropy", "kl" (divergence from the clean prediction) or
            "margin". None is cross entropy, or in training the loss that the method maximises.
        start: "uniform" in the ball, "normal" (0.001 * N(0, 1), as TRADES), or "none".
    """

    loss: str | None = None
    start: str = "uniform"

    def __post_init__(self) -> None:
        if self.loss is not None:
            choose("loss", self.loss, LOSSES)
        choose("start", self.start, STARTS)
        require(
            not (self.loss == "kl" and self.start == "none"),
            "start",
            "a random one with loss kl, whose gradient is 0 at the image itself",
            self.start,
        )

    @property
    def schedule(self) -> tuple[int, int, bool]:
        """The steps, the restarts, and whether an example stops when it is first misclassified."""
        raise NotImplementedError

    @property
    def differentiates(self) -> bool:
        return True

    def check(self, threat: Threat, image_shape: tuple[int, ...] | None = None) -> None:
        """Raise a UserError if the attack does not work under a threat, or hardly moves an image.

        Args:
            threat, image_shape: As in `Attack.check`.
        """
        super().check(threat, image_shape)
        (steps, _, _), size = self.schedule, self.step(threat.eps)
        if tf.is_tensor(size) or tf.is_tensor(threat.eps):
            return
        if steps * size < LEAST_REACH * threat.eps:
            hint = f" (did you mean {255 * size:g}?)" if threat.box == (0.0, 255.0) else ""
            raise UserError(
                f"step_size: expected steps that together reach {LEAST_REACH:.0%} of eps "
                f"{threat.eps:g} or more, received {steps} of {size:g}{hint}"
            )

    @property
    def _loss_word(self) -> list[str]:
        """The loss in a title; empty for the default."""
        return [self.loss] if self.loss not in (None, "cross_entropy") else []

    @property
    def _start_word(self) -> list[str]:
        """The start in a title; empty for the default."""
        return [f"start {self.start}"] if self.start != "uniform" else []

    def step(self, eps: Any) -> Any:
        """Return the step size in image units, for a scalar or [B] eps."""
        raise NotImplementedError

    def settings(self, threat: Threat) -> dict[str, Any]:
        """Return the settings, with the loss and the step size (image units) that defaults mean."""
        used = {"loss": self.loss or "cross_entropy", "step_size": self.step(threat.eps)}
        return super().settings(threat) | used

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        x, evaluate = self._classified(logits_fn, x, y)
        clean = int(self.loss == "kl")  # a pass for the prediction that the loss refers to
        if not self._single_path:
            end = self.search(evaluate, x, threat=threat, seed=seed)
            return end._replace(queries=end.queries + clean)
        images = self._ascend(evaluate, x, threat, seed)
        steps = tf.fill(tf.shape(x)[:1], self.schedule[0])
        wrong = evaluate(images, tf.range(tf.shape(x)[0]), 0)[1]
        return Outcome(images, wrong, clean + steps + 1, steps)

    def images(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> tf.Tensor:
        x, evaluate = self._classified(logits_fn, x, y)
        return self._images(evaluate, x, threat, seed)

    def maximise(
        self,
        objective: Callable[[tf.Tensor], tf.Tensor],
        x: tf.Tensor,
        *,
        threat: Threat,
        seed: Any,
    ) -> tf.Tensor:
        """Return images that maximise an objective, whether they are misclassified or not.

        Args:
            objective: Images [B, H, W, C] -> values [B].
            x, threat, seed: As in `run`.
        """

        def evaluate(x_adv: tf.Tensor, row: tf.Tensor, restart: Any) -> tuple[tf.Tensor, tf.Tensor]:
            value = objective(x_adv)
            return value, tf.zeros_like(value, tf.bool)

        return self._images(evaluate, x, threat, seed)

    @property
    def _single_path(self) -> bool:
        """Whether there is one restart, and every example takes all of its steps."""
        _, restarts, keep_broken = self.schedule
        return restarts == 1 and not keep_broken

    def check_single_path(self) -> None:
        """Raise a UserError unless the attack is a single path, as some methods require."""
        expected = "one of one restart whose last iterate counts"
        require(self._single_path, "attack", expected, self.title)

    def _images(self, evaluate: Evaluate, x: tf.Tensor, threat: Threat, seed: Any) -> tf.Tensor:
        if self._single_path:
            return self._ascend(evaluate, x, threat, seed)
        return self.search(evaluate, x, threat=threat, seed=seed).images

    def _classified(self, logits_fn: LogitsFn, x: Any, y: Any) -> tuple[tf.Tensor, Evaluate]:
        """Return x as a tensor, and a function that evaluates loss and misclassification."""
        name = self.loss or "cross_entropy"
        x, y = tf.convert_to_tensor(x), tf.cast(y, tf.int32)
        target = tf.stop_gradient(logits_fn(x)) if name == "kl" else y
        loss = getattr(losses, name)

        def evaluate(x_adv: tf.Tensor, row: tf.Tensor, restart: Any) -> tuple[tf.Tensor, tf.Tensor]:
            logits = logits_fn(x_adv)
            value = loss(logits, tf.gather(target, row))
            return value, ~losses.correct(logits, tf.gather(y, row))

        return x, evaluate

    def _ascend(self, evaluate: Evaluate, x: tf.Tensor, threat: Threat, seed: Any) -> tf.Tensor:
        step, row = per_example(self.step(threat.eps), x), tf.range(tf.shape(x)[0])

        def body(i: tf.Tensor, x_adv: tf.Tensor) -> Any:
            _, _, gradient = differentiated(evaluate, x_adv, row, 0)
            return i + 1, threat.project(x_adv + step * threat.steepest(gradient), x)

        state = (tf.constant(0), self.begin(x, threat, noise.fold(seed, 0)))
        steps = self.schedule[0]
        if steps == 1:
            return tf.stop_gradient(body(*state)[1])
        end = tf.while_loop(lambda i, _: i < steps, body, state, parallel_iterations=1)[1]
        return tf.stop_gradient(end)

    def search(
        self,
        evaluate: Evaluate,
        x: tf.Tensor,
        *,
        threat: Threat,
        seed: Any,
        broken: tf.Tensor | None = None,
    ) -> Outcome:
        """Search with restarts for the examples that are not broken yet.

        An example that no restart breaks gets the last iterate with the highest loss.

        Args:
            evaluate: (images, rows, number of the restart) -> loss [B'], misclassified [B'], for
                B' rows that are not broken. The loss may depend on the restart.
            x: Clean images [B, H, W, C].
            threat, seed: As in `run`.
            broken: The examples that need no search, bool [B]. They keep their images at no cost.
        """
        steps, restarts, keep_broken = self.schedule
        size, zeros = self.step(threat.eps), tf.zeros(tf.shape(x)[:1], tf.int32)

        def tick(i: tf.Tensor, s: State) -> State:
            """Evaluate iterate k of a restart, and return the next iterate."""
            row, restart, k = s["row"], i // (steps + 1), i % (steps + 1)

            def start() -> tf.Tensor:
                return tf.gather(self.begin(x, threat, noise.fold(seed, restart)), row)

            x_adv = tf.cond(k == 0, start, lambda: s["x_adv"])
            value, wrong, gradient = differentiated(evaluate, x_adv, row, restart)
            broken = wrong & (keep_broken | (k == steps))
            best = broken | ((k == steps) & (value > s["value"]))
            threat_of_rows = threat.at(take_rows(threat.eps, row))
            step = per_example(take_rows(size, row), x)
            moved = x_adv + step * threat_of_rows.steepest(gradient)
            return {
                "row": row,
                "x": s["x"],
                "x_adv": threat_of_rows.project(moved, s["x"]),
                "best": tf.where(rows(best, x), x_adv, s["best"]),
                "value": tf.where(best, value, s["value"]),
                "broken": broken,
                "queries": s["queries"] + 1,
            }

        state = {
            "x": x,
            "x_adv": x,
            "best": x,
            "value": tf.fill(tf.shape(zeros), float("-inf")),
            "broken": zeros > 0 if broken is None else broken,
            "queries": zeros,
        }
        end = hunt(tick, state, restarts * (steps + 1))
        images = tf.stop_gradient(end["best"])
        return Outcome(images, end["broken"], end["queries"], end["queries"])

    def begin(self, x: tf.Tensor, threat: Threat, seed: Any) -> tf.Tensor:
        if self.start == "uniform":
            return threat.random_start(x, seed)
        if self.start == "normal":
            draw = tf.ensure_shape(noise.normal(tf.shape(x), seed), x.shape)
            return threat.project(x + 0.001 * draw, x)
        return x


def differentiated(
    evaluate: Evaluate, x_adv: tf.Tensor, *which: Any
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return evaluate(x_adv, *which) and the gradient of each example's value at its image.

    In the context of `averaged` the network is drawn several times. The gradient is then the mean
    of all draws, and the other results are those of the last one.
    """

    def draw() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x_adv)
            value, wrong = evaluate(x_adv, *which)
            total = tf.reduce_sum(value)
        # The gradient is zero, not None, if a network has none, such as behind rounding.
        return value, wrong, tape.gradient(total, x_adv, unconnected_gradients="zero")

    def add(i: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return i + 1, total + draw()[2]

    others = _samples.get() - 1
    if not others:
        return draw()
    state = (tf.constant(0), tf.zeros_like(x_adv))
    total = tf.while_loop(lambda i, _: i < others, add, state, parallel_iterations=1)[1]
    value, wrong, gradient = draw()
    return value, wrong, (total + gradient) / (others + 1)


def input_gradient(objective: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Return the gradient of an objective, images -> [B], at each image: [B, H, W, C]."""
    return differentiated(lambda images: (objective(images), None), x)[2]


def pullback(
    function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Return function(x) [B, C] and its pullback, v [B, C] -> gradient of sum(v * function(x)).

    Each call of the pullback is one backward pass. It gives a Jacobian class by class, so that
    only one row of it is in memory.
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(x)
        value = function(x)

    def gradient(v: tf.Tensor) -> tf.Tensor:
        return tape.gradient(value, x, output_gradients=v, unconnected_gradients="zero")

    return value, gradient
