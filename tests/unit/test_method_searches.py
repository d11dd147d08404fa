"""The adversarial examples and the tables of the methods, by hand on a linear network.

For two classes z = x W the margin of x is m = z_y - z_other. With d = W[:, other] - W[:, y], the
steepest step towards the other class is eps * sign(d), which takes m to m - eps * ||d||_1.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import FGSM, PGD, Adv, Threat, noise
from tfrobust.errors import UserError
from tfrobust.methods import (
    Awp,
    Fat,
    FgsmPgi,
    Free,
    Gkl,
    GradAlign,
    Iaat,
    Llr,
    Mma,
    Nfgsm,
    Nuat,
    Squeeze,
)
from tfrobust.methods.nuat import mean_nuclear_norm, nuclear_norm
from tfrobust.methods.squeeze import squeezed

RNG = np.random.default_rng(1)
W = np.array([[1.0, -1.0], [-0.5, 1.0], [0.25, 0.5], [-1.0, -0.75]], np.float32)
X = (0.4 + 0.2 * RNG.random((6, 2, 2, 1))).astype("float32")  # far from the walls of the box
FLAT = X.reshape(6, 4)
Y = (FLAT @ W).argmax(axis=1).astype(np.int32)
Y[0] = 1 - Y[0]  # one image is misclassified
AWAY = W[:, 1 - Y].T - W[:, Y].T  # d of each example, [6, 4]
MARGIN = -np.sum(FLAT * AWAY, axis=1)
DISTANCE = MARGIN / np.abs(AWAY).sum(axis=1)  # Linf, to the other class
THREAT = Threat("linf", 0.1)
PLAIN = PGD(steps=10, start="none")
FACTS = {"num_examples": 6, "batch_size": 6, "steps_per_epoch": 2}


@pytest.fixture
def network(linear: Callable[..., Any]) -> Any:
    return linear(W)


def batch_of(model: Any) -> dict[str, tf.Tensor]:
    """Return the six images as a batch of the model."""
    data = {"image": tf.constant(X), "index": tf.range(6)}
    return model.as_batch((data, tf.constant(Y)))


def cross_entropy_gradient(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of the mean in the weights, and of each example in its image."""
    z = np.exp(x @ w)
    error = z / z.sum(axis=1, keepdims=True) - np.eye(w.shape[1])[Y]
    return x.T @ error / len(x), error @ w.T


def test_nfgsm_steps_from_noise_and_is_not_projected(network: Any) -> None:
    model = Nfgsm(network, threat=THREAT)
    start = THREAT.at(0.2).random_start(tf.constant(X), model.seed_for("attack"))
    expected = start + 0.1 * np.sign(AWAY).reshape(X.shape)
    result = model.perturb(batch_of(model))["adv"]
    np.testing.assert_allclose(result, np.clip(expected, 0, 1), atol=1e-6)
    assert np.abs(result - X).max() > 0.2


def test_gradalign_compares_directions_however_small_the_gradients_are(network: Any) -> None:
    """Their direction is that of the other class, which has a probability of e^-32 to e^-73."""
    network.set_weights([500 * W])
    model = GradAlign(network, threat=THREAT.at(1e-4))
    batch = batch_of(model)
    terms = model.robust_loss(batch | model.perturb(batch))
    np.testing.assert_allclose(terms["alignment"], np.ones(6), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 7, 4), (2, 4, 7)])
