"""Checks for signs that a robust accuracy is a false sense of security.

A network with useless gradients stops the attacks that follow gradients, but adversarial images
still exist, and other attacks reach them (Athalye et al., 2018, arXiv:1802.00420). The signs are
those of Carlini et al., 2019, arXiv:1902.06705.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.stats import binomtest

from tfrobust import losses, noise
from tfrobust.attacks import APGD, FGSM, PGD
from tfrobust.attacks.gradient import input_gradient
from tfrobust.evaluation.batching import map_batches
from tfrobust.evaluation.crafting import BATCH_SIZE, LogitsFn, float32_logits
from tfrobust.evaluation.first_order import first_order_distances
from tfrobust.evaluation.image_checks import check_adversarial
from tfrobust.evaluation.results import Check, Result, worst_case
from tfrobust.evaluation.sample import PGD_50, Measurement, Sample, sanity_check
from tfrobust.gate import (
    best_scaled,
    inference,
    kind_of_outputs,
    outputs,
    representative,
    right,
)
from tfrobust.threat import Threat

ONE_STEP, PGD_10 = FGSM(start="none", step_scale=1.0), PGD(steps=10)
APGD_50 = APGD(steps=50)  # not PGD, whose steps in an L1 ball are of one pixel
STRONG = 20  # the least number of steps of a white-box attack that black-box attacks may not beat
BLACK_BOX = 0.002  # the share of the images that black-box attacks alone may break
FEW = 0.01  # the share of the images that may have a fault
CHANCE = 0.01  # a difference with a smaller p-value is significant
NEAR_ZERO = 0.05  # an accuracy below this counts as almost 0
MARGIN = 10.0  # the median margin of rescaled logits, at which the cross entropy attacks best
PIXELS = 2**23  # values in a block of images, 32 MiB in float32


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
    more: Sequence[Callable[[Sample], Check]] = (),
) -> list[Check]:
    """Return the checks of a finished evaluation, or an empty list if no clean image is right.

    A check that raises an error, for instance for lack of memory, returns the error as its text,
    and the other checks go on.

    Args:
        logits_fn: Function from images [B, H, W, C] to logits [B, C].
        x: Images [N, H, W, C].
        y: Labels [N].
        threat: The threat of the evaluation.
        results: The results of the evaluation, the clean one first.
        seed: The seed of the noise.
        batch_size: The number of images in a pass.
        examples: The number of images that the checks look at. They are the first that are right,
            or of images sorted by class some at equal distances; for the check "scaling" they may
            be wrong too. Each image costs about 200 forward and backward passes, and another
            backward pass for each class.
        progress: Whether to show a bar on a terminal.
        more: Checks that cost so much that they are made on request.
    """
    is_right, logits_fn = np.flatnonzero(results[0].robust), inference(logits_fn)
    if not len(is_right):
        return []
    rows, some = is_right[representative(y[is_right], examples)], representative(y, examples)
    unselected = (x[some], y[some])
    sample = Sample(
        logits_fn, x[rows], y[rows], threat, results, rows, unselected, seed, batch_size, progress
    )
    return [check(sample) for check in (*CHECKS, *more)]


def _more(right: np.ndarray, other: np.ndarray) -> bool:
    """Return whether significantly more images are right than in the other case, both bool [n].

    Random starts change a few images, so the sign test over the images that differ decides.
    """
    gained, differ = int((right & ~other).sum()), int((right != other).sum())
    if not differ:
        return False
    return bool(binomtest(gained, differ, alternative="greater").pvalue < CHANCE)


@sanity_check("black box against white box")
def black_box(sample: Sample) -> Measurement:
    """Attacks without gradients must not break images that attacks with gradients do not."""
    tried = list(_tried(sample.results))
    white = [entry for entry in tried if entry[0].gradients]
    strong = [entry for entry in white if _steps(entry[0], sample.threat) >= STRONG]
    sentences, shares, signs = [], [], []
    for result, _, broken in tried:
        if result.gradients or not strong:
            continue
        n = min(len(broken), max(len(attacked) for _, attacked, _ in strong))
        attacked_by_strong = _union([attacked for _, attacked, _ in strong], n)
        alone = broken[:n] & ~_union([other for _, _, other in white], n)
        if (alone & ~attacked_by_strong).any():
            # In a cascade this attack broke images before a strong attack came, which could have
            # broken them too.
            continue
        count = int(alone.sum())
        shares.append(count / n)
        signs.append(count > 1 and count / n > BLACK_BOX)
        sentences.append(f"{result.name} breaks {count} of {n} images")
    if not sentences:
        text = (
            "Not measured: it takes an attack without gradients, such as Square, beside or after "
            f"a white-box attack of at least {STRONG} steps."
        )
        return None, text, False
    names = ", ".join(result.name for result, _, _ in white)
    text = f"{'; '.join(sentences)} that the white-box attacks ({names}) did not break."
    return max(shares), text, any(signs)


def _union(masks: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Return whether each of the first n images is in any of the masks, each bool [m]."""
    union = np.zeros(n, bool)
    for mask in masks:
        union[: len(mask)] |= mask[:n]
    return union


