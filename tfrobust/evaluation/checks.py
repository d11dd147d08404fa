"""Signs that a robust accuracy is a false sense of security.

Gradients that lead nowhere stop an attack and not an attacker (Athalye et al., 2018,
arXiv:1802.00420); the signs are those of Carlini et al., 2019, arXiv:1902.06705.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.stats import binomtest

from tfrobust import losses, noise, norms
from tfrobust.attacks import APGD, FGSM, PGD, Attack
from tfrobust.attacks.gradient import differentiated, jacobian
from tfrobust.evaluation.craft import (
    BATCH_SIZE,
    Crafted,
    LogitsFn,
    Predict,
    batches,
    compiled,
    craft,
    predictor,
)
from tfrobust.evaluation.inputs import best_scaled, outputs, right
from tfrobust.evaluation.results import Check, Result, worst_case
from tfrobust.models.saved import are_probabilities
from tfrobust.threat import Threat

ONE, SHORT, LONG = FGSM(start="none", step_scale=1.0), PGD(steps=10), PGD(steps=50)
FAR = APGD(steps=50)  # PGD's steps in an L1 ball are one pixel each
STRONG = 20  # steps of a white-box attack that black-box ones are held against
BLACK_BOX = 0.002  # of the images; what black-box attacks may break alone
FEW = 0.01  # of the images
CHANCE = 0.01  # the probability below which a difference is none of chance
NEAR_ZERO = 0.05


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
    """The checks of a finished evaluation, none if no image is right.

    results: its results, the clean one first. The checks on the network itself attack the first
    `examples` images that are right: about 200 forward and backward passes for each of them, and
    one more for each class; and look at the first `examples` of all, scaled in other ways.
    """
    rows = np.flatnonzero(results[0].robust)[:examples]
    if not len(rows):
        return []
    whole = (x[:examples], y[:examples])
    seen = Seen(
        logits_fn, x[rows], y[rows], threat, results, rows, whole, seed, batch_size, progress
    )
    return [check(seen) for check in CHECKS]


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """The images that are looked at, and what several checks share."""

    logits_fn: LogitsFn
    x: np.ndarray
    y: np.ndarray
    threat: Threat
    results: Sequence[Result]
    rows: np.ndarray  # their places in the test set
    whole: tuple[np.ndarray, np.ndarray]  # images and labels, right or wrong
    seed: int
    batch_size: int
    progress: bool

    def attacked(self, attack: Attack, name: str, eps: float | None = None) -> Crafted:
        threat = self.threat if eps is None else self.threat.at(eps)
        label = f"check: {name}" if self.progress else None
        options: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size}
        options |= {"progress": label, "predict": self.predict}
        return craft(self.logits_fn, self.x, self.y, attack, threat, **options)

    @cached_property
    def predict(self) -> Predict:
        return predictor(self.logits_fn, self.batch_size)

    @cached_property
    def long(self) -> Crafted:
        return self.attacked(LONG, "PGD-50")

    def measured(self, function: Callable[..., Any], images: np.ndarray) -> np.ndarray:
        """function(images, labels) -> arrays [B], of every batch: float32 [arrays, n]."""
        traced = compiled(function, images.shape[1:], tf.TensorSpec([None], tf.int32))
        labels = self.y.astype(np.int32)
        parts = [
            traced(tf.constant(images[b]), tf.constant(labels[b]))
            for b in batches(len(images), self.batch_size)
        ]
        return np.concatenate([np.stack([np.asarray(a) for a in part]) for part in parts], axis=1)

    def losses(self, *sets: np.ndarray) -> list[np.ndarray]:
        """The cross entropy [n] of each set of images [n, H, W, C]."""

        def look(x: Any, y: Any) -> Any:
            return [losses.cross_entropy(tf.cast(self.logits_fn(x), tf.float32), y)]

        return [self.measured(look, images)[0] for images in sets]

    @cached_property
    def logits(self) -> np.ndarray:
        return self.outputs()

    def outputs(self) -> np.ndarray:
        """Logits [n, C] of a pass of their own, not compiled: a number that compiling would fix
        is drawn anew."""
        return outputs(self.logits_fn, self.x, self.batch_size)

    @property
    def n(self) -> int:
        return len(self.x)


def _check(name: str, value: float, text: str, warns: Any) -> Check:
    return Check(name, float(value) if math.isfinite(value) else None, text, bool(warns))


def _more(right: np.ndarray, other: np.ndarray) -> bool:
    """Whether more of the same images are right than in the other case, and not by chance: a sign
    test of those that differ. Random starts alone change a few."""
    gained, differ = int((right & ~other).sum()), int((right != other).sum())
    if not differ:
        return False
    return bool(binomtest(gained, differ, alternative="greater").pvalue < CHANCE)


def black_box(seen: Seen) -> Check:
    """Attacks without gradients must not find what those with gradients miss."""
    name = "black box against white box"
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
        return Check(name, None, text, False)
    names = ", ".join(result.name for result, _, _ in white)
    text = f"{'; '.join(told)} that the white-box attacks ({names}) did not break."
    return _check(name, max(shares), text, any(signs))


def _tried(results: Sequence[Result]) -> Iterator[tuple[Result, np.ndarray, np.ndarray]]:
    """Of each attack the images [n] that it ran on, and those of them that it broke.

    It ran on what was right when clean, or on what its suite, or all attacks before it, had left:
    each of these lies within the one before, so the number of attacked images tells which.
    """
    clean, *attacks = results
    for place, result in enumerate(attacks):
        if result.trial is None or not result.attacked:
            continue
        before, suite = attacks[:place], result.trial.suite
        own = [r for r in before if suite and r.trial and r.trial.suite == suite]
        for others in ([], own, before):
            ran = np.ones(len(result.robust), bool)
            for other in (clean, *others):
                ran[: len(other.robust)] &= other.robust[: len(ran)]
            if ran.sum() == result.attacked:
                break
        yield result, ran, ran & ~result.robust


def _steps(result: Result, threat: Threat) -> int:
    return result.trial.attack.settings(threat).get("steps", 1) if result.trial else 1


def more_steps(seen: Seen) -> Check:
    """More steps must not leave more images right."""
    few, many = seen.attacked(SHORT, "PGD-10").right, seen.long.right
    text = f"PGD-10 leaves {few.sum()} of {seen.n} images right, PGD-50 {many.sum()}."
    return _check("more steps", many.mean() - few.mean(), text, _more(many, few))


def larger_eps(seen: Seen) -> Check:
    """Twice the radius must break more, if the radius breaks some and leaves some."""
    eps, near = seen.threat.eps, seen.long.right
    far = seen.attacked(LONG, "2 eps", 2 * eps).right
    some = NEAR_ZERO < near.mean() < 1 - NEAR_ZERO
    text = (
        f"PGD-50 leaves {near.sum()} of {seen.n} images right at eps {eps:.4g}, "
        f"{far.sum()} at {2 * eps:.4g}."
    )
    warns = _more(far, near) or (some and far.sum() >= near.sum())
    return _check("larger eps", far.mean() - near.mean(), text, warns)


def huge_eps(seen: Seen) -> Check:
    """From everywhere in the box to plain grey: nothing that is seen stands there."""
    low, high = seen.threat.box
    pixels = seen.x[0].size
    ways = {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}
    eps = 0.5 * (high - low) * ways[seen.threat.norm]
    left = int(seen.attacked(FAR, f"eps {eps:.4g}", eps).right.sum())
    text = (
        f"At eps {eps:.4g}, enough to turn every image grey, APGD-CE with 50 steps leaves {left} "
        f"of {seen.n} images right; fewer than {100 * NEAR_ZERO:g} % are expected."
    )
    return _check("huge eps", left / seen.n, text, left >= NEAR_ZERO * seen.n)


def one_step(seen: Seen) -> Check:
    """One long step must not beat many short ones."""
    one, many = seen.attacked(ONE, "FGSM").right, seen.long.right
    text = (
        f"One step of eps (FGSM) leaves {one.sum()} of {seen.n} images right, PGD-50 {many.sum()}."
    )
    return _check("one step against many", many.mean() - one.mean(), text, _more(many, one))


def zero_gradients(seen: Seen) -> Check:
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
    return _check("zero gradients", entropy / seen.n, text, entropy > FEW * seen.n)


def random_output(seen: Seen) -> Check:
    """The same images must give the same logits; else attacks must average over draws."""
    first, second = seen.logits, seen.outputs()
    difference, largest = np.abs(first - second).max(), np.abs(first).max()
    text = (
        f"Two passes over the same {seen.n} images differ by at most {difference:.3g} in a logit; "
        f"the largest logit is {largest:.3g}."
    )
    return _check("random output", difference, text, not difference <= 1e-4 * max(1, largest))


def probabilities(seen: Seen) -> Check:
    """A softmax hides from the attacks how far a loss can rise."""
    sums, least = seen.logits.sum(axis=1), seen.logits.min()
    found = are_probabilities(seen.logits)
    kind = "probabilities, not logits" if found else "logits, not probabilities"
    text = (
        f"The outputs of {seen.n} images are at least {least:.3g} and sum to {sums.min():.3g} to "
        f"{sums.max():.3g}: {kind}."
    )
    return _check("logits", np.abs(sums - 1).max(), text, found)


def scaling(seen: Seen) -> Check:
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
    return _check("scaling", best.right.mean() - here.mean(), text, warns)


def random_noise(seen: Seen) -> Check:
    """An attack must find a higher loss than chance does."""
    noisy = seen.threat.random_start(tf.constant(seen.x), noise.seed_for(seen.seed, 0, "check"))
    found, chance = seen.losses(seen.long.images, noisy.numpy())
    beaten = int((~(found > chance)).sum())
    text = (
        f"The mean cross entropy is {found.mean():.3g} under PGD-50 and {chance.mean():.3g} under "
        f"uniform noise; the noise's is as high or higher at {beaten} of {seen.n} images."
    )
    warns = beaten > 0.1 * seen.n or not found.mean() > chance.mean()
    return _check("random noise", beaten / seen.n, text, warns)


def first_order(seen: Seen) -> Check:
    """Proposition 2 of ATLAS, and equation 10, with the dual norm for a ball that is not L2:

        min_c (z_y - z_c) / (sqrt(2) (sum_c ||grad z_c||^2)^(1/2)) <= first-order distance
            = min_c (z_y - z_c) / ||grad z_y - grad z_c||.

    An image whose boundary is further than eps to first order and which falls all the same lies
    where gradients do not tell what is near.
    """
    dual = norms.DUAL[seen.threat.norm]

    def look(x: Any, y: Any) -> Any:
        logits, slopes = jacobian(lambda x: tf.cast(seen.logits_fn(x), tf.float32), x)
        classes = logits.shape[-1]
        slopes = tf.reshape(slopes, [tf.shape(x)[0], classes, -1])
        own = tf.gather(slopes, y, axis=1, batch_dims=1)[:, None]
        margin = tf.gather(logits, y, axis=-1, batch_dims=1)[:, None] - logits
        margin = tf.where(tf.one_hot(y, classes, True, False), math.inf, margin)
        distance = margin / _norms(own - slopes, dual)
        squares = tf.reduce_sum(_norms(slopes, dual) ** 2, axis=1)
        least = tf.reduce_min(margin, axis=1)
        return least / (math.sqrt(2) * tf.sqrt(squares)), tf.reduce_min(distance, axis=1)

    bound, distance = seen.measured(look, seen.x)
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
    return _check("first-order distance", np.median(bound), text, fell > max(1, FEW * seen.n))


def _norms(vectors: Any, p: str) -> Any:
    """The norm of each of [B, C, D]: [B, C]."""
    flat = tf.reshape(vectors, [-1, tf.shape(vectors)[-1]])
    return tf.reshape(norms.norm(flat, p), tf.shape(vectors)[:2])


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
