"""The parts of tools/check_gpu.py that need a TensorFlow process of their own.

    python tools/gpu_parts.py methods --json FILE [--quick]

FILE is written after each result, so that a stopped process leaves the results so far.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from device import use, versions
from passes import settings

from tfrobust import FGSM, Threat, provenance, tf32
from tfrobust.data import DATASETS, Split, batches
from tfrobust.methods import METHODS
from tfrobust.models import resnet, with_precision
from tfrobust.models.layers import BatchNorm, MaxPool

IMAGE, CLASSES, BATCH, STEPS, RATE = (8, 8, 3), 5, 16, 3, 0.02
ON_TWO = ("natural", "atlas", "awp", "gkl", "iaat", "oat")
MEMORY = 4096  # MiB of each of two logical devices
EPS = 8 / 255


class Findings:
    """Results by name in a JSON file, which is written after each result."""

    def __init__(self, path: Path):
        self.path = path
        self.measured: dict[str, Any] = {}

    def __call__(self, name: str, value: Any) -> None:
        self.measured[name] = value
        self.path.write_text(json.dumps(self.measured, indent=2) + "\n")


# ------------------------------------------------------------------------- versions and device
def device(say: Findings, args: argparse.Namespace) -> None:
    """Record the device, and the versions that TensorFlow was built for."""
    build = tf.sysconfig.get_build_info()
    gpus = tf.config.list_physical_devices("GPU")
    kind = "gpu" if gpus else "cpu"
    say("gpu", bool(gpus))
    say("device", provenance.device())
    details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
    capability = details.get("compute_capability")
    say("compute capability", ".".join(map(str, capability)) if capability else "none")
    say("commit", provenance.commit())
    say("CUDA", build.get("cuda_version", "none"))
    say("cuDNN", build.get("cudnn_version", "none"))
    for name, version in (provenance.versions() | versions(kind)).items():
        say(name, version)
    say("TensorFloat-32", tf32.in_use())


# --------------------------------------------------- all methods, compiled and not compiled
def methods(say: Findings, args: argparse.Namespace) -> None:
    """Compare a few steps of every method compiled by XLA with the same steps not compiled."""
    names = ON_TWO[:2] if args.quick else list(METHODS)
    for name in names[args.share :: args.shares]:
        _guarded(say, name, functools.partial(_compared, name))


def _compared(name: str) -> dict[str, float]:
    begin = _weights(network(name, normalized=True))
    plain, plain_first = trained(name, normalized=True, jit_compile=False)
    compiled, first = trained(name, normalized=True, jit_compile=True)
    row = {"difference": _relative(compiled, plain, begin)}
    return row | {"first_seconds": first, "first_seconds_uncompiled": plain_first}


# --------------------------------------------------------- two logical devices of the one card
def replicas(say: Findings, args: argparse.Namespace) -> None:
    """Compare methods on two logical devices of one card with one device, compiled by XLA."""
    gpus = tf.config.list_physical_devices("GPU")
    kind = "GPU" if gpus else "CPU"
    card = tf.config.list_physical_devices(kind)[0]
    half = tf.config.LogicalDeviceConfiguration(memory_limit=MEMORY if gpus else None)
    if gpus:
        tf.config.set_visible_devices(card, "GPU")
    tf.config.set_logical_device_configuration(card, [half] * 2)
    both = tf.distribute.MirroredStrategy(
        [f"{kind}:0", f"{kind}:1"],
        # NCCL does not connect two devices of one card.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    for name in ON_TWO[:2] if args.quick else ON_TWO:
        _guarded(say, name, functools.partial(_on_two, name, both))


def _on_two(name: str, both: tf.distribute.Strategy) -> dict[str, float]:
    # Without BatchNorm, as each replica would have the statistics of half a batch.
    begin = _weights(network(name, normalized=False))
    one, _ = trained(name, normalized=False, jit_compile=True)
    two, first = trained(name, normalized=False, jit_compile=True, scope=both.scope())
    return {"difference": _relative(two, one, begin), "first_seconds": first}


def network(name: str, normalized: bool) -> keras.Model:
    """Return a small, smooth network with our kinds of layers; for OAT it takes a `strength`."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    image, strength = keras.Input(IMAGE, name="image"), keras.Input((), name="strength")
    x = layers.Conv2D(8, 3, padding="same", activation="tanh")(image)
    x = MaxPool()(BatchNorm()(x) if normalized else x)
    x = layers.Flatten()(x)
    if name == "oat":
        x = layers.Concatenate()([x, layers.Reshape((1,))(strength)])
    logits = layers.Dense(CLASSES)(layers.Dense(16, "tanh")(x))
    inputs = {"image": image, "strength": strength} if name == "oat" else image
    return keras.Model(inputs, logits)


