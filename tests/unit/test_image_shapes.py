"""Attacks on images that are not square, down to a single pixel.

Random starts and moves exist for every height and width, and stay in the ball and the box.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.products import slow_but
from tfrobust import Threat, noise
from tfrobust.attacks import ATTACKS, FAB, RayS, Square
from tfrobust.attacks.square_moves import Pyramids, Squares
from tfrobust.registry import build

SEED = noise.seed_for(0, 0, "test")
WIDE = (-10.0, 10.0)
LENGTHS = st.one_of(st.integers(1, 12), st.sampled_from([28, 64]))


def linear(shape: tuple[int, int, int], classes: int = 4) -> Any:
    """Return linear logits with random weights for images of this shape."""
    size = int(np.prod(shape))
    weights = np.random.default_rng(1).normal(size=(size, classes)).astype("float32")
    return lambda x: tf.reshape(x, [-1, size]) @ weights


@settings(max_examples=settings.default.max_examples // 4)
@given(
    height=LENGTHS,
    width=LENGTHS,
    channels=st.sampled_from([1, 3]),
    norm=st.sampled_from(["linf", "l2", "l1"]),
    windows=st.lists(st.integers(0, 4999), min_size=1, max_size=4),
    draw=st.integers(0, 99),
)
@example(64, 8, 1, "l2", [0, 4999], 0)
@example(1000, 12, 3, "l1", [0, 4999], 0)
@example(3, 200, 3, "l2", [0, 4999], 0)
@example(1, 1, 1, "l2", [0, 1, 2, 3], 0)
@example(2, 2, 1, "l1", [0, 1, 2, 3], 0)
def test_square_starts_and_moves_on_the_edge_of_the_ball(
    height: int, width: int, channels: int, norm: str, windows: list[int], draw: int
) -> None:
    """In a wide box every image is at distance eps; in [0, 1] the distance may be smaller."""
    shape, eps = (height, width, channels), 0.5
    sides = [Square().side(i, height, width, norm) for i in windows]
    assert all(1 <= side <= min(height, width) for side in sides)
    rng = np.random.default_rng(draw)
    x = rng.random((3, *shape)).astype("float32")
    for box in (WIDE, (0.0, 1.0)):
        threat = Threat(norm, eps, box)
        moves = (Squares if norm == "linf" else Pyramids)(threat, sides)
        images = moves.start(tf.constant(x), noise.fold(SEED, draw))
        differs = np.any(images.numpy() != x, axis=-1).mean()
        assert norm == "l1" or differs >= 0.5  # most pixels lie in a tile; L1 drops small values
        for i in range(len(sides)):
            uniform = rng.uniform(-1, 1, (3, 5 + channels)).astype("float32")
            assert_in_threat(images.numpy(), x, threat, edge=box == WIDE)
            images = moves.propose(tf.constant(i), tf.constant(x), images, tf.constant(uniform))
        assert_in_threat(images.numpy(), x, threat, edge=box == WIDE)


def assert_in_threat(images: np.ndarray, x: np.ndarray, threat: Threat, edge: bool = False) -> None:
    """Assert that images stay in the box and the ball, and at its `edge` are at distance eps."""
    assert images.shape == x.shape and np.isfinite(images).all()
    assert threat.box[0] <= images.min() and images.max() <= threat.box[1]
    distance = threat.distance(images.astype("float64"), x.astype("float64")).numpy()
    assert (distance <= threat.eps + 1e-6).all()
    assert not edge or distance == pytest.approx(threat.eps, rel=2e-3)  # L1 sums rounding errors


def test_move_that_would_cancel_the_old_pattern_replaces_it() -> None:
    """A window of one pixel is at -eps and the drawn sign is +.

    The sum would be 0, so the pixel moves to +eps; likewise with exchanged signs.
    """
    x = np.zeros([2, 1, 1, 1], np.float32)
    for norm in ("l2", "l1"):
        threat = Threat(norm, 0.5, WIDE)
        uniform = tf.constant([[0.0, 0, 0, 0, 0, -1], [0, 0, 0, 0, 0, 1]])  # pattern(1) is [[-1]]
        before = tf.constant([[-0.5], [0.5]])[:, None, None]
        moved = Pyramids(threat, [1]).propose(tf.constant(0), tf.constant(x), before, uniform)
        np.testing.assert_allclose(moved.numpy().ravel(), [0.5, -0.5], rtol=1e-5)


SMALL: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 10},
    "eot": {"attack": "fgsm"},
    "fab": {"steps": 5},
    "multi_targeted": {"steps": 3},
    "pgd": {"steps": 3},
    "rays": {"queries": 30},
    "square": {"queries": 10},
}
NAMES = [name for name in ATTACKS if name not in ("bpda", "saved_images", "transfer")]


@pytest.mark.parametrize("norm", slow_but(["linf", "l2", "l1"], ["linf"]))
@pytest.mark.parametrize("name", [*NAMES, "fab untargeted"])
def test_every_attack_on_images_of_one_row_one_column_or_one_pixel(name: str, norm: str) -> None:
    spec: dict[str, Any] = {"name": name, **SMALL.get(name, {})}
    attack: Any = FAB(steps=5, targets=None) if " " in name else build(ATTACKS, spec, "attack")
    if isinstance(attack, RayS) and norm != "linf":
        return  # RayS searches in Linf alone
    for channels, (height, width) in enumerate([(1, 7), (9, 1), (64, 2), (1, 1)], start=1):
        shape = (height, width, channels)
        network, threat = linear(shape), Threat(norm, 0.3)
        x = np.random.default_rng(0).random((4, *shape)).astype("float32")
        y = tf.argmax(network(x), axis=1, output_type=tf.int32)
        outcome = attack.run(network, tf.constant(x), y, threat=threat, seed=SEED)
        assert_in_threat(outcome.images.numpy(), x, threat)
        wrong = tf.argmax(network(outcome.images), axis=1, output_type=tf.int32) != y
        np.testing.assert_array_equal(outcome.success, wrong)