def _tried(results: Sequence[Result]) -> Iterator[tuple[Result, np.ndarray, np.ndarray]]:
    """Yield each attack with two masks, bool [n]: the images that it attacked and broke.

    An attack runs on all images that are right when clean, or on those that no earlier attack of
    its suite has broken, or on those that no earlier attack at all has broken. Each of these sets
    contains the next, so the number of attacked images tells which set it was.
    """
    clean, *attacks = results
    for place, result in enumerate(attacks):
        if result.listed is None or not result.attacked:
            continue
        before, suite = attacks[:place], result.listed.suite
        same_suite = [r for r in before if suite and r.listed and r.listed.suite == suite]
        for others in ([], same_suite, before):
            attacked = np.ones(len(result.robust), bool)
            for other in (clean, *others):
                attacked[: len(other.robust)] &= other.robust[: len(attacked)]
            if attacked.sum() == result.attacked:
                break
        yield result, attacked, attacked & ~result.robust


def _steps(result: Result, threat: Threat) -> int:
    """Return the number of steps of an attack, or of the attack in it."""
    settings = result.listed.attack.settings(threat) if result.listed else {}
    while "attack" in settings:
        settings = settings["attack"]
    return settings.get("steps", 1)


@sanity_check("more steps")
def more_steps(sample: Sample) -> Measurement:
    """More steps must not leave more images right."""
    few, many = sample.craft(PGD_10, "PGD-10").right, sample.pgd_50.right
    text = f"PGD-10 leaves {few.sum()} of {sample.n} images right, PGD-50 {many.sum()}."
    return many.mean() - few.mean(), text, _more(many, few)


@sanity_check("larger eps")
def larger_eps(sample: Sample) -> Measurement:
    """An attack at twice eps must break more images, unless eps already breaks all or none."""
    eps, near = sample.threat.eps, sample.pgd_50.right
    far = sample.craft(PGD_50, "2 eps", 2 * eps).right
    some = NEAR_ZERO < near.mean() < 1 - NEAR_ZERO
    text = (
        f"PGD-50 leaves {near.sum()} of {sample.n} images right at eps {eps:.4g}, "
        f"{far.sum()} at {2 * eps:.4g}."
    )
    warns = _more(far, near) or (some and far.sum() >= near.sum())
    return far.mean() - near.mean(), text, warns


@sanity_check("huge eps")
def huge_eps(sample: Sample) -> Measurement:
    """Almost no image may stay right at an eps that can turn every image grey."""
    (low, high), shape = sample.threat.box, sample.x.shape[1:]
    factors = sample.threat.factors(shape)
    factors = np.ones(shape) if factors is None else factors
    if not factors.all():
        return None, "Not measured: some features cannot change.", False
    order = {"linf": np.inf, "l2": 2, "l1": 1}[sample.threat.norm]
    eps = 0.5 * (high - low) * float(np.linalg.norm(1 / factors.ravel(), order))
    left = int(sample.craft(APGD_50, f"eps {eps:.4g}", eps).right.sum())
    text = (
        f"At eps {eps:.4g}, enough to turn every image grey, APGD-CE with 50 steps leaves {left} "
        f"of {sample.n} images right; fewer than {100 * NEAR_ZERO:g} % are expected."
    )
    return left / sample.n, text, left >= NEAR_ZERO * sample.n


