"""Signs that a robust accuracy is a false sense of security.

Gradients that lead nowhere stop an attack and not an attacker (Athalye et al., 2018,
arXiv:1802.00420); the signs are those of Carlini et al., 2019, arXiv:1902.06705.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.stats import binomtest

from tfrobust import losses, noise
from tfrobust.attacks import APGD, FGSM, PGD
from tfrobust.attacks.gradient import differentiated
from tfrobust.evaluation.batching import map_batches
from tfrobust.evaluation.crafting import (
    BATCH_SIZE,
    LogitsFn,
    check_adversarial,
)
from tfrobust.evaluation.first_order import first_order_distances
from tfrobust.evaluation.results import Check, Result, worst_case
from tfrobust.evaluation.seen import LONG, Measured, Seen, named
from tfrobust.gate import best_scaled, inference, kind_of_outputs, outputs, right
from tfrobust.threat import Threat

ONE, SHORT = FGSM(start="none", step_scale=1.0), PGD(steps=10)
FAR = APGD(steps=50)  # PGD's steps in an L1 ball are one pixel each
STRONG = 20  # the least steps of a white-box attack to compare black-box attacks with
BLACK_BOX = 0.002  # the share of the images that only black-box attacks may break
FEW = 0.01  # of the images
CHANCE = 0.01  # a difference less probable than this is significant
NEAR_ZERO = 0.05
PIXELS = 2**23  # of a block of images: a float32 for each is 32 MiB


def checks(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    results: Sequence[Result],
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    examples: int = 200,
    progress: bool = True,
) -> list[Check]:
    """Return the checks of a finished evaluation; none if no image is right.

    results: its results, the clean one first. The checks on the network itself attack the first
    `examples` images that are right: about 200 forward and backward passes for each of them, and
    one more for each class; and look at the first `examples` of all, scaled in other ways. A check
    that fails, as where the memory does not suffice, says so, and the others go on.
    """
    rows, logits_fn = np.flatnonzero(results[0].robust)[:examples], inference(logits_fn)
    if not len(rows):
        return []
    whole = (x[:examples], y[:examples])
    seen = Seen(
        logits_fn, x[rows], y[rows], threat, results, rows, whole, seed, batch_size, progress
    )
    return [check(seen) for check in CHECKS]


def _more(right: np.ndarray, other: np.ndarray) -> bool:
    """Return whether significantly more images are right than in the other case, both bool [n].

    This is a sign test over the images that differ, since random starts alone change a few.
    """
    gained, differ = int((right & ~other).sum()), int((right != other).sum())
    if not differ:
        return False
    return bool(binomtest(gained, differ, alternative="greater").pvalue < CHANCE)


@named("black box against white box")
def black_box(seen: Seen) -> Measured:
    """Attacks without gradients must not find what those with gradients miss."""
    tried = list(_tried(seen.results))
    white = [entry for entry in tried if entry[0].gradients]
    strong = [entry for entry in white if _steps(entry[0], seen.threat) >= STRONG]
    told, shares, signs = [], [], []
    for result, _, broke in tried:
        if result.gradients or not strong:
            continue
        n = min(len(broke), max(len(ran) for _, ran, _ in strong))
        met, found = np.zeros(n, bool), np.zeros(n, bool)
        for _, ran, _ in strong:
            met[: len(ran)] |= ran[:n]
        for _, _, theirs in white:
            found[: len(theirs)] |= theirs[:n]
        alone = broke[:n] & ~found
        if (alone & ~met).any():
            continue  # in a cascade, before the strong ones: what they would have done is unknown
        count = int(alone.sum())
        shares.append(count / n)
        signs.append(count > 1 and count / n > BLACK_BOX)
        told.append(f"{result.name} breaks {count} of {n} images")
    if not told:
        text = (
            "Not measured: it takes an attack without gradients, such as Square, beside or after "
            f"a white-box attack of at least {STRONG} steps."
        )
        return None, text, False
    names = ", ".join(result.name for result, _, _ in white)
    text = f"{'; '.join(told)} that the white-box attacks ({names}) did not break."
    return max(shares), text, any(signs)


def _tried(results: Sequence[Result]) -> Iterator[tuple[Result, np.ndarray, np.ndarray]]:
    """Yield each attack with two masks bool [n]: the images it ran on and those it broke.

    It ran on the images that were right when clean, or that the attacks before it in its suite, or
    all attacks before it, had left. Each of these sets contains the next, so the number of attacked
    images tells which it was.
    """
    clean, *attacks = results
    for place, result in enumerate(attacks):
        if result.listed is None or not result.attacked:
            continue
        before, suite = attacks[:place], result.listed.suite
        own = [r for r in before if suite and r.listed and r.listed.suite == suite]
        for others in ([], own, before):
            ran = np.ones(len(result.robust), bool)
            for other in (clean, *others):
                ran[: len(other.robust)] &= other.robust[: len(ran)]
            if ran.sum() == result.attacked:
                break
        yield result, ran, ran & ~result.robust


def _steps(result: Result, threat: Threat) -> int:
    return result.listed.attack.settings(threat).get("steps", 1) if result.listed else 1


@named("more steps")
def more_steps(seen: Seen) -> Measured:
    """More steps must not leave more images right."""
    few, many = seen.attacked(SHORT, "PGD-10").right, seen.long.right
    text = f"PGD-10 leaves {few.sum()} of {seen.n} images right, PGD-50 {many.sum()}."
    return many.mean() - few.mean(), text, _more(many, few)


@named("larger eps")
def larger_eps(seen: Seen) -> Measured:
    """Twice the radius must break more, if the radius breaks some and leaves some."""
    eps, near = seen.threat.eps, seen.long.right
    far = seen.attacked(LONG, "2 eps", 2 * eps).right
    some = NEAR_ZERO < near.mean() < 1 - NEAR_ZERO
    text = (
        f"PGD-50 leaves {near.sum()} of {seen.n} images right at eps {eps:.4g}, "
        f"{far.sum()} at {2 * eps:.4g}."
    )
    warns = _more(far, near) or (some and far.sum() >= near.sum())
    return far.mean() - near.mean(), text, warns


@named("huge eps")
def huge_eps(seen: Seen) -> Measured:
    """At an eps that can turn every image grey, almost no image may stay right."""
    low, high = seen.threat.box
    pixels = seen.x[0].size
    ways = {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}
    eps = 0.5 * (high - low) * ways[seen.threat.norm]
    left = int(seen.attacked(FAR, f"eps {eps:.4g}", eps).right.sum())
    text = (
        f"At eps {eps:.4g}, enough to turn every image grey, APGD-CE with 50 steps leaves {left} "
        f"of {seen.n} images right; fewer than {100 * NEAR_ZERO:g} % are expected."
    )
    return left / seen.n, text, left >= NEAR_ZERO * seen.n


@named("one step against many")
def one_step(seen: Seen) -> Measured:
    """One long step must not beat many short ones."""
    one, many = seen.attacked(ONE, "FGSM").right, seen.long.right
    text = (
        f"One step of eps (FGSM) leaves {one.sum()} of {seen.n} images right, PGD-50 {many.sum()}."
    )
    return many.mean() - one.mean(), text, _more(many, one)


@named("zero gradients")
def zero_gradients(seen: Seen) -> Measured:
    """Gradients of the loss must lead somewhere."""

    def useless(x: Any, y: Any) -> Any:
        def share(loss: Any) -> Any:
            def value(x: Any) -> Any:
                found = loss(tf.cast(seen.logits_fn(x), tf.float32), y)
                return found, found

            flat = tf.reshape(differentiated(value, x)[2], [tf.shape(x)[0], -1])
            usable = tf.reduce_all(tf.math.is_finite(flat), 1) & tf.reduce_any(flat != 0, 1)
            return tf.cast(~usable, tf.float32)

        return share(losses.cross_entropy), share(losses.margin)

    entropy, margin = seen.measured(useless, seen.x).sum(axis=1).astype(int)
    text = (
        f"The gradient of the cross entropy is zero or not finite at {entropy} of {seen.n} clean "
        f"images, that of the difference of two logits at {margin}."
    )
    if entropy > margin:
        text += " The logits are so large that the loss is flat: divide them by a constant."
    return entropy / seen.n, text, entropy > FEW * seen.n


@named("random output")
def random_output(seen: Seen) -> Measured:
    """The same images must give the same logits; else attacks must average over draws."""
    first, second = seen.logits, seen.outputs()
    difference, largest = np.abs(first - second).max(), np.abs(first).max()
    text = (
        f"Two passes over the same {seen.n} images differ by at most {difference:.3g} in a logit; "
        f"the largest logit is {largest:.3g}."
    )
    return difference, text, not difference <= 1e-4 * max(1, largest)


@named("logits")
def probabilities(seen: Seen) -> Measured:
    """A softmax hides from the attacks how far a loss can rise."""
    sums, least = seen.logits.sum(axis=1), seen.logits.min()
    found = kind_of_outputs(seen.logits) != "logits"
    kind = "probabilities, not logits" if found else "logits, not probabilities"
    text = (
        f"The outputs of {seen.n} images are at least {least:.3g} and sum to {sums.min():.3g} to "
        f"{sums.max():.3g}: {kind}."
    )
    return np.abs(sums - 1).max(), text, found


@named("scaling")
def scaling(seen: Seen) -> Measured:
    """A network that is better on images of another range is attacked in the wrong one."""
    (x, y), (low, high) = seen.whole, seen.threat.box
    here = right(outputs(seen.logits_fn, x, seen.batch_size), y)
    best = best_scaled(seen.logits_fn, x, y, (low, high), seen.batch_size)
    text = (
        f"The network is right on {here.sum()} of the first {len(x)} images in [{low:g}, "
        f"{high:g}], and on at most {best.right.sum()} of them scaled in another usual way "
        f"({best.name})."
    )
    warns = _more(best.right, here)
    if warns:
        text += f" Put the scaling inside the network: keras.layers.{best.layer}."
    return best.right.mean() - here.mean(), text, warns


@named("random noise")
def random_noise(seen: Seen) -> Measured:
    """An attack must find a higher loss than chance does."""

    def draw(images: np.ndarray, number: int) -> list[tf.Tensor]:
        numbered = noise.seed_for(seen.seed, number, "check")
        return [seen.threat.random_start(tf.constant(images), numbered)]

    (noisy,) = map_batches(draw, seen.x, batch_size=seen.batch_size, numbered=True)
    check_adversarial("uniform noise", seen.threat, noisy, seen.x)
    found, chance = seen.losses(seen.long.images, noisy)
    beaten = int((~(found > chance)).sum())
    text = (
        f"The mean cross entropy is {found.mean():.3g} under PGD-50 and {chance.mean():.3g} under "
        f"uniform noise; the noise's is as high or higher at {beaten} of {seen.n} images."
    )
    warns = beaten > 0.1 * seen.n or not found.mean() > chance.mean()
    return beaten / seen.n, text, warns


@named("first-order distance")
def first_order(seen: Seen) -> Measured:
    """Few images may be broken whose boundary is, to first order, further away than eps: there the
    gradients mislead."""

    def look(x: Any, y: Any) -> Any:
        def logits(x: Any) -> Any:
            return tf.cast(seen.logits_fn(x), tf.float32)

        return first_order_distances(logits, x, y, seen.threat.norm)

    few = max(1, PIXELS // seen.x[0].size)
    bound, distance = seen.measured(look, seen.x, min(few, seen.batch_size))
    eps, standing = seen.threat.eps, worst_case(seen.results)
    known = seen.rows < len(standing)
    safe = bound[known] > eps
    fell = int((safe & ~standing[seen.rows[known]]).sum())
    text = (
        f"To first order the median distance of the nearest class is {np.median(distance):.3g} "
        f"(more than eps at {(distance > eps).sum()} of {seen.n} clean images); its lower bound by "
        f"Proposition 2 of ATLAS is {np.median(bound):.3g} (more than eps at "
        f"{(bound > eps).sum()}, of which the attacks broke {fell})."
    )
    return np.median(bound), text, fell > max(1, FEW * seen.n)


CHECKS = (
    black_box,
    more_steps,
    larger_eps,
    huge_eps,
    one_step,
    zero_gradients,
    random_output,
    probabilities,
    scaling,
    random_noise,
    first_order,
)
