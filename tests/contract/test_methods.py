"""What every training method of the registry promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import PGD, Threat
from tfrobust.methods import METHODS
from tfrobust.models import with_precision
from tfrobust.registry import parameters

RNG = np.random.default_rng(0)
X = RNG.random((16, 8, 8, 1)).astype("float32")
Y = RNG.integers(0, 3, 16)
TERMS = {"alpha": 0.01, "beta": 1.0}  # values for what a method asks for


def make(name: str, precision: str = "float32", **options: Any) -> Any:
    keras.utils.set_random_seed(2)
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(4, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]
    network = with_precision(keras.Sequential(layers), precision)
    takes = parameters(METHODS[name])
    terms = {k: v for k, v in TERMS.items() if k in takes}
    threat = Threat("linf", 0.05)
    model = METHODS[name](
        network, threat=threat, validation_attack=PGD(steps=2), **terms, **options
    )
    model.compile(keras.optimizers.SGD(0.1))
    return model


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_fits_saves_and_loads(name: str, tmp_path: Path) -> None:
    model = make(name, ramp_steps=2)
    before = model.network.get_weights()
    fitted = model.fit(X, Y, batch_size=8, epochs=2, validation_data=(X, Y), verbose=0)
    history = fitted.history
    assert np.isfinite([values for values in history.values()]).all()
    for required in ("loss", "val_accuracy", "val_robust_accuracy", "val_fgsm_accuracy",
                     "val_jacobian"):  # fmt: skip
        assert required in history
    after = model.network.get_weights()
    assert all((a != b).any() for a, b in zip(after, before, strict=True))
    assert int(model.step) == 4

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is METHODS[name]
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    for argument in parameters(METHODS[name]):
        if argument != "network":
            assert getattr(loaded, argument) == getattr(model, argument), argument


def test_the_loss_falls_in_one_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen images by heart, in bfloat16: forty steps at a small eps are enough for every
    method. A robust_loss traced anew as eps grows would be slow."""
    model, traces = make(name, "mixed_bfloat16", ramp_steps=4), []
    run = model.robust_loss
    monkeypatch.setattr(model, "robust_loss", lambda batch: (traces.append(1), run(batch))[1])
    losses = model.fit(X, Y, batch_size=16, epochs=40, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert len(traces) <= 2  # Keras traces it once, and may once to build


def test_perturb_draws_the_noise_and_the_loss_draws_none(name: str) -> None:
    """A function of batch and weights only: evaluated twice it is the same, in any step."""
    model = make(name)
    batch = model.as_batch((tf.constant(X), tf.constant(Y)))
    batch |= model.perturb(batch)
    first = model.robust_loss(batch)["loss"].numpy()
    model.step.assign(7)
    np.testing.assert_array_equal(model.robust_loss(batch)["loss"], first)
    assert first.shape == (16,)