@sanity_check("one step against many")
def one_step(sample: Sample) -> Measurement:
    """One long step must not beat many short ones."""
    one, many = sample.craft(ONE_STEP, "FGSM").right, sample.pgd_50.right
    counts = f"{one.sum()} of {sample.n} images right, PGD-50 {many.sum()}"
    text = f"One step of eps (FGSM) leaves {counts}."
    return many.mean() - one.mean(), text, _more(many, one)


@sanity_check("zero gradients")
def zero_gradients(sample: Sample) -> Measurement:
    """Gradients of the loss must be finite and not zero."""

    def is_useless(loss: Any, x: Any, y: Any) -> Any:
        logits = float32_logits(sample.logits_fn)
        gradient = input_gradient(lambda x: loss(logits(x), y), x)
        flat = tf.reshape(gradient, [tf.shape(x)[0], -1])
        usable = tf.reduce_all(tf.math.is_finite(flat), 1) & tf.reduce_any(flat != 0, 1)
        return tf.cast(~usable, tf.float32)

    def measure(x: Any, y: Any) -> Any:
        return is_useless(losses.cross_entropy, x, y), is_useless(losses.margin, x, y)

    entropy, margin = sample.measure(measure, sample.x).sum(axis=1).astype(int)
    text = (
        f"The gradient of the cross entropy is zero or not finite at {entropy} of {sample.n} clean "
        f"images, that of the difference of two logits at {margin}."
    )
    if entropy > margin:
        text += " The logits are so large that the loss is flat: divide them by a constant."
    return entropy / sample.n, text, entropy > FEW * sample.n


@sanity_check("logit scale")
def logit_scale(sample: Sample) -> Measurement:
    """Dividing the logits by a constant must not let PGD break more images than all attacks did.

    It changes no prediction. With large logits the softmax is saturated and its gradient vanishes
    (Carlini and Wagner, 2016, arXiv:1607.04311); with small ones the gradient points at all other
    classes alike instead of the nearest one (Hitaj et al., 2021, arXiv:2103.01914).
    """
    ordered = np.sort(sample.logits, axis=1)  # the label is first, as all images are right
    margin = float(np.median(ordered[:, -1] - ordered[:, -2]))
    if not 0 < margin < math.inf:
        return None, f"Not measured: the median margin of the clean images is {margin:.3g}.", False
    logits, scale = float32_logits(sample.logits_fn), margin / MARGIN
    rescaled = sample.craft(PGD_50, "rescaled", search=lambda x: logits(x) / scale).right
    left, standing = sample.pgd_50.right.copy(), worst_case(sample.results)
    attacked = sample.rows < len(standing)
    left[attacked] &= standing[sample.rows[attacked]]
    text = (
        f"PGD-50 and the attacks of the evaluation leave {left.sum()} of {sample.n} images right; "
        f"PGD-50 alone leaves {rescaled.sum()} with the logits divided by {scale:.3g}, which makes "
        f"their median margin {MARGIN:g}."
    )
    warns = _more(left, rescaled)
    if warns:
        text += " Add an attack that no scale weakens: {name: apgd, loss: dlr}, or autoattack."
    return left.mean() - rescaled.mean(), text, warns


