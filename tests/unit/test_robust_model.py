"""RobustModel: a training step by hand, the data of fit, saving, precision, devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import PGD, Adv, Atlas, Natural, Threat
from tfrobust.data import from_arrays
from tfrobust.errors import UserError
from tfrobust.methods import METHODS, Awp
from tfrobust.methods.decay import half_square, is_kernel
from tfrobust.models import small_cnn, with_precision

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3)).astype("float32")
X = RNG.random((8, 2, 2, 1)).astype("float32")
Y = RNG.integers(0, 3, 8)
THREAT = Threat("linf", 0.1)


def weights(model: Any) -> np.ndarray:
    """Return all weights of the network in one vector."""
    return np.concatenate([w.ravel() for w in model.network.get_weights()])


def stepped(model: Any, *data: Any, steps: int = 1) -> np.ndarray:
    """Return all weights after steps of SGD on one batch."""
    model.compile(keras.optimizers.SGD(0.1))
    for _ in range(steps):
        model.train_step(tuple(tf.constant(part) for part in data))
    return weights(model)


def test_networks_that_cannot_be_trained_are_refused() -> None:
    network = small_cnn((4, 4, 1), 3, filters=[2], units=2)
    named = keras.Model(network.input, {"logits": network.output, "twice": 2 * network.output})
    with pytest.raises(UserError, match="network: expected a network with one output"):
        Adv(named, threat=THREAT)
    network.trainable = False
    with pytest.raises(UserError, match="network: expected one with trainable weights"):
        Adv(network, threat=THREAT)
    network.trainable = True
    model = Adv(network, threat=THREAT)
    network.trainable = False
    model.compile("sgd")
    with pytest.raises(UserError, match="network: expected one with trainable weights"):
        model.fit(*digits(), verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, "seed: expected int of at most 64 bits, received 1.5"),
        ({"seed": None}, "seed: expected int of at most 64 bits, received None"),
        ({"steps_per_epoch": 2.5}, "steps_per_epoch: expected int >= 1, of the training data, rec"),
        ({"num_examples": "8"}, "num_examples: expected int >= 1, of the training data, received"),
        ({"validation_attack": "pgd"}, "validation_attack: expected an attack, such as PGD"),
        ({"validation_attack": PGD}, "validation_attack: expected an attack, such as PGD"),
    ],
)
def test_arguments_of_another_type_are_one_line(
    network: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Adv(network, threat=THREAT, **options)


@pytest.fixture
def network(linear: Callable[..., Any]) -> Any:
    return linear(W)


def small(precision: str = "float32") -> keras.Model:
    """Return a small CNN of digits(), always with the same weights."""
    keras.utils.set_random_seed(5)
    return with_precision(small_cnn((4, 4, 1), 3, filters=[4], kernel=3, units=8), precision)


def digits(n: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return n images, [n, 4, 4, 1], and their labels: the brightest of three pixels."""
    x = np.random.default_rng(3).random((n, 4, 4, 1)).astype("float32")
    return x, x.reshape(n, 16)[:, :3].argmax(axis=1)


def test_a_training_step_by_hand(network: Any) -> None:
    """Softmax regression goes to W - lr * x^T (p - onehot) / B."""
    moved = stepped(Natural(network, threat=THREAT), X, Y).reshape(4, 3)
    flat = X.reshape(8, 4)
    z = np.exp(flat @ W)
    error = z / z.sum(axis=1, keepdims=True) - np.eye(3)[Y]
    np.testing.assert_allclose(moved, W - 0.1 * flat.T @ error / 8, rtol=1e-4, atol=1e-6)


def test_l2_is_a_term_of_the_loss(network: Any) -> None:
    """Examples of weight 0 give no gradient, so a step takes w to w (1 - lr * l2)."""
    moved = stepped(Natural(network, threat=THREAT, l2=0.5), X, Y, np.zeros(8, np.float32))
    np.testing.assert_allclose(moved, W.ravel() * (1 - 0.1 * 0.5), rtol=1e-5)


