"""Square Attack: random search with squares (Andriushchenko et al., 2020, arXiv:1912.00049)."""

from __future__ import annotations

import bisect
import dataclasses
from typing import Any

import tensorflow as tf

from tfrobust import losses, noise
from tfrobust.attacks.base import Attack, LogitsFn, Outcome, check_one_eps
from tfrobust.attacks.compaction import State, hunt
from tfrobust.attacks.square_moves import Pyramids, Squares
from tfrobust.errors import number, require_at_least
from tfrobust.norms import rows
from tfrobust.serialization import serializable
from tfrobust.threat import Threat

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@serializable
@dataclasses.dataclass(frozen=True)
class Square(Attack):
    """Random search: new perturbations of random windows, kept if max_{i != y} z_i - z_y grows.

    Under Linf, the search begins with vertical stripes of +-eps, and each window moves by +-2 eps
    per channel. For L2 and L1, see square_moves.py. An example stops at its first misclassified
    image. No gradients are used.

    The windows of series [B, T, C] are segments of time, and those of tables [B, F] are segments
    of features; the stripes are single places in time or single features.

    Args:
        queries: The number of windows in each restart. The clean image and the start of each
            restart cost one query more: at most 1 + restarts * (1 + queries) in all.
        p_init: The share of the image that the first windows cover. It is halved after windows 10,
            50, 200, 500, 1000, 2000, 4000, 6000 and 8000, whatever `queries` is.
        restarts: The number of random starts.
    """

    needs_gradients = False

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    def __post_init__(self) -> None:
        require_at_least(1, queries=self.queries, restarts=self.restarts)
        object.__setattr__(self, "p_init", number("p_init", self.p_init, above=0, at_most=1))

    @property
    def title(self) -> str:
        words = [f"Square-{self.queries}" + (f"x{self.restarts}" if self.restarts > 1 else "")]
        words += [f"p {self.p_init:g}"] if self.p_init != 0.8 else []
        return " ".join(words)

    def share(self, i: int) -> float:
        """Return the share of the image that window i = 0, 1, ... covers."""
        return self.p_init / 2 ** bisect.bisect_left(HALVED_AFTER, i)

    def side(self, i: int, height: int, width: int, norm: str, flat: bool = False) -> int:
        """Return the side of window i in pixels, sqrt(share * area), at most the image's.

        For flat inputs, which have one row, it is the length share * width of a segment.
        """
        area = self.share(i) * height * width
        side = max(round(area if flat else area**0.5), 1)
        if norm != "linf":  # a pyramid has a middle
            side = max(side, 3) | 1
        return min(side, width if flat else min(height, width))

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        check_one_eps(threat)
        x, y = tf.convert_to_tensor(x), tf.cast(y, tf.int32)
        shape, flat = x.shape[1:], len(x.shape) < 4
        if flat:
            height, width, channels = 1, shape[0], shape[1:].num_elements()
            x = tf.reshape(x, [-1, height, width, channels])
            threat = threat.reshaped(shape, x.shape[1:])
        height, width, channels = x.shape[1:]
        sides = [self.side(i, height, width, threat.norm, flat) for i in range(self.queries)]
        moves = (Squares if threat.norm == "linf" else Pyramids)(threat, sides, flat)

        def look(images: tf.Tensor, row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = logits_fn(tf.reshape(images, [-1, *shape]) if flat else images)
            labels = tf.gather(y, row)
            return losses.margin(logits, labels), ~losses.correct(logits, labels)

        def tick(i: tf.Tensor, s: State) -> State:
            """Try the start of a restart, or its next window."""
            row, restart, k = s["row"], i // (1 + self.queries), i % (1 + self.queries)
            drawn, first = noise.fold(noise.fold(seed, restart), k), tf.equal(k, 0)

            def start() -> tf.Tensor:
                return tf.gather(moves.start(x, drawn), row)

            def moved() -> tf.Tensor:
                # The public implementation has one window and one draw of signs for the whole
                # batch. Here every example has its own. The search for one example is the same,
                # but its result does not depend on the other examples of the batch.
                u = noise.uniform([tf.shape(x)[0], 5 + channels], drawn)
                return moves.propose(k - 1, s["x"], s["x_adv"], tf.gather(u, row))

            images = tf.cond(first, start, moved)
            value, broken = look(images, row)
            better = first | broken | (value > s["value"])
            best = broken | (value > s["highest"])
            return {
                "row": row,
                "x": s["x"],
                "x_adv": tf.where(rows(better, x), images, s["x_adv"]),
                "value": tf.where(better, value, s["value"]),
                "images": tf.where(rows(best, x), images, s["images"]),
                "highest": tf.where(best, value, s["highest"]),
                "broken": broken,
                "queries": s["queries"] + 1,
            }

        value, broken = look(x, tf.range(tf.shape(x)[0]))
        zeros = tf.zeros_like(broken, tf.int32)
        state = {
            "x": x,
            "x_adv": x,
            "value": value,
            "images": x,
            "highest": value,
            "broken": broken,
            "queries": zeros + 1,
        }
        end = hunt(tick, state, self.restarts * (1 + self.queries))
        images = tf.reshape(end["images"], [-1, *shape]) if flat else end["images"]
        return Outcome(tf.stop_gradient(images), end["broken"], end["queries"], zeros)
