"""Print results of one device and of two as JSON: `python two_devices.py FUNCTION...`.

The fixture `on_two_devices` runs it in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import FGSM, PGD, Threat, distribution, noise
from tfrobust.attacks import RayS, Square
from tfrobust.data import Split, batches
from tfrobust.errors import UserError
from tfrobust.evaluation import craft
from tfrobust.methods import METHODS, Ema
from tfrobust.models.layers import BatchNorm, Dropout
from tfrobust.registry import parameters
from tfrobust.training import (
    BatchTimer,
    CatastrophicOverfitting,
    Checkpoints,
    Guided,
    History,
    Resume,
)

STEPS, BATCH = 20, 8
# Settings for those methods that have them, beside their examples.
TERMS = {"alpha": 0.1, "beta": 1.0, "max_margin": 0.2, "warmup_epochs": 0, "group": BATCH // 2}


def network(normalized: str | bool) -> keras.Model:
    """Return a network for images [4, 4, 1] of three classes.

    Args:
        normalized: False for no BatchNorm, "own" for statistics of each replica, True for
            statistics of all replicas.
    """
    keras.utils.set_random_seed(1)
    layers: list[Any] = [keras.Input((4, 4, 1))]
    layers += [BatchNorm(synchronized=normalized is True)] if normalized else []
    layers += [keras.layers.Flatten(), keras.layers.Dense(8, "tanh"), Dropout(0.2)]
    layers += [keras.layers.Dense(3)]
    return keras.Sequential(layers)


def conditional() -> keras.Model:
    """Return a network of an image [4, 4, 1] and lambda."""
    keras.utils.set_random_seed(1)
    image, strength = keras.Input((4, 4, 1), name="image"), keras.Input((), name="strength")
    both = [keras.layers.Flatten()(image), keras.layers.Reshape((1,))(strength)]
    hidden = Dropout(0.2)(keras.layers.Dense(8, "tanh")(keras.layers.Concatenate()(both)))
    return keras.Model({"image": image, "strength": strength}, keras.layers.Dense(3)(hidden))


def model_for(method: str, normalized: str | bool = False) -> Any:
    """Return the compiled model of a method, or of "awp over oat".

    Args:
        method: The name.
        normalized: The BatchNorm of `network`.
    """
    name = method.split()[0]
    takes = parameters(METHODS[name])
    terms = METHODS[name].example | {k: v for k, v in TERMS.items() if k in takes}
    if method == "trades":
        terms["averaging"] = Ema(decay=0.5, statistics="averaged")
    if method.startswith("trades"):  # after ten steps from near the image a sign differs
        terms["attack"] = FGSM()
    if method == "awp over oat":
        terms["method"] = {"name": "oat", "lambdas": [0, 1]}
    takes_lambda = method == "awp over oat" or "strength" in METHODS[name].network_inputs
    model = METHODS[name](
        conditional() if takes_lambda else network(normalized),
        threat=Threat("linf", 0.1),
        validation_attack=PGD(steps=2),
        ramp_steps=2,
        l2=0.01,
        num_examples=STEPS * BATCH,
        batch_size=BATCH,
        steps_per_epoch=STEPS,
        **terms,
    )
    # The rate is small where rounding errors grow fast: with several updates a batch, or a stiff
    # loss. At 0.1 a sign of TRADES's FGSM differs.
    rate = 0.02 if normalized or method in ("free", "gkl", "mart") else 0.05
    model.compile(keras.optimizers.SGD(rate, momentum=0.9))
    return model


def fit(model: Any, steps: int = STEPS, **options: Any) -> tuple[np.ndarray, dict[str, float]]:
    """Return all weights and tables as one vector, and the logs of the last epoch.

    Args:
        model: A compiled model, trained on batches as in the pipelines.
        steps: The steps of an epoch.
        options: Arguments of `fit`.
    """
    rng = np.random.default_rng(0)
    x = rng.random((STEPS * BATCH, 4, 4, 1)).astype("float32")
    split = Split.of(x, rng.integers(0, 3, len(x)))
    first = steps * options.get("initial_epoch", 0)
    logs = model.fit(
        batches(split, BATCH, training=True, first_step=first),
        steps_per_epoch=steps,
        validation_data=batches(split, BATCH),
        verbose=0,
        **options,
    ).history
    weights = np.concatenate([weight.ravel() for weight in model.get_weights()])
    return weights, {name: float(values[-1]) for name, values in logs.items()}


def resumed(folder: Path) -> tuple[np.ndarray, str]:
    """Train two epochs, each with a new model that loads the checkpoint.

    Returns:
        The weights as one vector, and the text of history.csv.
    """
    for epoch in range(2):
        model = model_for("adv")
        model.optimizer.build(model.trainable_variables)
        steering = [BatchTimer(), *Guided().callbacks(0), CatastrophicOverfitting()]
        checkpoints = Checkpoints(folder)
        lines = checkpoints.note.get("history", [])
        history = History(folder / "history.csv", lines, folder / "tensorboard")
        resume = Resume(model, checkpoints, steering, STEPS, history=history)
        assert resume.epoch == epoch
        callbacks = [*steering, history, resume]
        weights, _ = fit(model, initial_epoch=epoch, epochs=epoch + 1, callbacks=callbacks)
    return weights, (folder / "history.csv").read_text()


def drawn(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Return for each kind of noise eight rows of one device, and four rows of each of two."""
    seed = noise.seed_for(1, 2, "test")

    def draws(rows: int) -> dict[str, Any]:
        balls = {f"ball {p}": noise.uniform_in_ball([rows, 3], seed, p) for p in ("linf", "l2")}
        names = ("uniform", "normal", "unit_vectors")
        return balls | {name: getattr(noise, name)([rows, 3], seed) for name in names}

    parts = strategy.run(tf.function(lambda: draws(4)))
    joined = {k: np.concatenate(strategy.experimental_local_results(v)) for k, v in parts.items()}
    return {k: [v.numpy().tolist(), joined[k].tolist()] for k, v in draws(8).items()}