def test_a_bias_of_two_axes_is_no_kernel() -> None:
    recurrent, attention = keras.layers.GRU(2), keras.layers.MultiHeadAttention(2, 3)
    recurrent.build((None, 5, 4))
    attention.build((None, 5, 4), (None, 5, 4))
    weights = recurrent.trainable_variables + attention.trainable_variables
    assert any(weight.name == "bias" and len(weight.shape) == 2 for weight in weights)
    names = {weight.name for weight in weights if is_kernel(weight)}
    assert names == {"kernel", "recurrent_kernel"}


@pytest.mark.parametrize("on", ["all", "kernels"])
def test_l2_is_of_all_weights_or_of_the_kernels_alone(on: str) -> None:
    layers = [keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = Natural(keras.Sequential([keras.Input((2, 2, 1)), *layers]), threat=THREAT, l2_on=on)
    scale, _, kernel, _ = model.network.trainable_variables
    expected = np.sum(kernel.numpy() ** 2) + (np.sum(scale.numpy() ** 2) if on == "all" else 0)
    assert float(half_square(model.network, model.l2_on)) == pytest.approx(expected / 2)


def test_the_regularisers_of_the_network_are_terms_of_the_loss() -> None:
    """keras.regularizers.L2(0.25) adds 0.25 ||w||^2, so a step takes w to w (1 - lr * 0.5)."""
    image = keras.Input((2, 2, 1))
    dense = keras.layers.Dense(3, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.25))
    model = Natural(keras.Model(image, dense(keras.layers.Flatten()(image))), threat=THREAT)
    before = weights(model)
    moved = stepped(model, X, Y, np.zeros(8, np.float32))
    np.testing.assert_allclose(moved, before * (1 - 0.1 * 0.5), rtol=1e-5)


@pytest.mark.parametrize("policy", ["float64", "mixed_bfloat16"])
@pytest.mark.parametrize("method", [Natural, Awp])
def test_penalties_on_a_network_of_another_precision(policy: str, method: Any) -> None:
    """The sum of the penalties is float32, though the terms are not."""
    keras.utils.set_random_seed(5)
    hidden = keras.layers.Dense(4, dtype=policy, kernel_regularizer="l2", activity_regularizer="l2")
    layers = [keras.layers.Flatten(), hidden, keras.layers.Dense(3, dtype="float32")]
    model = method(keras.Sequential([keras.Input((2, 2, 1)), *layers]), threat=THREAT, l2=0.1)
    before = weights(model)
    assert np.abs(stepped(model, X, Y) - before).max() > 1e-4


def test_examples_of_weight_zero_have_no_influence(linear: Callable[..., Any]) -> None:
    def trained(x: np.ndarray, y: np.ndarray, weight: Any) -> np.ndarray:
        model = Atlas(linear(W, power=2), threat=THREAT, alpha=0.1, beta=1.0)
        return stepped(model, x, y, np.asarray(weight), steps=2)

    half = [1.0] * 4 + [0.0] * 4
    images, labels = X.copy(), Y.copy()
    images[4:], labels[4:] = 0.5, 0
    expected = trained(X, Y, half)
    np.testing.assert_array_equal(trained(images, labels, half), expected)
    column = np.array(half, np.float64)[:, None]
    np.testing.assert_array_equal(trained(X, Y, column), expected)
    assert not np.allclose(trained(X, Y, [1.0] * 8), expected)


@pytest.mark.parametrize("craft", ["eval", "frozen", "train"])
def test_only_crafting_in_mode_train_moves_the_averages(normed: keras.Model, craft: str) -> None:
    model = Adv(normed, threat=THREAT, craft=craft, attack=PGD(steps=2))
    moving = normed.layers[1].moving_mean
    batch = model.as_batch((tf.constant(X), tf.constant(Y)))
    adv = model.perturb(batch)["adv"].numpy()
    crafted = float(moving.numpy()[0])
    assert (crafted != 0) == (craft == "train")
    moving.assign([0.0])
    # A training pass at the adversary moves the average to 0.9 * 0 + 0.1 * its mean.
    model.compile(keras.optimizers.SGD(0.0))
    model.robust_loss(batch | {"adv": tf.constant(adv)})
    assert float(moving.numpy()[0]) == pytest.approx(0.1 * adv.mean(), rel=1e-5)
    moving.assign([0.0])
    model.train_step((tf.constant(X), tf.constant(Y)))
    expected = 0.1 * adv.mean() + 0.9 * crafted
    assert float(moving.numpy()[0]) == pytest.approx(expected, rel=1e-4)