def trained(
    name: str,
    *,
    normalized: bool,
    jit_compile: bool,
    scope: contextlib.AbstractContextManager[Any] | None = None,
) -> tuple[np.ndarray, float]:
    """Return the weights after a few steps in float32, and the seconds up to the first step."""
    rng = np.random.default_rng(0)
    count = STEPS * BATCH
    images, labels = rng.random((count, *IMAGE), np.float32), rng.integers(0, CLASSES, count)
    data = batches(Split.of(images, labels), BATCH, training=True)
    facts: dict[str, Any] = {"num_examples": count, "batch_size": BATCH, "steps_per_epoch": STEPS}
    timer = FirstStep()
    with tf32.switched_off():
        with scope or contextlib.nullcontext():
            model = METHODS[name](
                network(name, normalized),
                threat=Threat("linf", 0.05),
                **facts,
                **settings(name, 2),
            )
            model.compile(keras.optimizers.SGD(RATE, momentum=0.9), jit_compile=jit_compile)
        model.fit(data, steps_per_epoch=STEPS, verbose=0, callbacks=[timer])
    return _weights(model.network), timer.seconds


class FirstStep(keras.callbacks.Callback):
    """Measures the seconds from the start of training to the end of the first step."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.begun, self.seconds = time.perf_counter(), 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds = self.seconds or time.perf_counter() - self.begun


def _weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def _relative(result: np.ndarray, expected: np.ndarray, begin: np.ndarray) -> float:
    """Return the largest difference of a weight divided by the largest change in training."""
    return float(np.abs(result - expected).max() / np.abs(expected - begin).max())


# -------------------------------------------------------------- a network to attack
def fitted(say: Findings, args: argparse.Namespace) -> None:
    """Train a ResNet-18 briefly by one-step ADV in bfloat16, and save it as FILE.keras."""
    has_cifar = (Path(os.environ.get("TFDS_DATA_DIR", "")) / "cifar10").is_dir()
    real = has_cifar and not args.quick
    options = {} if real else {"like": "cifar10", "train": 512 if args.quick else 20_000}
    split = DATASETS["cifar10" if real else "synthetic"](**options).load("train")
    size, epochs = (16, 1) if args.quick else (128, 3)
    split = split.first(4 * size) if args.quick else split
    steps = len(split) // size
    keras.utils.set_random_seed(0)
    plain = resnet((32, 32, 3), 10, width=4 if args.quick else 64)
    chosen = with_precision(plain, "mixed_bfloat16")
    model = METHODS["adv"](chosen, threat=Threat("linf", EPS), attack=FGSM())
    decay = keras.optimizers.schedules.CosineDecay(0.1, steps * epochs)
    model.compile(keras.optimizers.SGD(decay, momentum=0.9))
    data = batches(split, size, training=True, augment="crop_flip")
    timer = FirstStep()
    start = time.perf_counter()
    history = model.fit(data, steps_per_epoch=steps, epochs=epochs, verbose=0, callbacks=[timer])
    say("data", "cifar10" if real else "synthetic")
    say("training_seconds", time.perf_counter() - start)
    say("first_seconds", timer.seconds)
    say("loss", history.history["loss"][-1])
    with_precision(chosen, "float32").save(say.path.with_suffix(".keras"))


def _guarded(say: Findings, name: str, compute: Callable[[], Any]) -> None:
    """Record a result, or the error that computing it raises."""
    try:
        say(name, compute())
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        say(name, {"failed": f"{type(error).__name__}: {message}"})


PARTS: dict[str, Callable[[Findings, argparse.Namespace], None]] = {
    "device": device,
    "methods": methods,
    "replicas": replicas,
    "fitted": fitted,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--json", type=Path, required=True, help="where to write the results")
    parser.add_argument(
        "--quick", action="store_true", help="tiny networks and few images, to try the command"
    )
    parser.add_argument("--share", type=int, default=0, help="which share of the methods, from 0")
    parser.add_argument("--shares", type=int, default=1, help="the number of shares")
    args = parser.parse_args()
    tf.get_logger().setLevel("ERROR")  # each model is new, so warnings of retracing say nothing
    if args.part != "replicas":
        use(None)
    PARTS[args.part](Findings(args.json), args)


if __name__ == "__main__":
    main()
