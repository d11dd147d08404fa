"""Adversaries that depend on settings and statistics of a method, by hand on small networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.unit import formulae
from tests.unit.test_method_searches import (
    AWAY,
    DISTANCE,
    FLAT,
    PLAIN,
    THREAT,
    W,
    X,
    Y,
    batch_of,
    iaat,
)
from tfrobust import PGD, losses, noise
from tfrobust.methods import Alp, Fat, GradAlign, Llr, Mma
from tfrobust.methods.squeeze import squeezed


@pytest.fixture
def network(linear: Callable[..., Any]) -> Any:
    return linear(W)


def test_alp_may_attack_towards_the_least_likely_class(network: Any) -> None:
    """Of two classes it is the one that is not predicted. Image 0 is wrong: it is its label."""
    model = Alp(network, threat=THREAT, attack=PLAIN, least_likely=True)
    towards = np.sign(AWAY) * np.where(np.arange(6) == 0, -1, 1)[:, None]
    result = model.perturb(batch_of(model))["adv"]
    np.testing.assert_allclose(np.reshape(result, (6, 4)), FLAT + 0.1 * towards, atol=1e-6)


def test_every_step_of_fat_adds_noise_of_its_own(network: Any) -> None:
    attack, options = PGD(steps=4, step_size=0.02, start="none"), {"steps_per_epoch": 1}
    options |= {"jitter": 0.01, "patience": [9], "patience_epochs": []}
    model = Fat(network, threat=THREAT, attack=attack, **options)
    moved = np.zeros_like(FLAT)
    for step in range(4):
        draw = noise.normal(X.shape, noise.fold(model.seed_for("attack"), step + 1)).numpy()
        moved = moved + 0.02 * np.sign(AWAY) + 0.01 * draw.reshape(6, 4)
        moved = np.clip(moved, -0.1, 0.1)
    result = model.perturb(batch_of(model))["adv"]
    np.testing.assert_allclose(np.reshape(result, (6, 4)), FLAT + moved, atol=1e-6)


def test_the_steps_of_iaat_grow_with_the_radius_from_a_least_one(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are 2 eps_i / steps, here a fifth of the radius, but at least 0.01."""
    radii, images = np.array([0.0, 0.02, 0.05, 0.06, 0.1, 0.2], np.float32), PGD.images
    steps: list[np.ndarray] = []

    def noted(attack: PGD, *arguments: Any, **options: Any) -> Any:
        steps.append(attack.step_size.numpy())
        return images(attack, *arguments, **options)

    monkeypatch.setattr(PGD, "images", noted)
    model = iaat(network, radii)
    model._attacked(batch_of(model), tf.constant(radii), "attack")
    np.testing.assert_allclose(steps, [[0.01, 0.01, 0.01, 0.012, 0.02, 0.04]], rtol=1e-5)


def test_gradalign_leaves_its_term_out_where_a_gradient_is_zero(network: Any) -> None:
    """On a linear network all other gradients are aligned, so the loss is the cross entropy."""
    model = GradAlign(network, threat=THREAT)
    batch = batch_of(model)
    entries = model.perturb(batch)
    entries["gradient"] *= np.float32([0, 0, 0, 1, 1, 1]).reshape(6, 1, 1, 1)
    expected = losses.cross_entropy(network(entries["adv"]), Y)
    np.testing.assert_allclose(model.robust_loss(batch | entries)["loss"], expected, atol=1e-5)


def test_mma_searches_a_little_beyond_the_greatest_margin(network: Any) -> None:
    """So it tells images at this margin from those whose boundary is further away."""
    model = Mma(network, threat=THREAT, attack=PLAIN, max_margin=0.02, num_examples=6)
    margin, far = model.perturb(batch_of(model))["margin"].numpy(), DISTANCE > 0.021
    assert far.sum() == 4
    np.testing.assert_allclose(margin[far], 1.05 * 0.02, rtol=1e-3)


def test_the_two_points_of_squeeze_have_starts_of_their_own(network: Any) -> None:
    """With tiny steps they stay where, of the image and both starts, the loss is an extreme."""
    attack, seed, x = PGD(steps=1, step_size=1e-9), noise.seed_for(0, 0, "test"), tf.constant(X)
    starts = (THREAT.random_start(x, noise.fold(seed, number)).numpy() for number in range(2))
    points = np.stack([X, *starts])
    loss = np.stack([losses.cross_entropy(network(point), Y) for point in points])
    result = squeezed(network, x, tf.constant(Y), attack=attack, threat=THREAT, seed=seed)
    for images, place in zip(result, (loss.argmax(axis=0), loss.argmin(axis=0)), strict=True):
        np.testing.assert_allclose(images, points[place, np.arange(6)], atol=1e-6)


def test_llr_ascends_the_distance_from_the_tangent_plane(linear: Callable[..., Any]) -> None:
    """The distance |l(z) - l(x) - (z - x) . g|, where g = grad l(x), grows along grad l(z) - g or
    against it, as its sign is."""
    x, y, w = formulae.X, formulae.Y, formulae.W.astype(np.float64)
    threat, attack = formulae.THREAT, PGD(steps=1, step_size=0.05)
    model = Llr(linear(formulae.W, power=2), threat=threat, attack=attack)
    seed = noise.fold(model.seed_for("attack"), 0)
    start = threat.random_start(tf.constant(x), seed).numpy()
    at_image, at_start = (formulae.slope(z, w, np.eye(3)[y]) for z in (x, start))
    rise = np.sum((start - x).reshape(5, 4) * at_image, axis=1)
    sign = np.sign(formulae.ce(start, w) - formulae.ce(x, w) - rise)
    step = 0.05 * np.sign(sign[:, None] * (at_start - at_image)).reshape(x.shape)
    expected = np.clip(x + np.clip(start + step - x, -0.2, 0.2), 0, 1)
    batch = model.as_batch((tf.constant(x), tf.constant(y)))
    np.testing.assert_allclose(model.perturb(batch)["adv"], expected, atol=1e-6)


def test_the_adversary_of_llr_depends_on_no_average_of_batchnorm(normed: keras.Model) -> None:
    """All its passes use the statistics of the batch, and move no averages."""
    model, images = Llr(normed, threat=THREAT, attack=PGD(steps=2)), []
    batch = model.as_batch((tf.constant(formulae.X), tf.constant(formulae.Y)))
    for mean, variance in ((0.0, 1.0), (3.0, 0.01)):
        averages = normed.layers[1].moving_mean, normed.layers[1].moving_variance
        for average, value in zip(averages, (mean, variance), strict=True):
            average.assign([value])
        images.append(model.perturb(batch)["adv"])
        left = [float(average.numpy()[0]) for average in averages]
        np.testing.assert_allclose(left, [mean, variance])
    np.testing.assert_array_equal(*images)