def trained(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Return weights and logs of all methods on one device and on two, and of a resumed run."""
    out: dict[str, Any] = {"replicas": strategy.num_replicas_in_sync}
    cases = [(method, False) for method in METHODS] + [("atlas", True)]
    for method, normalized in cases:
        name = f"{method} with BatchNorm" if normalized else method
        for devices, scope in (("one", contextlib.nullcontext()), ("two", strategy.scope())):
            with scope:
                model = model_for(method, normalized)
            weights, logs = fit(model)
            out[f"{name} {devices}"] = {"weights": weights.tolist(), "logs": logs}

    with strategy.scope(), tempfile.TemporaryDirectory() as folder:
        out["straight"] = fit(model_for("adv"), epochs=2)[0].tolist()
        weights, out["history"] = resumed(Path(folder))
        out["resumed"] = weights.tolist()
    return out


def compiled(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Return weights and logs of all methods after three steps on two devices, by XLA and not."""
    out: dict[str, Any] = {}
    cases = [(method, False) for method in [*METHODS, "awp over oat"]]
    for method, normalized in [*cases, ("atlas", True), ("awp", True), ("iaat", True)]:
        name = f"{method} with BatchNorm" if normalized else method
        for jit_compile in (False, True):
            with strategy.scope():
                model = model_for(method, normalized and "own")
                model.compile(keras.optimizers.SGD(0.02, momentum=0.9), jit_compile=jit_compile)
            weights, logs = fit(model, 3)
            out[f"{name} {jit_compile}"] = {"weights": weights.tolist(), "logs": logs}
    return out


def evaluated(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Return the results of PGD and Square."""
    return evaluated_by([PGD(steps=3, success="any", restarts=2), Square(queries=20)], strategy)


def evaluated_by_others(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Return the results of FGSM and RayS."""
    return evaluated_by([FGSM(), RayS(queries=9)], strategy)


# The modules of which each has its own reference to the strategy.
EVALUATION = [
    importlib.import_module(f"tfrobust.evaluation.{name}") for name in ("crafting", "searches")
]


def evaluated_by(attacks: list[Any], strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Return images, flags, queries and gradients of attacks on one device and on two.

    Batches have 3 of the 14 images.
    """
    rng = np.random.default_rng(0)
    x, y = rng.random((14, 4, 4, 1)).astype("float32"), rng.integers(0, 3, 14)
    out: dict[str, Any] = {}
    for devices, current in (("one", tf.distribute.get_strategy()), ("two", strategy)):
        for module in (*EVALUATION, distribution):
            module.strategy = lambda current=current: current  # type: ignore[attr-defined]
        with current.scope():
            logits_fn = network(normalized=False)
        out[devices] = []
        for attack in attacks:
            crafted = craft(logits_fn, x, y, attack, Threat("linf", 0.1), batch_size=3)
            out[devices].append([part.tolist() for part in crafted[:4]])
    return out | {"replicas": strategy.num_replicas_in_sync}


def weighted(strategy: tf.distribute.Strategy) -> list[dict[str, Any]]:
    """Return the logs of training and validation on one device and on two.

    Examples have different weights, and the devices have different parts of the last batch.
    """
    rng = np.random.default_rng(0)
    x, y = rng.random((13, 4, 4, 1)).astype("float32"), rng.integers(0, 3, 13)
    weight = rng.random(13).astype("float32") ** 4
    logs = []
    for scope in (contextlib.nullcontext(), strategy.scope()):
        with scope:
            model = model_for("adv")
        options: Any = {"sample_weight": weight[:8], "class_weight": {0: 0.1}}
        history = model.fit(x[:8], y[:8], 4, 1, 0, **options).history
        validation = model.evaluate(x, y, 8, 0, sample_weight=weight, return_dict=True)
        validation.pop("jacobian")  # each part of the last batch draws its own projections
        logs.append({name: float(values[-1]) for name, values in history.items()} | validation)
    return logs


def uneven(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Return logs after an epoch of 9 examples, and whether the weights are finite.

    Of a batch of 3 the devices get 2 and 1; of the last batch, after one of 8, they get 1 and none.
    """
    rng, out = np.random.default_rng(0), {}
    x, y = rng.random((9, 4, 4, 1)).astype("float32"), rng.integers(0, 3, 9)
    for size in (3, 8):
        with strategy.scope():
            model = model_for("adv", "own")
        logs = model.fit(x, y, size, 1, 0).history | model.evaluate(x, y, size, 0, return_dict=True)
        finite = all(np.isfinite(weight).all() for weight in model.network.get_weights())
        out[f"{size}"] = {"finite": finite, "logs": {k: float(np.sum(v)) for k, v in logs.items()}}
    return out


def refused(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Return the error of `fit` for one wrong pixel, and how far the network has moved.

    The pixel is in the second half of the batch, which the second device has.
    """
    x = np.full((8, 4, 4, 1), 0.5, np.float32)
    x[6, 0, 0, 0] = 9.0
    with strategy.scope():
        model = model_for("adv")
    before, line = model.network.get_weights(), ""
    try:
        model.fit(tf.data.Dataset.from_tensor_slices((x, np.zeros(8, int))).batch(8), verbose=0)
    except UserError as error:
        line = str(error)
    pairs = zip(before, model.network.get_weights(), strict=True)
    return {"line": line, "moved": max(float(np.abs(a - b).max()) for a, b in pairs)}


def clipped(strategy: tf.distribute.Strategy) -> dict[str, list[list[float]]]:
    """Return how far each way of clipping lets the weights move, on one device and on two."""
    x = np.random.default_rng(0).random((8, 4, 4, 1)).astype("float32")
    y = np.array([0, 0, 0, 0, 1, 1, 2, 2])  # so that the parts of the gradient differ
    out: dict[str, list[list[float]]] = {}
    for limit in ("clipnorm", "global_clipnorm", "clipvalue"):
        out[limit] = []
        for scope in (contextlib.nullcontext(), strategy.scope()):
            with scope:
                model = model_for("adv")
                model.compile(keras.optimizers.SGD(0.1, **{limit: 0.01}))
            before = model.network.get_weights()
            model.fit(x, y, 8, 2, 0, shuffle=False)
            pairs = zip(model.network.get_weights(), before, strict=True)
            out[limit].append(np.concatenate([(a - b).ravel() for a, b in pairs]).tolist())
    return out


def overflowing(strategy: tf.distribute.Strategy) -> list[tuple[float, float]]:
    """Return how far weights move, and the scale of the loss, after a step that overflows.

    The example that overflows is in the second half of the batch, which the second device has.
    """
    x = np.random.default_rng(0).random((8, 4, 4, 1)).astype("float32")
    weight, out = np.ones(8, np.float32), []
    weight[6] = 1e37
    for scope in (contextlib.nullcontext(), strategy.scope()):
        keras.config.set_dtype_policy("mixed_float16")
        with scope:
            model = model_for("adv")
        keras.config.set_dtype_policy("float32")
        before = model.network.get_weights()
        model.fit(x, np.arange(8) % 3, 8, 1, 0, sample_weight=weight, shuffle=False)
        pairs = zip(model.network.get_weights(), before, strict=True)
        moved = max(float(np.abs(a.astype(float) - b).max()) for a, b in pairs)
        scales = strategy.experimental_local_results(model.optimizer.dynamic_scale.value)
        (scale,) = {float(each.numpy()) for each in scales}
        out.append((moved, scale))
    return out


def unsuitable(strategy: tf.distribute.Strategy) -> dict[str, str]:
    """Return the errors of what Keras cannot do on two devices."""
    rng, lines = np.random.default_rng(0), {}
    data = batches(Split.of(rng.random((16, 4, 4, 1), np.float32), np.arange(16) % 3), BATCH)
    settings: dict[str, tuple[str, Any, dict[str, Any]]] = {
        "steps": ("adv", {}, {"steps_per_execution": 2}),
        "accumulated": ("adv", {"gradient_accumulation_steps": 2}, {}),
        "overwritten": ("adv", {"use_ema": True, "ema_overwrite_frequency": 2}, {}),
        "loop": ("iaat", {}, {}),
    }
    for name, (method, options, compiled_with) in settings.items():
        with strategy.scope():
            model = model_for(method, normalized=True)
            model.compile(keras.optimizers.SGD(0.01, **options), **compiled_with)
        try:
            model.fit(data, verbose=0)
        except UserError as error:
            lines[name] = str(error)
        if name == "accumulated":  # takes no part in an evaluation
            lines["evaluated"] = ", ".join(model.evaluate(data, verbose=0, return_dict=True))
    return lines


if __name__ == "__main__":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    print(json.dumps({name: globals()[name](mirrored) for name in sys.argv[1:]}))