@sanity_check("random output")
def random_output(sample: Sample) -> Measurement:
    """The same images must give the same logits, whatever their batch.

    Otherwise attacks must average over draws, or each accuracy is one of these batches alone.
    """
    first, second = sample.logits, sample.outputs()
    difference, largest = np.abs(first - second).max(), np.abs(first).max()
    text = (
        f"Two passes over the same {sample.n} images differ by at most {difference:.3g} in a "
        f"logit; the largest logit is {largest:.3g}."
    )
    rounding = 1e-4 * max(1, largest)
    if not difference <= rounding:
        return difference, text, True
    size = -(-min(sample.n, sample.batch_size) // 2)
    apart = np.abs(first - sample.outputs(size)).max()
    warns = not apart <= rounding
    if warns:
        text += (
            f" In batches of {size} they differ by {apart:.3g}, so each image's logits depend on "
            "the others of its batch, as those of BatchNorm in training mode: call such layers "
            "with training=False."
        )
    return max(difference, apart) if warns else difference, text, warns


@sanity_check("logits")
def probabilities(sample: Sample) -> Measurement:
    """The outputs must be logits: a softmax hides how far a loss can rise."""
    sums, least = sample.logits.sum(axis=1), sample.logits.min()
    warns = kind_of_outputs(sample.logits) != "logits"
    kind = "probabilities, not logits" if warns else "logits, not probabilities"
    text = (
        f"The outputs of {sample.n} images are at least {least:.3g} and sum to {sums.min():.3g} to "
        f"{sums.max():.3g}: {kind}."
    )
    return np.abs(sums - 1).max(), text, warns


@sanity_check("scaling")
def scaling(sample: Sample) -> Measurement:
    """The network must not be more accurate on images scaled to another usual range."""
    (x, y), (low, high) = sample.unselected, sample.threat.box
    unscaled = right(outputs(sample.logits_fn, x, sample.batch_size), y)
    best = best_scaled(sample.logits_fn, x, y, (low, high), sample.batch_size)
    text = (
        f"The network is right on {unscaled.sum()} of {len(x)} images in [{low:g}, {high:g}], "
        f"and on at most {best.right.sum()} of them scaled in another usual way "
        f"({best.name})."
    )
    warns = _more(best.right, unscaled)
    if warns:
        text += f" Put the scaling inside the network: keras.layers.{best.layer}."
    return best.right.mean() - unscaled.mean(), text, warns


@sanity_check("random noise")
def random_noise(sample: Sample) -> Measurement:
    """An attack must reach a higher loss than uniform noise does."""

    def draw(images: np.ndarray, number: int) -> list[tf.Tensor]:
        numbered = noise.seed_for(sample.seed, number, "check")
        return [sample.threat.random_start(tf.constant(images), numbered)]

    (noisy,) = map_batches(draw, sample.x, batch_size=sample.batch_size, numbered=True)
    check_adversarial("uniform noise", sample.threat, noisy, sample.x)
    attack, chance = sample.losses(sample.pgd_50.images, noisy)
    beaten = int((~(attack > chance)).sum())
    text = (
        f"The mean cross entropy is {attack.mean():.3g} under PGD-50 and {chance.mean():.3g} under "
        f"uniform noise; the noise's is as high or higher at {beaten} of {sample.n} images."
    )
    warns = beaten > 0.1 * sample.n or not attack.mean() > chance.mean()
    return beaten / sample.n, text, warns


@sanity_check("first-order distance")
def first_order(sample: Sample) -> Measurement:
    """Attacks must break few images whose class boundary is, to first order, beyond eps.

    If they break many of them, the gradients are misleading.
    """

    def distances(x: Any, y: Any) -> Any:
        return first_order_distances(float32_logits(sample.logits_fn), x, y, sample.threat)

    few = max(1, PIXELS // sample.x[0].size)
    bound, distance = sample.measure(distances, sample.x, min(few, sample.batch_size))
    eps, standing = sample.threat.eps, worst_case(sample.results)
    compared = sample.rows < len(standing)
    safe = bound[compared] > eps
    broken = int((safe & ~standing[sample.rows[compared]]).sum())
    text = (
        f"To first order the median distance of the nearest class is {np.median(distance):.3g} "
        f"(more than eps at {(distance > eps).sum()} of {sample.n} clean images); its lower bound "
        f"by Proposition 2 of ATLAS is {np.median(bound):.3g} (more than eps at "
        f"{(bound > eps).sum()}, of which the attacks broke {broken})."
    )
    return np.median(bound), text, broken > max(1, FEW * sample.n)


CHECKS = (
    black_box,
    more_steps,
    larger_eps,
    huge_eps,
    one_step,
    zero_gradients,
    logit_scale,
    random_output,
    probabilities,
    scaling,
    random_noise,
    first_order,
)
