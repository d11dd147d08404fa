"""RayS: the nearest boundary along sign vectors (Chen and Gu, 2020, arXiv:2006.12792)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks.base import Attack, LogitsFn, Outcome, check_one_eps
from tfrobust.attacks.compaction import State, hunt
from tfrobust.errors import require, require_at_least
from tfrobust.norms import rows
from tfrobust.serialization import serializable
from tfrobust.threat import Threat

TOLERANCE = 1e-3  # the L2 length at which a bisection ends, as in the public implementation


class Nearest(NamedTuple):
    """The nearest misclassified images of a search inside the box, at any distance.

    Attributes:
        images: The images [B, H, W, C]; the clean image if the search met no misclassified one.
        distance: The Linf distances, float32 [B]: inf if the search met no misclassified image, and
            0 if the clean image is misclassified.
        queries: The number of queries for each image, int32 [B].
    """

    images: tf.Tensor
    distance: tf.Tensor
    queries: tf.Tensor


@serializable
@dataclasses.dataclass(frozen=True)
class RayS(Attack):
    """A search for the sign vector v whose ray x + d v, cut by the box, meets the boundary soonest.

    Blocks of v change their sign in turn: first all of it, then halves, quarters, ... of the
    flattened image. If the image at the smallest d so far stays misclassified, bisection looks for
    the boundary on the new ray, and keeps the change if that boundary is nearer. The attack uses
    predicted classes only, and works in Linf only. An example stops at its first misclassified
    image within eps.

    Images are flattened with the channels last. The public implementation has them first, so its
    blocks are the same only for one channel.

    Args:
        queries: The number of queries for each image, besides that of the clean image. The last
            query is at the edge of the ball in the best direction. Its image is returned if the
            search has met no misclassified image.
    """

    needs_gradients = False

    queries: int = 10000

    def __post_init__(self) -> None:
        require_at_least(1, queries=self.queries)

    @property
    def title(self) -> str:
        return f"RayS-{self.queries}"

    def check(self, threat: Threat, image_shape: tuple[int, ...] | None = None) -> None:
        """Raise a UserError unless the norm is Linf."""
        super().check(threat, image_shape)
        require(threat.norm == "linf", "threat.norm", "linf for RayS", threat.norm)

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        """Search as described at `Attack.run`. There is no noise, so the seed does not matter."""
        end = self._search(logits_fn, x, y, threat, at_the_edge=True)
        images = _along(end["x"], end["sign"], tf.minimum(end["d"], threat.eps), threat)
        gradients = tf.zeros_like(end["queries"])
        return Outcome(tf.stop_gradient(images), end["broken"], end["queries"], gradients)

    def nearest(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, box: tuple[float, float] = (0.0, 1.0)
    ) -> Nearest:
        """Search up to the last query, whatever the distance.

        The mean distance over correctly classified images is the ADBD of the paper.

        Args:
            logits_fn, x, y: As in `run`.
            box: The range of valid pixels, (low, high).
        """
        threat = Threat("linf", 0.0, box)
        end = self._search(logits_fn, x, y, threat, at_the_edge=False)
        reached = tf.math.is_finite(end["d"])
        images = _along(end["x"], end["sign"], tf.where(reached, end["d"], 0.0), threat)
        distance = tf.where(reached, threat.distance(images, end["x"]), end["d"])
        return Nearest(tf.stop_gradient(images), tf.stop_gradient(distance), end["queries"])

    def _search(
        self, logits_fn: LogitsFn, x: Any, y: Any, threat: Threat, *, at_the_edge: bool
    ) -> State:
        """Return the last state, in which x + d * sign, cut by the box, is the nearest image.

        d is the Linf length before the cut. An example either tries a block at length d, or bisects
        between d and `low`, at which the image is classified correctly; then it takes the next
        block. Examples of both kinds share a pass.
        """
        self.check(threat)
        check_one_eps(threat)
        x, y = tf.convert_to_tensor(x), tf.cast(y, tf.int32)
        pixels, reach = math.prod(x.shape[1:]), _longest(threat, x.shape[1:])
        gap = TOLERANCE / math.sqrt(pixels)
        place = tf.reshape(tf.range(pixels), [1, *x.shape[1:]])

        def wrong_at(images: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
            return ~losses.correct(logits_fn(images), tf.gather(y, row))

        def tick(i: tf.Tensor, s: State) -> State:
            edge = at_the_edge & (i == self.queries - 1)
            block = (place >= rows(s["first"], x)) & (place < rows(s["first"] + s["size"], x))
            turned = block & ~rows(s["accepted"] | edge, x)
            sign = tf.where(turned, -s["sign"], s["sign"])
            # At the length of the box the image is a corner of the box, and nothing is beyond it.
            length = tf.where(s["bisecting"], 0.5 * (s["low"] + s["d"]), tf.minimum(s["d"], reach))
            length = tf.where(edge, threat.eps, length)
            images = _along(s["x"], sign, length, threat)
            wrong = wrong_at(images, s["row"])
            nearer = wrong & (length < s["d"])
            d = tf.where(nearer, length, s["d"])
            low = tf.where(s["bisecting"], tf.where(wrong, s["low"], length), 0.0)
            bisecting = tf.where(s["bisecting"], d - low > gap, wrong)
            first = tf.where(bisecting, s["first"], s["first"] + s["size"])
            inside = (length <= threat.eps) | (threat.distance(images, s["x"]) <= threat.eps)
            at_end = first >= pixels  # every block has had its turn, so the size is halved
            return {
                "row": s["row"],
                "x": s["x"],
                "sign": tf.where(rows(nearer, x), sign, s["sign"]),
                "d": d,
                "low": low,
                "bisecting": bisecting,
                "accepted": bisecting & (s["accepted"] | nearer),
                "first": tf.where(at_end, 0, first),
                "size": tf.where(at_end, (s["size"] + 1) // 2, s["size"]),
                "broken": nearer & inside,
                "queries": s["queries"] + 1,
            }

        broken = wrong_at(x, tf.range(tf.shape(x)[0]))
        zeros = tf.zeros_like(broken, tf.int32)
        state = {
            "x": x,
            "sign": tf.ones_like(x),
            "d": tf.where(broken, 0.0, float("inf")),
            "low": tf.zeros_like(broken, tf.float32),
            "bisecting": tf.zeros_like(broken),
            "accepted": tf.zeros_like(broken),
            "first": zeros,
            "size": zeros + pixels,
            "broken": broken,
            "queries": zeros + 1,
        }
        return hunt(tick, state, self.queries)


def _along(x: tf.Tensor, sign: tf.Tensor, length: tf.Tensor, threat: Threat) -> tf.Tensor:
    return tf.clip_by_value(x + threat.from_ball(rows(length, x) * sign), *threat.box)


def _longest(threat: Threat, shape: tuple[int, ...]) -> float:
    """Return the length from which on no feature moves further, as all are at the box."""
    (low, high), factors = threat.box, threat.factors(shape)
    return high - low if factors is None else float((high - low) / factors[factors > 0].min())