def test_craft_frozen_makes_the_images_of_craft_train(normed: keras.Model) -> None:
    """Both use the statistics of the batch. Mode eval uses the moving averages, which differ."""
    normed.layers[1].moving_variance.assign([0.01])
    normed.layers[1].moving_mean.assign([3.0])
    adv = {}
    for craft in ("eval", "frozen", "train"):
        model = Adv(normed, threat=THREAT, craft=craft)
        adv[craft] = model.perturb(model.as_batch((tf.constant(X), tf.constant(Y))))["adv"]
    np.testing.assert_array_equal(adv["frozen"], adv["train"])
    assert (adv["frozen"].numpy() != adv["eval"].numpy()).any()


def test_every_form_of_data_trains_the_same_weights(linear: Callable[..., Any]) -> None:
    def trained(*data: Any) -> np.ndarray:
        model = Adv(linear(W), threat=THREAT)
        model.compile("sgd")
        options = {} if isinstance(data[0], tf.data.Dataset) else {"batch_size": 4}
        model.fit(*data, shuffle=False, verbose=0, **options)
        assert int(model.step) == 2
        return weights(model)

    expected = trained(X, Y)
    pairs = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    dicts = tf.data.Dataset.from_tensor_slices({"image": X, "label": Y}).batch(4)
    for data in ((X, Y[:, None]), (X, Y.astype("uint8")), (pairs,), (dicts,)):
        np.testing.assert_allclose(trained(*data), expected, rtol=1e-6)
    np.testing.assert_allclose(trained(from_arrays(X, Y, 4, training=False)), expected, rtol=1e-6)


class NeedsIndex(Adv):
    requires = ("index",)


@pytest.mark.parametrize(
    ("method", "data", "message"),
    [
        (Adv, (X.astype("uint8"), Y), "image: expected float images in [0, 1], received 'uint8'"),
        (
            Adv,
            (X, np.eye(3)[Y]),
            "label: expected class numbers [B] (of one-hot labels, argmax(-1",
        ),
        (
            NeedsIndex,
            (X,),
            "expected index, label beside image; tfrobust.data.from_arrays(x, y) makes",
        ),
        (NeedsIndex, (X, Y), "NeedsIndex expected index beside image, label; tfrobust.data.from_"),
    ],
)
def test_wrong_data_is_an_error_of_one_line(
    network: Any, method: Any, data: Any, message: str
) -> None:
    model = method(network, threat=THREAT)
    batch = tuple(tf.constant(part) for part in data)
    assert message in error_line(lambda: model.as_batch(batch, model.requires))


def test_fit_and_evaluate_report_the_metrics_that_callbacks_monitor(network: Any) -> None:
    """For a linear network the Jacobian is W^T everywhere."""
    model = Adv(network, threat=THREAT, validation_attack=PGD(steps=5))
    model.compile(keras.optimizers.SGD(0.0))
    history = model.fit(X, Y, validation_data=(X, Y), batch_size=4, verbose=0).history
    expected = {"loss", "accuracy", "robust_accuracy", "fgsm_accuracy", "jacobian"}
    assert {f"val_{name}" for name in expected} <= set(history)
    right = (X.reshape(8, 4) @ W).argmax(axis=1) == Y
    assert history["val_accuracy"] == [pytest.approx(right.mean())]
    assert history["val_robust_accuracy"][0] <= right.mean()
    assert history["eps"] == [pytest.approx(0.1)]
    # The mean over projections is ||W||_F^2; eight of them give its order of magnitude.
    assert 0.2 < history["val_jacobian"][0] / np.sum(W**2) < 5
    assert set(model.evaluate(X, Y, verbose=0, return_dict=True)) == expected


