"""ST: squeeze training (Li et al., 2023, ICLR)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks import PGD
from tfrobust.attacks.gradient import GradientAttack
from tfrobust.errors import choose, require
from tfrobust.methods.base import Batch, RobustModel
from tfrobust.norms import per_example
from tfrobust.serialization import serializable


def symmetric_kl(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return (KL(p_b || p_a) + KL(p_a || p_b)) / 2, [B]; each first argument is a constant."""
    constant = tf.stop_gradient
    return 0.5 * (losses.kl(a, reference=constant(b)) + losses.kl(b, reference=constant(a)))


def js(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return the Jensen-Shannon divergence, [B]: half the sum of KL(p || mean) over both."""
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

    x' is the adversarial example, with the highest loss found in the ball; x_col is the
    collaborative example, with the lowest. One search finds both (`squeezed`). The `regularizer` R
    is "symmetric_kl" (as in the paper and the authors' code), "js" or "l2".
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
        self.beta, self.regularizer = beta, choose("regularizer", regularizer, REGULARIZERS)
        super().__init__(network, craft=craft, **kwargs)
        require(beta >= 0, "beta", "a number >= 0", beta)
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
        clean, adversarial = logits_fn(batch["image"]), logits_fn(batch["adv"])
        distance = REGULARIZERS[self.regularizer](adversarial, low)
        return {
            "loss": losses.cross_entropy(clean, label) + self.scale * self.beta * distance,
            "squeeze": distance,
            "accuracy": losses.correct(clean, label),
            "robust_accuracy": losses.correct(adversarial, label),
        }

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"beta": self.scale * self.beta}


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
    """Return (adversarial, collaborative) examples, each [B, H, W, C].

    They are the points found at which the network is least and most sure of the label. Before each
    step and at the end both are chosen again, for each example, from x and the two current points;
    then one step moves both to increase R(f(adversarial), f(collaborative)). The number of steps,
    the step size and the start are the attack's.

    Args:
        logits_fn: images -> logits [B, C].
        x: the images [B, H, W, C].
        y: the labels [B].
        attack: gives the steps, the step size and the start.
        threat: the set that holds both examples.
        seed: int32 [2].
        regularizer: R, from two logits [B, C] to [B].
    """
    step = per_example(attack.step(threat.eps), x)
    sure_clean = -losses.cross_entropy(logits_fn(x), y)

    def chosen(high: tf.Tensor, low: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        sure = [sure_clean]
        for point in (high, low):
            sure.append(-losses.cross_entropy(logits_fn(point), y))
        points = tf.stack([x, high, low], axis=1)

        def pick(which: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.gather(points, which, batch_dims=1), x.shape)

        return pick(tf.argmin(sure, axis=0)), pick(tf.argmax(sure, axis=0))

    def body(i: tf.Tensor, *points: tf.Tensor) -> Any:
        pair = chosen(*points)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pair)
            distance = tf.reduce_sum(regularizer(*(logits_fn(point) for point in pair)))
        # Through rounding and the like there is no gradient: take zero rather than None.
        gradients = tape.gradient(distance, pair, unconnected_gradients="zero")
        moved = (
            threat.project(point + step * threat.steepest(gradient), x)
            for point, gradient in zip(pair, gradients, strict=True)
        )
        return i + 1, *moved

    starts = (attack.begin(x, threat, noise.fold(seed, number)) for number in range(2))
    state = (tf.constant(0), *starts)
    steps = attack.schedule[0]
    end = tf.while_loop(lambda i, *_: i < steps, body, state, parallel_iterations=1)
    return tuple(tf.stop_gradient(point) for point in chosen(*end[1:]))
