"""The contract of every training method in the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.products import slow_but
from tfrobust import PGD, Threat
from tfrobust.methods import METHODS
from tfrobust.models import small_cnn, with_precision
from tfrobust.registry import parameters

RNG = np.random.default_rng(0)
X = RNG.random((16, 8, 8, 1)).astype("float32")
Y = RNG.integers(0, 3, 16)
DATA = {"image": X, "index": np.arange(16)}
# One method of each kind is fast: an attack alone, a penalty, several updates a batch, and
# perturbed weights.
FAST = ("adv", "atlas", "free", "awp")


def make(name: str, precision: str = "float32", batch_size: int = 8, **options: Any) -> Any:
    """Return a compiled model of a method for images [8, 8, 1] of three classes.

    Args:
        name: The method.
        precision: Of the network.
        batch_size: Of the 16 training images.
        options: Arguments of the method beside those of its example.
    """
    keras.utils.set_random_seed(2)
    method = METHODS[name]
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(4, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]
    network = keras.Sequential(layers)
    if "strength" in method.network_inputs:
        small = {"filters": [4], "kernel": 3, "units": 8}
        network = small_cnn((8, 8, 1), 3, lambdas=[0.0, 0.3, 1.0], **small)
    network = with_precision(network, precision)
    model = method(
        network,
        validation_attack=PGD(steps=2),
        num_examples=16,
        batch_size=batch_size,
        steps_per_epoch=16 // batch_size,
        **{"threat": Threat("linf", 0.05), **method.example, **options},
    )
    model.compile(keras.optimizers.SGD(0.1))
    return model


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of each method in turn."""
    return request.param


@pytest.mark.parametrize("name", slow_but(METHODS, (*FAST, "iaat")))
def test_method_is_fitted_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = make(name, ramp_steps=2)
    before = [weight.numpy() for weight in model.network.trainable_variables]
    options: Any = {"batch_size": 8, "epochs": 2, "validation_data": (DATA, Y), "verbose": 0}
    history = model.fit(DATA, Y, **options).history
    assert {"accuracy", "robust_accuracy"} & history.keys()
    assert np.isfinite(list(history.values())).all()
    validation = {"val_accuracy", "val_robust_accuracy", "val_fgsm_accuracy", "val_jacobian"}
    assert {"loss", *validation} <= history.keys()
    after = [weight.numpy() for weight in model.network.trainable_variables]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))
    assert int(model.step) == 4

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is METHODS[name]
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    for argument in parameters(METHODS[name]):
        if argument != "network":
            assert getattr(loaded, argument) == getattr(model, argument), argument


@pytest.mark.parametrize("name", slow_but(METHODS, FAST))
def test_training_memorises_the_images_in_one_trace(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty steps in bfloat16 at a small eps lower the loss on sixteen images.

    The step is traced once; another trace as eps grows would be slow.
    """
    model = make(name, "mixed_bfloat16", batch_size=16, ramp_steps=4)
    traces, perturb = [], model.perturb

    def counted(batch: Any) -> Any:
        traces.append(1)
        return perturb(batch)

    monkeypatch.setattr(model, "perturb", counted)
    # The conditional network starts with nearly constant outputs and gets more epochs; its loss
    # varies with the random lambdas, so the mean of the last eighth of the epochs counts.
    epochs = 200 if "strength" in METHODS[name].network_inputs else 40
    # A stream, as for each epoch over arrays Keras makes an iterator, which is slower than a step.
    data = tf.data.Dataset.from_tensors((DATA, Y)).repeat()
    losses = model.fit(data, epochs=epochs, steps_per_epoch=1, verbose=0).history["loss"]
    assert np.mean(losses[-epochs // 8 :]) < 0.8 * losses[0]
    # Keras traces a step once, and may trace it once more to build the model.
    assert len(traces) <= 2 * model.updates_per_batch


def batch_of(model: Any) -> dict[str, tf.Tensor]:
    """Return the batch of all 16 images before crafting."""
    data = {key: tf.constant(value) for key, value in DATA.items()}
    return model.as_batch((data, tf.constant(Y)))


def test_loss_draws_no_noise_and_depends_on_no_step(name: str) -> None:
    """The loss of a perturbed batch is the same in another step, where noise would differ."""
    model = make(name, batch_size=16)
    batch = batch_of(model)
    batch |= model.perturb(batch)
    first = model.robust_loss(batch)["loss"].numpy()
    model.step.assign(7)
    np.testing.assert_array_equal(model.robust_loss(batch)["loss"], first)
    assert first.shape == (16,)


def test_no_gradient_flows_through_perturb(name: str) -> None:
    """In the gradients of a step, the entries that `perturb` made are constants."""
    once = {"replays": 1} if "replays" in parameters(METHODS[name]) else {}
    model = make(name, batch_size=16, **once)
    batch, before = batch_of(model), model.network.get_weights()
    crafted = {key: tf.constant(value.numpy()) for key, value in model.perturb(batch).items()}
    _, gradients, _ = model.gradients(batch | crafted)
    model.network.set_weights(before)  # the averages of BatchNorm
    model.update(batch)
    after = [weight.numpy() for weight in model.network.trainable_variables]
    variables = zip(before, model.network.weights, strict=True)
    start = [value for value, variable in variables if variable.trainable]
    for old, new, gradient in zip(start, after, gradients, strict=True):
        np.testing.assert_allclose(new, old - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_eps_0_crafts_the_image_itself(name: str) -> None:
    """A ramp begins at eps 0. A method whose logs have no eps crafts the same at any eps."""
    model = make(name, batch_size=16, ramp_steps=4)
    before = model.network.get_weights()  # crafting may move the averages of BatchNorm
    crafted = model.perturb(batch_of(model))
    if "eps" not in model.scalars():
        at_eps = make(name, batch_size=16)
        at_eps.network.set_weights(before)
        expected = at_eps.perturb(batch_of(at_eps))
        assert crafted.keys() == expected.keys()
        for entry, value in expected.items():
            np.testing.assert_array_equal(crafted[entry], value)
        return
    assert "adv" in crafted
    for entry in crafted.keys() & {"adv", "collaborative", "noisy"}:
        np.testing.assert_array_equal(crafted[entry], X)


@pytest.mark.parametrize("name", slow_but(METHODS, ("adv", "free")))
def test_no_method_moves_a_feature_that_cannot_change(name: str) -> None:
    """Neither at first nor after a step, when tables of perturbations are filled."""
    factors = np.ones((8, 8, 1))
    factors[::2] = 0
    model = make(name, threat=Threat("linf", 0.05, per_feature=factors))
    data = ({"image": X[:8], "index": np.arange(8)}, Y[:8])
    batch = model.as_batch(data, model.requires)
    for _ in range(2):
        entries = model.perturb(batch)
        for entry in {"adv", "collaborative", "noisy"} & entries.keys():
            moved = entries[entry].numpy() != X[:8]
            assert not moved[:, ::2].any(), entry
        model.train_step(data)
