"""Noise is a function of (seed, step, purpose), with the moments of its distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import noise


def draw(seed: int, step: int, purpose: str) -> np.ndarray:
    """Return normal noise, [4, 5]."""
    return noise.normal([4, 5], noise.seed_for(seed, step, purpose)).numpy()


@pytest.mark.parametrize("changed", [(2, 2, "attack"), (1, 3, "attack"), (1, 2, "projection")])
def test_noise_changes_with_the_seed_the_step_and_the_purpose(
    changed: tuple[int, int, str],
) -> None:
    noise_of_step = draw(1, 2, "attack")
    np.testing.assert_array_equal(draw(1, 2, "attack"), noise_of_step)
    assert not np.isclose(draw(*changed), noise_of_step).any()


def test_every_pair_of_seed_and_step_has_its_noise() -> None:
    """Run 1 at step 2 differs from run 2 at step 1, and a fold differs from the next step."""
    seeds = [noise.seed_for(s, t, "attack") for s in range(4) for t in range(4)]
    seeds += [noise.fold(seeds[0], k) for k in range(4)]
    assert len({tuple(seed.numpy()) for seed in seeds}) == len(seeds)


def test_noise_in_a_graph_is_that_of_eager_mode() -> None:
    @tf.function
    def traced(step: Any) -> Any:
        return noise.normal([4, 5], noise.seed_for(1, step, "attack"))

    np.testing.assert_array_equal(traced(tf.constant(2)), draw(1, 2, "attack"))


def test_uniform_noise_in_the_cube_has_mean_0_and_variance_a_third() -> None:
    """Five standard errors of 60000 numbers are 0.012 and 0.006."""
    u = noise.uniform_in_ball([20000, 3], noise.seed_for(0, 0, "u"), "linf").numpy()
    assert u.min() >= -1 and u.max() < 1
    assert abs(u.mean()) < 0.012
    assert abs(u.var() - 1 / 3) < 0.007


def test_normal_noise_has_the_moments_of_its_distribution_and_no_correlation() -> None:
    """The moments are 0, 1 and 3. The tolerances are five standard errors of 80000 numbers."""
    z = noise.normal([20000, 4], noise.seed_for(0, 0, "normal")).numpy()
    assert abs(z.mean()) < 0.018
    assert abs((z**2).mean() - 1) < 0.025
    assert abs((z**4).mean() - 3) < 0.18
    for values in (z, z**2):
        np.testing.assert_allclose(np.corrcoef(values.T), np.eye(4), atol=5 / np.sqrt(20000))


@pytest.mark.parametrize("d", [1, 3, 20])
@pytest.mark.parametrize(("p", "order"), [("l2", 2), ("l1", 1)])
def test_uniform_noise_in_the_ball_has_the_radii_of_its_volume(p: str, order: int, d: int) -> None:
    """A fraction t^d of the volume lies within radius t, so E r = d / (d + 1)."""
    n = 20000
    points = noise.uniform_in_ball([n, d], noise.seed_for(0, 0, "ball"), p).numpy()
    r = np.linalg.norm(points, ord=order, axis=1)
    assert r.max() <= 1 + 1e-6
    error = 5 * np.sqrt((d / (d + 2) - (d / (d + 1)) ** 2) / n)
    assert abs(r.mean() - d / (d + 1)) < error
    assert abs((r < 0.5 ** (1 / d)).mean() - 0.5) < 5 * 0.5 / np.sqrt(n)
    assert np.abs(points.mean(axis=0)).max() < 5 / np.sqrt(n)


def test_directions_in_the_l1_ball_are_uniform() -> None:
    """|x| / r is uniform on the simplex: its mean is 1/d, its mean square 2 / (d (d + 1)).

    Both signs are equally likely.
    """
    n, d = 20000, 3
    points = noise.uniform_in_ball([n, d], noise.seed_for(0, 0, "faces"), "l1").numpy()
    share = np.abs(points) / np.abs(points).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(share.mean(axis=0), 1 / d, atol=5 * 0.236 / np.sqrt(n))
    np.testing.assert_allclose((share**2).mean(axis=0), 2 / (d * (d + 1)), atol=0.01)
    np.testing.assert_allclose((points > 0).mean(axis=0), 0.5, atol=5 * 0.5 / np.sqrt(n))


def test_unit_vectors_have_norm_1_and_no_preferred_direction() -> None:
    """Every coordinate has mean 0 and mean square 1/C. An image is one vector."""
    v = noise.unit_vectors([20000, 4], noise.seed_for(0, 0, "v")).numpy()
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1.0, rtol=1e-5)
    assert np.abs(v.mean(axis=0)).max() < 0.02
    np.testing.assert_allclose((v * v).mean(axis=0), 0.25, atol=0.01)
    images = noise.unit_vectors([3, 2, 2, 1], noise.seed_for(0, 0, "v")).numpy()
    np.testing.assert_allclose(np.sum(images**2, axis=(1, 2, 3)), 1.0, rtol=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "normal", "unit_vectors", "ball linf", "ball l2"])
def test_the_noise_of_two_replicas_joined_is_that_of_one_device(
    on_two_devices: Callable[[str], dict[str, Any]], kind: str
) -> None:
    single, joined = on_two_devices("drawn")[kind]
    assert np.shape(single) == (8, 3)
    # The tolerance is for the rounding of a graph, which differs from that of eager mode.
    np.testing.assert_allclose(joined, single, rtol=1e-6, atol=1e-7)
