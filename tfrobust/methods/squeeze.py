"""ST: squeeze training (Li et al., 2023, ICLR)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks import PGD
from tfrobust.attacks.gradient import GradientAttack
from tfrobust.errors import choose, number, require
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.norms import per_example
from tfrobust.serialization import serializable


def symmetric_kl(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return (KL(p_b || p_a) + KL(p_a || p_b)) / 2, [B], with constant first arguments."""
    constant = tf.stop_gradient
    return 0.5 * (losses.kl(a, reference=constant(b)) + losses.kl(b, reference=constant(a)))


def js(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return the Jensen-Shannon divergence (KL(p_a || m) + KL(p_b || m)) / 2, m the mean, [B]."""
    half = tf.math.log(2.0)
    mean = tf.reduce_logsumexp([tf.nn.log_softmax(a), tf.nn.log_softmax(b)], axis=0) - half
    return 0.5 * (losses.kl(mean, reference=a) + losses.kl(mean, reference=b))


def l2(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return ||p_a - p_b||^2, [B]."""
    return tf.reduce_sum(tf.square(tf.nn.softmax(a) - tf.nn.softmax(b)), axis=-1)


REGULARIZERS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "symmetric_kl": symmetric_kl,
    "js": js,
    "l2": l2,
}


@serializable
class Squeeze(RobustModel):
    """CE(f(x), y) + beta * R(f(x'), f(x_col)).

    One search yields two points of the ball (`squeezed`). Of x and these two, x' is the adversarial
    example, which has the highest loss, and x_col the collaborative example, which has the lowest;
    both are chosen for each example by its logits. The `regularizer` R is "symmetric_kl" (as in the
    paper and the authors' code), "js" or "l2". As in the authors' code, the collaborative point of
    the search uses batch statistics without moving BatchNorm's averages.
    """

    example = {"beta": 1.0}
    default_attack = PGD(steps=10, start="normal")
    attack_kind = GradientAttack
    crafting_loss = None
    reports = ("squeeze",)

    def __init__(
        self,
        network: keras.Model,
        *,
        beta: float,
        regularizer: str = "symmetric_kl",
        craft: str = "frozen",
        **kwargs: Any,
    ):
        self.beta = number("beta", beta, at_least=0)
        self.regularizer = choose("regularizer", regularizer, REGULARIZERS)
        super().__init__(network, craft=craft, **kwargs)
        assert isinstance(self.attack, GradientAttack)
        self.attack.check_single_path()
        random_start = getattr(self.attack, "start", None) != "none"
        expected = "a random one (the gradient is zero at the image itself)"
        require(random_start, "attack.start", expected, "none")

    def perturb(self, batch: Batch) -> Batch:
        assert isinstance(self.attack, GradientAttack)
        high, low = squeezed(
            self.logits_fn(batch, self.craft),
            batch["image"],
            batch["label"],
            attack=self.attack,
            threat=self.threat_now,
            seed=self.seed_for("attack"),
            regularizer=REGULARIZERS[self.regularizer],
        )
        return {"adv": high, "collaborative": low}

    def robust_loss(self, batch: Batch) -> Batch:
        label, logits_fn = batch["label"], self.logits_fn(batch, "train")
        low = self.logits_fn(batch, "frozen")(batch["collaborative"])
        clean, high = logits_fn(batch["image"]), logits_fn(batch["adv"])
        adversarial, collaborative = extremes([clean, low, high], [clean, low, high], label)
        distance = REGULARIZERS[self.regularizer](adversarial, collaborative)
        natural = losses.cross_entropy(clean, self.truth(batch))
        return {
            "loss": natural + self.scale * self.beta * distance,
            "squeeze": distance,
            "accuracy": losses.correct(clean, label),
            "robust_accuracy": losses.correct(adversarial, label),
        }

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"beta": self.scale * self.beta}


def extremes(
    values: list[tf.Tensor], logits: list[tf.Tensor], y: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return, for each example, the values where its label is least and where it is most likely.

    Args:
        values: The values [B, ...] at each of several points.
        logits: The logits [B, C] at these points.
        y: The labels [B].
    """
    loss = [losses.cross_entropy(z, y) for z in logits]
    stacked = tf.stack(values, axis=1)

    def chosen(point: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.gather(stacked, point, batch_dims=1), values[0].shape)

    return chosen(tf.argmax(loss, axis=0)), chosen(tf.argmin(loss, axis=0))


def squeezed(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    *,
    attack: GradientAttack,
    threat: Any,
    seed: Any,
    regularizer: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = symmetric_kl,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return two points of the ball, each [B, H, W, C]: an adversarial and a collaborative one.

    Before each step they are chosen again, for each example, from x and the two points: where the
    network is least and most sure of the label. Then one step moves both to increase
    R(f(adversarial), f(collaborative)). After the last step each of the three may be an extreme.

    Args:
        logits_fn: Images -> logits [B, C].
        x: The images [B, H, W, C].
        y: The labels [B].
        attack: The source of the number of steps, the step size and the start.
        threat: The set that holds both points.
        seed: A seed, [2] integers.
        regularizer: R, from two logits [B, C] to [B].
    """
    step = per_example(attack.step(threat.eps), x)

    def body(i: tf.Tensor, high: tf.Tensor, low: tf.Tensor) -> Any:
        points = [x, low, high]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(points)
            logits = [logits_fn(point) for point in points]
            distance = tf.reduce_sum(regularizer(*extremes(logits, logits, y)))
        # The gradient through rounding and the like is None, which becomes zero.
        gradients = tape.gradient(distance, points, unconnected_gradients="zero")
        pairs = zip(extremes(points, logits, y), extremes(gradients, logits, y), strict=True)
        moved = (threat.project(point + step * threat.steepest(g), x) for point, g in pairs)
        return i + 1, *moved

    starts = (attack.begin(x, threat, noise.fold(seed, number)) for number in range(2))
    state = (tf.constant(0), *starts)
    steps = attack.schedule[0]
    end = tf.while_loop(lambda i, *_: i < steps, body, state, parallel_iterations=1)
    return tuple(tf.stop_gradient(point) for point in end[1:])