def test_nuclear_norm_and_gradient_of_full_and_lower_rank(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    matrices = rng.normal(size=shape).astype("float32")
    matrices[1] = np.outer(matrices[1, :, 0], matrices[1, 0])
    left, values, right = np.linalg.svd(matrices.astype(np.float64), full_matrices=False)
    values[1, 1:] = 0
    with tf.GradientTape() as tape:
        variable = tf.Variable(matrices)
        norms = nuclear_norm(variable)
    np.testing.assert_allclose(norms, values.sum(axis=1), rtol=1e-6)
    expected = (left * (values > 0)[:, None]) @ right
    np.testing.assert_allclose(tape.gradient(norms, variable), expected, atol=1e-5)
    assert float(nuclear_norm(tf.zeros(shape))[0]) == 0


def test_every_image_has_the_mean_nuclear_norm_of_the_images_that_count_in_its_group(
    rng: np.random.Generator,
) -> None:
    rows = rng.normal(size=(9, 3)).astype("float32")
    counted = np.array([True] * 7 + [False] * 2)
    means = [np.linalg.norm(part, "nuc") / len(part) for part in (rows[:4], rows[4:7])]
    values = mean_nuclear_norm(tf.constant(rows), tf.constant(counted), 4)
    np.testing.assert_allclose(values, np.repeat([*means, 0.0], [4, 4, 1]), rtol=1e-5)


@pytest.mark.parametrize("step", [6, 7, 20])
def test_nuat_ascends_the_nuclear_norm_in_every_second_step(network: Any, step: int) -> None:
    """An epoch has three steps. The weight grows with the epoch and is 8 after four."""
    options: Any = {"warmup_epochs": 4, "weight": 8.0, "group": 6, "steps_per_epoch": 3}
    model = Nuat(network, threat=THREAT, **options)
    model.step.assign(step)
    weight = {6: 4.0, 7: 4.0, 20: 8.0}[step]
    assert float(model.scalars()["weight"]) == weight
    draw = noise.normal(X.shape, model.seed_for("attack"))
    start = X + 0.05 * np.sign(draw)
    flat = start.reshape(6, 4)
    left, _, right = np.linalg.svd((flat - FLAT) @ W, full_matrices=False)
    norm_gradient = (left @ right) @ W.T
    slope = cross_entropy_gradient(flat, W)[1] + (step % 3 % 2) * weight * norm_gradient
    moved = start + 0.1 * np.sign(slope).reshape(X.shape)
    expected = X + np.clip(moved - X, -0.1, 0.1)
    result = model.perturb(batch_of(model))["adv"]
    np.testing.assert_allclose(result, np.clip(expected, 0, 1), atol=1e-6)


def test_fgsm_pgi_keeps_a_prior_with_momentum(network: Any) -> None:
    """It is drawn anew in epochs 0, 2, ...; the index of an image is its row in the tables."""
    model = FgsmPgi(network, threat=THREAT, decay=0.3, reset_epochs=2, **FACTS)
    rows = np.array([3, 1, 0, 5, 4, 2])
    batch = batch_of(model) | {"index": tf.constant(rows, tf.int64)}
    prior, momentum = np.zeros_like(FLAT), np.zeros_like(FLAT)
    for step in range(6):
        model.step.assign(step)
        if step // 2 % 2 == 0:
            draw = noise.normal(X.shape, model.seed_for("prior")).numpy()
            prior, momentum = 0.1 * np.sign(draw.reshape(6, 4)), 0.0 * momentum
        slope = cross_entropy_gradient(FLAT + prior, W)[1]
        momentum = 0.3 * momentum + slope / np.abs(slope).sum(axis=1, keepdims=True)
        result = model.perturb(batch)
        expected = FLAT + np.clip(prior + 0.1 * np.sign(slope), -0.1, 0.1)
        np.testing.assert_allclose(np.reshape(result["noisy"], (6, 4)), FLAT + prior, atol=1e-6)
        np.testing.assert_allclose(np.reshape(result["adv"], (6, 4)), expected, atol=1e-6)
        model.after_update(batch | result)
        prior = np.clip(prior + 0.1 * np.sign(momentum), -0.1, 0.1)
        for table, values in ((model.priors, prior), (model.momenta, momentum)):
            stored = np.reshape(table.table.numpy()[rows], (6, 4))
            np.testing.assert_allclose(stored, values, atol=1e-6)


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_fat_stops_tau_steps_after_the_mistake(network: Any, patience: int) -> None:
    """Steps of eps / 4 go towards the other class up to the first mistake; tau more follow."""
    model = Fat(
        network,
        threat=THREAT,
        attack=PLAIN,
        jitter=0.0,
        patience=[7, patience],
        patience_epochs=[1],
        steps_per_epoch=2,
    )
    model.step.assign(2)  # epoch 1
    needed = np.maximum(0, np.ceil(DISTANCE / 0.025))
    moved = np.minimum(needed + patience, 4)  # the ball ends after four
    expected = FLAT + 0.025 * moved[:, None] * np.sign(AWAY)
    result = model.perturb(batch_of(model))["adv"]
    np.testing.assert_allclose(np.reshape(result, (6, 4)), expected, atol=1e-6)
    assert int(model.scalars()["patience"]) == patience


def test_fat_refuses_a_patience_without_its_epoch(network: Any) -> None:
    with pytest.raises(UserError, match="patience_epochs: expected 1 rising epochs, for 2"):
        Fat(network, threat=THREAT, patience=[0, 1], patience_epochs=[], steps_per_epoch=2)
    with pytest.raises(UserError, match="steps_per_epoch: expected int >= 1, of the training"):
        Fat(network, threat=THREAT)


@pytest.mark.parametrize("regularizer", ["symmetric_kl", "js", "l2"])
def test_squeeze_crafts_the_corners_of_highest_and_lowest_loss(
    network: Any, regularizer: str
) -> None:
    model = Squeeze(network, threat=THREAT, beta=1.0, regularizer=regularizer)
    result = model.perturb(batch_of(model))
    corner = 0.1 * np.sign(AWAY).reshape(X.shape)
    np.testing.assert_allclose(result["adv"], X + corner, atol=1e-6)
    np.testing.assert_allclose(result["collaborative"], X - corner, atol=1e-6)


def test_squeeze_keeps_the_image_where_both_points_have_a_higher_loss(network: Any) -> None:
    worse = X + 0.05 * np.sign(AWAY).reshape(X.shape)

    class Still(PGD):
        """An attack that starts at the worse images and takes no step."""

        def begin(self, x: tf.Tensor, threat: Threat, seed: Any) -> tf.Tensor:
            return tf.constant(worse)

        def step(self, eps: Any) -> Any:
            return 0.0 * eps

    high, low = squeezed(
        network, tf.constant(X), tf.constant(Y), attack=Still(), threat=THREAT, seed=[0, 0]
    )
    np.testing.assert_allclose(low, X, atol=1e-6)
    np.testing.assert_allclose(high, worse, atol=1e-6)


def iaat(network: Any, radii: np.ndarray, **options: Any) -> Any:
    """Return an IAAT model whose table holds the radii, [6]."""
    model = Iaat(
        network,
        threat=THREAT,
        attack=PLAIN,
        gamma=0.02,
        smoothing=0.5,
        warmup_epochs=1,
        min_step=0.01,
        **FACTS,
        **options,
    )
    model.radii.table.assign(radii)
    return model


def test_iaat_warms_up_at_the_eps_of_the_threat(network: Any) -> None:
    model = iaat(network, np.full(6, 0.5))
    result, right = model.perturb(batch_of(model)), MARGIN > 0
    np.testing.assert_allclose(result["radius"], 0.1 * right, atol=1e-7)
    expected = X + (0.1 * right[:, None] * np.sign(AWAY)).reshape(X.shape)
    np.testing.assert_allclose(result["adv"], expected, atol=1e-6)
    model.after_update(batch_of(model) | result)
    np.testing.assert_allclose(model.radii.table, 0.1 * right, atol=1e-7)


@pytest.mark.parametrize("misclassified", ["clean", "adversarial"])
def test_iaat_moves_every_radius_by_the_three_way_test(network: Any, misclassified: str) -> None:
    """Algorithm 2 by hand: an attack at eps succeeds where eps is greater than the distance."""
    right = MARGIN > 0
    start_radii = np.where(right, DISTANCE, 0.1) + np.array([0, -0.03, -0.01, 0.01, -0.03, 0.03])
    start_radii = np.maximum(start_radii, 0.001).astype(np.float32)
    wider, same = start_radii + 0.02 < DISTANCE, start_radii < DISTANCE
    assert wider.any() and (same & ~wider).any() and (~same & right).any() and not right.all()
    target = start_radii + np.where(wider, 0.02, np.where(same, 0.0, -0.02))
    expected = 0.5 * np.where(right, np.maximum(target, 0), 0) + 0.5 * start_radii

    model = iaat(network, start_radii, misclassified=misclassified)
    model.step.assign(2)  # epoch 1
    result = model.perturb(batch_of(model))
    np.testing.assert_allclose(result["radius"], expected, atol=1e-6)
    moved = expected * (right if misclassified == "clean" else 1)
    adversary = X + (moved[:, None] * np.sign(AWAY)).reshape(X.shape)
    np.testing.assert_allclose(result["adv"], adversary, atol=1e-6)


def test_iaat_moves_the_same_radii_however_an_epoch_is_batched(network: Any) -> None:
    def radii(*batches: list[int]) -> np.ndarray:
        """Return the table, [6], after an epoch of batches of these images."""
        model = iaat(network, np.full(6, np.median(DISTANCE)))
        model.step.assign(2)
        for rows in batches:
            batch = {name: tf.gather(v, rows) for name, v in batch_of(model).items()}
            model.after_update(batch | model.perturb(batch))
        return model.radii.table.numpy()

    of_one_batch = radii([0, 1, 2, 3, 4, 5])
    assert (of_one_batch != np.float32(np.median(DISTANCE))).any()
    np.testing.assert_allclose(radii([3, 0, 5, 1], [4, 2]), of_one_batch, rtol=1e-6)


def test_iaats_simple_rule_moves_each_radius_by_gamma(network: Any) -> None:
    """A radius grows where the training attack failed, and shrinks where it succeeded."""
    start_radii = np.full(6, np.median(DISTANCE), np.float32)
    model = iaat(network, start_radii, rule="simple")
    model.step.assign(2)
    change = np.where(start_radii < DISTANCE, 0.02, -0.02)
    assert len(set(change)) == 2
    result = model.perturb(batch_of(model))["radius"]
    np.testing.assert_allclose(result, np.maximum(start_radii + change, 0), atol=1e-6)


@pytest.mark.parametrize("boundary", ["soft_margin", "margin"])
def test_mma_crafts_at_the_decision_boundary(network: Any, boundary: str) -> None:
    """The margin is the smallest misclassified length, up to the last halving."""
    options = {"attack": PLAIN, "max_margin": 0.2, "num_examples": 6, "boundary": boundary}
    model = Mma(network, threat=THREAT, **options)
    batch = batch_of(model)
    result = model.perturb(batch)
    error = result["margin"].numpy() - np.maximum(DISTANCE, 0)
    last_halving = 1.05 * 0.2 / 2**10
    assert (np.abs(error) <= last_halving + 1e-6).all()
    lengths = np.abs(result["adv"] - X).max(axis=(1, 2, 3))
    np.testing.assert_allclose(lengths, result["margin"], atol=1e-6)
    model.after_update(batch | result | model.robust_loss(batch | result))
    expected = np.where(MARGIN > 0, np.maximum(result["margin"], 0.005), 0.005)
    np.testing.assert_allclose(model.margins.table, expected, atol=1e-6)


def test_free_moves_weights_and_delta_in_every_replay(network: Any) -> None:
    """A replay steps the weights at x + delta, and then delta by eps along the sign."""
    model = Free(network, threat=THREAT, replays=3, batch_size=6)
    model.compile(keras.optimizers.SGD(0.5))
    data = (tf.constant(X), tf.constant(Y))
    w, delta = W.astype(np.float64), np.zeros_like(FLAT, np.float64)
    for _ in range(2):  # delta goes on from batch to batch
        model.train_step(data)
        for _ in range(3):
            in_w, in_x = cross_entropy_gradient(FLAT + delta, w)
            w, delta = w - 0.5 * in_w, np.clip(delta + 0.1 * np.sign(in_x), -0.1, 0.1)
    np.testing.assert_allclose(model.network.get_weights()[0], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.reshape(model.delta.table, (6, 4)), delta, atol=1e-6)
    assert int(model.step) == 2


def test_free_refuses_a_batch_that_is_larger_than_its_batch_size(network: Any) -> None:
    model = Free(network, threat=THREAT, batch_size=4)
    model.compile(keras.optimizers.SGD(0.5))
    with pytest.raises(UserError, match=r"batch: expected up to 4 examples .batch_size is 4., rec"):
        model.fit(X, Y, batch_size=6, verbose=0)
    np.testing.assert_array_equal(model.network.get_weights()[0], W)
    model.evaluate(X, Y, batch_size=6, verbose=0)


def test_free_has_a_delta_for_each_image_of_replicas_with_unequal_parts(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, places = Free(network, threat=THREAT, batch_size=10), []
    for replica, size in enumerate((4, 3)):
        context = SimpleNamespace(replica_id_in_sync_group=replica, num_replicas_in_sync=2)
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda context=context: context)
        places += model._places({"label": tf.zeros(size)}).numpy().tolist()
    assert places == [0, 1, 2, 3, 5, 6, 7]


def test_gkl_takes_the_class_means_of_the_last_epoch(network: Any) -> None:
    """They are means of softmax(z / 4) over the images of a class. The epoch has two batches."""
    model = Gkl(network, threat=THREAT, temperature=4.0, steps_per_epoch=2)
    batch = batch_of(model)
    np.testing.assert_allclose(model.class_means, np.full((2, 2), 0.5))
    soft = []
    for step in range(2):
        model.step.assign(step)
        logits = FLAT * (1 + step) @ W
        z = np.exp(logits / 4)
        soft.append(z / z.sum(axis=1, keepdims=True))
        model.after_update(batch | {"clean_logits": tf.constant(logits)})
    expected = np.full((2, 2), 0.5)  # of a class without images
    for label in np.unique(Y):
        expected[label] = np.concatenate(soft)[np.tile(Y, 2) == label].mean(axis=0)
    np.testing.assert_allclose(model.class_means, expected, rtol=1e-5)
    np.testing.assert_array_equal(model.counts, np.zeros(2))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (Squeeze, {"beta": 1.0, "attack": PLAIN}, "attack.start: expected a ra"),
        (Llr, {"attack": PLAIN}, "attack.start: expected a random one"),
        (
            Llr,
            {"attack": PGD(loss="margin")},
            "attack.loss: expected none .Llr has an objective of its own., received 'margin'",
        ),
        (
            Fat,
            {"attack": PGD(restarts=2), "steps_per_epoch": 1},
            "attack: expected one of one restart whose last iterate counts, received 'PGD-10x2'",
        ),
        (Iaat, FACTS | {"attack": PGD(step_size=0.1)}, "attack.step_size: expected none"),
        (Iaat, {}, "num_examples: expected int >= 1, of the training data"),
        (Nfgsm, {"attack": FGSM()}, "attack: expected none .Nfgsm takes non"),
        (Mma, {"max_margin": 0, "num_examples": 1}, "max_margin: expected a n"),
        (Adv, {"clean_weight": 2.0}, "clean_weight: expected a number in"),
        (Awp, {"gamma": -1.0}, "gamma: expected a number >= 0"),
    ],
)
def test_a_mistaken_argument_is_named(
    network: Any, method: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        method(network, threat=THREAT, **options)
