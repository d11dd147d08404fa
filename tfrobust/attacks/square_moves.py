"""The moves of the Square Attack: how it starts, and what it tries in a window.

`start` takes the whole batch and a seed; `propose` takes any rows and their numbers u [B, 5 + C],
U[-1, 1): corners of two windows, the turn of a pattern, the sign of each channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfrobust import noise
from tfrobust.threat import Threat

TINY = 1e-12  # keeps 0 / 0 at 0


class Squares:
    """In the Linf ball: every pixel at x - eps or x + eps, a window of one sign a channel."""

    def __init__(self, threat: Threat, sides: Sequence[int]):
        self.threat, self.sides = threat, tf.constant(sides)

    def start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """x with vertical stripes: +-eps for each column and channel."""
        sign = signs(noise.uniform(tf.stack([tf.shape(x)[0], 1, *x.shape[2:]]), seed))
        return self.threat.project(x + self.threat.eps * sign, x)

    def propose(self, i: tf.Tensor, x: tf.Tensor, x_adv: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        """x_adv with window i moved by +-2 eps a channel, so to an edge of the ball."""
        side = self.sides[i]
        shift = 2.0 * self.threat.eps * signs(u[:, None, None, 5:])
        inside = window(corner(u[:, :2], side, x), side, x)
        return self.threat.project(tf.where(inside, x_adv + shift, x_adv), x)


class Pyramids:
    """On the edge of the L2 or the L1 ball: a window gains what is free or another gives up.

    Windows get a pair of pyramids, one up and one down, added to the shape that they have.
    """

    def __init__(self, threat: Threat, sides: Sequence[int]):
        self.threat, self.sides = threat, tf.constant(sides)
        kinds, which = np.unique(sides, return_inverse=True)
        self.stride = int(kinds[-1])
        patterns = np.zeros([len(kinds), self.stride, self.stride], np.float32)
        for kind, side in enumerate(kinds):
            patterns[kind, :side, :side] = pattern(side, threat.norm)
        self.which = tf.constant(which)
        self.patterns = tf.constant(patterns.reshape(len(kinds), -1))

    def start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """x with tiles, 5 or a few more along the shorter side and as many as fit along the other:
        each a pattern, up or down in every channel."""
        height, width, channels = x.shape[1:]
        shorter = min(height, width)
        side = max(shorter // 5, 1)
        before = max((shorter - 5 * side) // 2, 0)
        down, across = ((n - before) // side for n in (height, width))
        tile = pattern(side, self.threat.norm)
        u = noise.uniform([tf.shape(x)[0], down, 1, across, 1, 1 + channels], seed)
        turned = tf.where(u[..., :1] > 0, tile.T[:, None, :, None], tile[:, None, :, None])
        tiles = tf.reshape(turned * signs(u[..., 1:]), [-1, down * side, across * side, channels])
        after = (height - before - down * side, width - before - across * side)
        delta = tf.pad(tiles, [(0, 0), (before, after[0]), (before, after[1]), (0, 0)])
        return self._on_the_edge(x, delta)

    def propose(self, i: tf.Tensor, x: tf.Tensor, x_adv: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        """x_adv with a pattern in one window, and a second window at 0 outside the first."""
        side, delta = self.sides[i], x_adv - x
        first = corner(u[:, :2], side, x)
        here, there = window(first, side, x), window(corner(u[:, 2:4], side, x), side, x)
        old = tf.where(here, delta, 0.0)
        old = old / (TINY + self._size(old, (1, 2)))
        drawn = self._drawn(i, first, u[:, 4] > 0, x) * signs(u[:, None, None, 5:])
        fresh = tf.where(here, drawn + old, 0.0)
        size = self._size(fresh, (1, 2))
        # In a window of one pixel the two may cancel: the size must go somewhere.
        fresh = tf.where(here & (size == 0.0), drawn, fresh / (TINY + size))
        fresh *= self._share(delta, here | there)
        return self._on_the_edge(x, tf.where(here, fresh, tf.where(there, 0.0, delta)))

    def _share(self, delta: tf.Tensor, windows: tf.Tensor) -> tf.Tensor:
        """The size that each channel may have in the first window: [B, 1, 1, C]."""
        channels = delta.shape[-1]
        released = self._size(tf.where(windows, delta, 0.0), (1, 2))
        eps, total = self.threat.eps, self._size(delta, (1, 2, 3))
        if self.threat.norm == "l2":
            return tf.sqrt(tf.maximum(eps**2 - total**2, 0.0) / channels + released**2)
        return tf.maximum(eps - total, 0.0) + released * channels

    def _drawn(self, i: tf.Tensor, first: tf.Tensor, turned: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """The pattern of window i at its corner, turned or not: [B, H, W, 1]; noise elsewhere."""
        down, across = (
            tf.clip_by_value(tf.range(x.shape[1 + axis]) - first[:, axis, None], 0, self.stride - 1)
            for axis in (0, 1)
        )
        steps = tf.where(turned[:, None], [1, self.stride], [self.stride, 1])
        places = (down * steps[:, :1])[:, :, None] + (across * steps[:, 1:])[:, None, :]
        return tf.gather(self.patterns[self.which[i]], places)[..., None]

    def _size(self, delta: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
        if self.threat.norm == "l2":
            return tf.sqrt(tf.reduce_sum(delta * delta, axes, keepdims=True))
        return tf.reduce_sum(tf.abs(delta), axes, keepdims=True)

    def _on_the_edge(self, x: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
        if self.threat.norm == "l2":
            unit = delta / (TINY + self._size(delta, (1, 2, 3)))
            return tf.clip_by_value(x + self.threat.eps * unit, *self.threat.box)
        return self.threat.project(x + delta, x)


def signs(u: tf.Tensor) -> tf.Tensor:
    """-1 or 1."""
    return tf.where(u < 0.0, -1.0, 1.0)


def corner(u: tf.Tensor, side: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The first row and column [B, 2] of a window; as in the public implementation never the last
    possible ones, so windows smaller than the image leave its last row and column alone."""
    room = tf.cast(x.shape[1:3] - side, tf.float32)
    return tf.cast(0.5 * (u + 1.0) * room, tf.int32)


def window(first: tf.Tensor, side: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """bool [B, H, W, 1]: the pixels of the windows with these corners [B, 2]."""
    down, across = (
        (tf.range(x.shape[1 + axis]) >= first[:, axis, None])
        & (tf.range(x.shape[1 + axis]) < first[:, axis, None] + side)
        for axis in (0, 1)
    )
    return (down[:, :, None] & across[:, None, :])[..., None]


def pattern(side: int, norm: str) -> np.ndarray:
    """[side, side]: a pyramid over the upper half, one below 0 in the lower half, of size 1."""
    power, order = (2, 2) if norm == "l2" else (4, 1)
    halves = [_pyramid(side // 2, side, power), _pyramid(side - side // 2, side, power)]
    up, down = (half / max(np.linalg.norm(half.ravel(), order), TINY) for half in halves)
    both = np.concatenate([up, -down])
    return (both / np.linalg.norm(both.ravel(), order)).astype(np.float32)


def _pyramid(height: int, width: int, power: int) -> np.ndarray:
    """Nested squares about the middle: square k, of side 2k + 1, adds 1 / (k + 1)^power."""
    down, across = (np.abs(np.arange(n) - n // 2) for n in (height, width))
    rings = 1.0 / np.arange(1, max(height // 2, width // 2) + 2) ** power
    return np.cumsum(rings[::-1])[::-1][np.maximum(down[:, None], across)]
