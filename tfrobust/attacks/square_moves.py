"""The moves of the Square Attack: its start, and the changes that it tries in windows.

`start` takes the whole batch and a seed. `propose` takes any rows of the batch and their random
numbers u [B, 5 + C] from U[-1, 1): two for the corner of each of two windows, one for the turn of
a pattern, and one for the sign of each channel.

Series and tables are `flat` inputs: images [B, 1, T, C] of one row, whose windows are segments of
the row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfrobust import noise
from tfrobust.threat import Threat

TINY = 1e-12  # keeps 0 / 0 at 0


class Moves:
    """The windows: squares with these sides or, in flat inputs, segments of these lengths."""

    def __init__(self, threat: Threat, sides: Sequence[int], flat: bool = False):
        self.threat, self.flat = threat, flat
        self.sizes = tf.constant([(1 if flat else side, side) for side in sides])

    def corner(self, i: tf.Tensor, u: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Return the first row and column of window i, [B, 2].

        As in the public implementation they are never the last possible ones of an image, so
        windows smaller than the image leave its last row and column alone. In a flat input they
        may be the last possible ones: otherwise the last feature of a table would never move.
        """
        room = tf.cast(x.shape[1:3] - self.sizes[i] + int(self.flat), tf.float32)
        return tf.cast(0.5 * (u + 1.0) * room, tf.int32)

    def window(self, i: tf.Tensor, first: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Return whether each pixel is in window i with the corners [B, 2]: bool [B, H, W, 1]."""
        down, across = (
            (tf.range(x.shape[1 + axis]) >= first[:, axis, None])
            & (tf.range(x.shape[1 + axis]) < first[:, axis, None] + self.sizes[i, axis])
            for axis in (0, 1)
        )
        return (down[:, :, None] & across[:, None, :])[..., None]


class Squares(Moves):
    """The moves in the Linf ball: each channel of a window moves to x - eps or to x + eps."""

    def start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Return x with vertical stripes: plus or minus eps for each column and channel."""
        sign = signs(noise.uniform(tf.stack([tf.shape(x)[0], 1, *x.shape[2:]]), seed))
        return self.threat.project(x + self.threat.reach(x) * sign, x)

    def propose(self, i: tf.Tensor, x: tf.Tensor, x_adv: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        """Return x_adv with each channel of window i moved by +-2 eps, to an edge of the ball."""
        shift = 2.0 * self.threat.reach(x) * signs(u[:, None, None, 5:])
        inside = self.window(i, self.corner(i, u[:, :2], x), x)
        return self.threat.project(tf.where(inside, x_adv + shift, x_adv), x)


class Pyramids(Moves):
    """The moves on the edge of the L2 or the L1 ball, where one window gains what another gives up.

    The first window of a pair gets a pattern, two pyramids of which one is up and one down, added
    to the shape that it has. Its size grows by that of the second window, which is set back to the
    clean image, and by what is still free within eps. All is computed in the coordinates of the
    ball, in which the factors of the threat are 1.
    """

    def __init__(self, threat: Threat, sides: Sequence[int], flat: bool = False):
        super().__init__(threat, sides, flat)
        kinds, which = np.unique(sides, return_inverse=True)
        self.stride = int(kinds[-1])
        self.width = 1 if flat else self.stride
        patterns = np.zeros([len(kinds), self.stride, self.width], np.float32)
        for kind, side in enumerate(kinds):
            patterns[kind, :side, :side] = pattern(side, threat.norm, flat)
        self.which = tf.constant(which)
        self.patterns = tf.constant(patterns.reshape(len(kinds), -1))

    def start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Return x with a pattern in each of many tiles, with a random sign in each channel.

        There are five tiles or a few more along the shorter side, and as many as fit along the
        other.
        """
        height, width, channels = x.shape[1:]
        shorter = width if self.flat else min(height, width)
        side = max(shorter // 5, 1)
        margin = max((shorter - 5 * side) // 2, 0)
        above, tall = (0, 1) if self.flat else (margin, side)
        down, across = (height - above) // tall, (width - margin) // side
        tile = pattern(side, self.threat.norm, self.flat)
        u = noise.uniform([tf.shape(x)[0], down, 1, across, 1, 1 + channels], seed)
        turned = tile.T[:, None, :, None]
        if not self.flat:
            turned = tf.where(u[..., :1] > 0, turned, tile[:, None, :, None])
        tiles = tf.reshape(turned * signs(u[..., 1:]), [-1, down * tall, across * side, channels])
        after = (height - above - down * tall, width - margin - across * side)
        delta = tf.pad(tiles, [(0, 0), (above, after[0]), (margin, after[1]), (0, 0)])
        return self._on_the_edge(x, self.threat.mutable(delta))

    def propose(self, i: tf.Tensor, x: tf.Tensor, x_adv: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        """Return x_adv with a pattern in one window, and x in a second window outside the first."""
        delta = self.threat.in_ball(x_adv - x)
        first, second = self.corner(i, u[:, :2], x), self.corner(i, u[:, 2:4], x)
        here, there = self.window(i, first, x), self.window(i, second, x)
        old = tf.where(here, delta, 0.0)
        old = old / (TINY + self._size(old, (1, 2)))
        drawn = self._drawn(i, first, u[:, 4] > 0, x) * signs(u[:, None, None, 5:])
        drawn = self.threat.mutable(drawn)
        fresh = tf.where(here, drawn + old, 0.0)
        size = self._size(fresh, (1, 2))
        # In a window of one pixel the pattern and the old shape may cancel. The pattern alone then
        # takes the size.
        fresh = tf.where(here & (size == 0.0), drawn, fresh / (TINY + size))
        fresh *= self._share(delta, here | there)
        return self._on_the_edge(x, tf.where(here, fresh, tf.where(there, 0.0, delta)))

    def _share(self, delta: tf.Tensor, windows: tf.Tensor) -> tf.Tensor:
        """Return the size that each channel may have in the first window, [B, 1, 1, C]."""
        channels = delta.shape[-1]
        released = self._size(tf.where(windows, delta, 0.0), (1, 2))
        eps, total = self.threat.eps, self._size(delta, (1, 2, 3))
        if self.threat.norm == "l2":
            return tf.sqrt(tf.maximum(eps**2 - total**2, 0.0) / channels + released**2)
        return tf.maximum(eps - total, 0.0) + released * channels

    def _drawn(self, i: tf.Tensor, first: tf.Tensor, turned: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Return the pattern of window i at its corner, turned or not, [B, H, W, 1].

        The values outside the window mean nothing.
        """
        down, across = (
            tf.clip_by_value(tf.range(x.shape[1 + axis]) - first[:, axis, None], 0, self.stride - 1)
            for axis in (0, 1)
        )
        turned = turned[:, None] | self.flat
        steps = tf.where(turned, [1, self.width], [self.width, 1])
        places = (down * steps[:, :1])[:, :, None] + (across * steps[:, 1:])[:, None, :]
        return tf.gather(self.patterns[self.which[i]], places)[..., None]

    def _size(self, delta: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
        """Return the L2 or the L1 norm over some axes, which are kept with length 1."""
        if self.threat.norm == "l2":
            return tf.sqrt(tf.reduce_sum(delta * delta, axes, keepdims=True))
        return tf.reduce_sum(tf.abs(delta), axes, keepdims=True)

    def _on_the_edge(self, x: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
        """Return x + delta inside the box, with delta scaled (L2) or projected (L1) to the ball."""
        if self.threat.norm == "l2":
            unit = self.threat.from_ball(delta / (TINY + self._size(delta, (1, 2, 3))))
            return tf.clip_by_value(x + self.threat.eps * unit, *self.threat.box)
        return self.threat.project(x + self.threat.from_ball(delta), x)


def signs(u: tf.Tensor) -> tf.Tensor:
    """Return -1 where u < 0, and 1 elsewhere."""
    return tf.where(u < 0.0, -1.0, 1.0)


def pattern(side: int, norm: str, flat: bool = False) -> np.ndarray:
    """Return a pattern of size 1: a pyramid in the upper half, and one below 0 in the lower half.

    It is float32 [side, side], or [side, 1] if it is flat.
    """
    power, order = (2, 2) if norm == "l2" else (4, 1)
    width = 1 if flat else side
    halves = [_pyramid(side // 2, width, power), _pyramid(side - side // 2, width, power)]
    up, down = (half / max(np.linalg.norm(half.ravel(), order), TINY) for half in halves)
    both = np.concatenate([up, -down])
    return (both / np.linalg.norm(both.ravel(), order)).astype(np.float32)


def _pyramid(height: int, width: int, power: int) -> np.ndarray:
    """Return nested squares about the middle; square k, of side 2k + 1, adds 1 / (k + 1)^power."""
    down, across = (np.abs(np.arange(n) - n // 2) for n in (height, width))
    rings = 1.0 / np.arange(1, max(height // 2, width // 2) + 2) ** power
    return np.cumsum(rings[::-1])[::-1][np.maximum(down[:, None], across)]