def test_the_same_seed_trains_the_same_weights() -> None:
    def trained(seed: int) -> np.ndarray:
        model = Atlas(small(), threat=THREAT, alpha=0.01, beta=1.0, seed=seed)
        model.compile("sgd")
        model.fit(*digits(), batch_size=8, shuffle=False, verbose=0)
        return weights(model)

    first = trained(0)
    # Two threads may add in another order.
    np.testing.assert_allclose(trained(0), first, rtol=1e-5, atol=1e-7)
    assert np.abs(trained(1) - first).max() > 1e-5


def test_a_loaded_model_has_its_settings_and_trains_on_in_the_same_way(tmp_path: Path) -> None:
    x, y = digits()
    model = Atlas(
        small(), threat=Threat("l2", "1/2"), alpha=0.01, beta=1.0, attack=PGD(steps=2, step_size=1),
        validation_attack=PGD(steps=3), ramp_steps=5, craft="frozen", l2=1e-4, seed=3,
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    for name in ("threat", "alpha", "beta", "attack", "validation_attack", "ramp_steps", "craft",
                 "l2", "seed", "name"):  # fmt: skip
        assert getattr(loaded, name) == getattr(model, name), name
    assert int(loaded.step) == int(model.step) == 1
    model.fit(x, y, verbose=0)
    loaded.fit(x, y, verbose=0)
    np.testing.assert_allclose(weights(loaded), weights(model), rtol=1e-5, atol=1e-7)


def test_predict_and_call_return_the_logits_of_the_network(network: Any) -> None:
    model = Adv(network, threat=THREAT)
    model.compile("sgd")
    np.testing.assert_allclose(model.predict(X, verbose=0), X.reshape(8, 4) @ W, rtol=1e-5)
    np.testing.assert_allclose(model({"image": tf.constant(X)}), X.reshape(8, 4) @ W, rtol=1e-5)


@pytest.mark.parametrize(
    ("precision", "scaled"),
    [("float32", False), ("mixed_bfloat16", False), ("mixed_float16", True)],
)
def test_the_loss_falls_in_every_precision_and_only_float16_scales_it(
    tmp_path: Path, precision: str, scaled: bool
) -> None:
    model = Atlas(small(precision), threat=Threat("linf", 0.02), alpha=1e-3, beta=1.0)
    model.compile(keras.optimizers.SGD(0.2, momentum=0.9))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == scaled
    losses = model.fit(*digits(64), batch_size=16, epochs=6, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert np.isfinite(weights(model)).all()
    model.save(tmp_path / "model.keras")
    optimizer = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert type(optimizer) is type(model.optimizer)
    assert not scaled or isinstance(optimizer.inner_optimizer, keras.optimizers.SGD)


def test_a_loss_scale_optimizer_is_not_wrapped_again() -> None:
    model = Adv(small("mixed_float16"), threat=THREAT)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    model.compile(optimizer)
    assert model.optimizer is optimizer


def test_xla_gives_the_same_gradients(xla: None) -> None:
    """They agree through two MaxPools, where the gradient of XLA's pooling is wrong.

    The noise is drawn before, since XLA draws other numbers.
    """
    x, y = digits(8)
    model = Atlas(small(), threat=THREAT, alpha=0.1, beta=1.0)
    batch = model.as_batch((tf.constant(x), tf.constant(y)))
    batch |= model.perturb(batch)

    def gradients() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.robust_loss(batch)["loss"])
        return tape.gradient(loss, model.network.trainable_variables)

    compiled = tf.function(gradients, jit_compile=True)()
    for gradient, expected in zip(compiled, gradients(), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("method", [*METHODS, "atlas with BatchNorm"])
def test_two_devices_train_the_weights_of_one_device(
    on_two_devices: Callable[[str], dict[str, Any]], method: str
) -> None:
    trained = on_two_devices("trained")
    one, two = (trained[f"{method} {devices}"] for devices in ("one", "two"))
    assert trained["replicas"] == 2
    np.testing.assert_allclose(two["weights"], one["weights"], rtol=1e-4, atol=1e-6)
    assert two["logs"] == pytest.approx(one["logs"], rel=1e-4)
