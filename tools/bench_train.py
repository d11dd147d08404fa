"""Measure the time of our training steps beside that of the same steps in torch.

    python tools/bench_train.py --network wrn_16_2 --precision float32 --rounds 5 --json FILE

For each method the sides take turns after a warm-up, and the table has medians over the turns. A
turn has two steps, of which the second is measured; on a GPU it has ten, of which the last five are
measured between two waits for the device. On a GPU our step is compiled by XLA. The torch side has
the same weights, batch and passes in several forms: eager, eager on channels-last tensors, and with
--compile torch.compile, which has no double backward. bfloat16 in torch is autocast. --plain adds
our step on Keras's own BatchNormalization and MaxPooling2D, and --art the trainer of
adversarial-robustness-toolbox on TensorFlow (ADV only). Without torch only our step is measured.

FLOPs are those of a forward pass times the counted passes. The peak is the best rate at which
TensorFlow or torch multiplies two matrices in the same process. The rate of the input pipeline is
measured too; it must exceed the rate of the steps.

    python tools/bench_train.py --methods --network wrn_16_2 --steps 1

measures all our methods instead, in turns with natural training and ADV under the same attack, and
shows the number of passes of each (tools/passes.py).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from device import TOGETHER, Side, has_torch, name_of, peaks, torch_device, use, versions
from gpu_table import steps
from passes import passes
from passes import settings as settings_of
from tqdm import tqdm

from tfrobust import FGSM, PGD, Threat
from tfrobust.data import Split, batches
from tfrobust.methods import METHODS
from tfrobust.models import trades_cnn, wide_resnet, with_precision
from tfrobust.report.text import markdown_table

COLOUR = (32, 32, 3)


def _wide(depth: int, width: int) -> Callable[..., keras.Model]:
    return functools.partial(wide_resnet, depth=depth, width=width)


# name: (image shape, batch size, network); wrn_10_1 is small enough to try the tool.
NETWORKS: dict[str, tuple[tuple[int, int, int], int, Callable[..., keras.Model]]] = {
    "mnist": ((28, 28, 1), 128, trades_cnn),
    "wrn_10_1": (COLOUR, 16, _wide(10, 1)),
    "wrn_16_2": (COLOUR, 64, _wide(16, 2)),
    "wrn_28_2": (COLOUR, 64, _wide(28, 2)),
    "wrn_28_8": (COLOUR, 128, _wide(28, 8)),
    "wrn_28_10": (COLOUR, 128, _wide(28, 10)),
}
# (title, method, steps of the attack, alpha, beta, passes). The unit of passes is a forward pass: a
# gradient with respect to the image costs one more; a gradient with respect to image and weights
# costs two more; the gradient through the two passes of the Jacobian term costs four more.
ROWS = (
    ("natural", "natural", 0, 0.0, 0.0, 3),
    ("ADV, 1 step", "adv", 1, 0.0, 0.0, 2 + 3),
    ("ADV, 10 steps", "adv", 10, 0.0, 0.0, 20 + 3),
    ("TRADES, 1 step", "trades", 1, 0.0, 5.0, 1 + 2 + 6),
    ("ATLAS, 1 step", "atlas", 1, 1e-4, 5.0, 2 + 2 + 4 + 3),
    ("ATLAS, 10 steps", "atlas", 10, 1e-4, 5.0, 20 + 2 + 4 + 3),
)
EPS, CLASSES, RATE, MOMENTUM = 8 / 255, 10, 0.01, 0.9


def ours(network: keras.Model, row: tuple, x: np.ndarray, y: np.ndarray) -> Side:
    """Return our step: the train function of Keras on a data set that repeats the batch."""
    _, name, steps, alpha, beta, _ = row
    settings: dict[str, Any] = {"alpha": alpha} if alpha else {}
    if beta:
        settings["beta"] = beta
    if steps:
        # An attack of one step is FGSM, which also starts at random, projects and clips.
        settings["attack"] = FGSM() if steps == 1 else PGD(steps=steps, step_size=EPS / 4)
    return _compiled(name, network, settings, x, y)


def _compiled(
    name: str, network: keras.Model, settings: dict[str, Any], x: np.ndarray, y: np.ndarray
) -> Side:
    facts: dict[str, Any] = {"num_examples": len(x), "batch_size": len(x), "steps_per_epoch": 1}
    model = METHODS[name](network, threat=Threat("linf", EPS), **facts, **settings)
    model.compile(keras.optimizers.SGD(RATE, momentum=MOMENTUM))
    model.optimizer.build(network.trainable_variables)
    model.make_train_function()
    data = ({"image": x, "index": np.arange(len(x))}, y)
    # As in a run, batches have no fixed length; with a fixed one TensorFlow would fuse no ReLU.
    batch = iter(tf.data.Dataset.from_tensor_slices(data).batch(len(x)).cache().repeat())
    return Side(lambda: model.train_function(batch)["loss"], float, bool(model.jit_compile))


def plain(network: keras.Model) -> keras.Model:
    """Return the network with Keras's layers instead of our layers."""

    def layer(layer: Any) -> Any:
        config, kind = layer.get_config(), type(layer).__name__
        if kind == "BatchNorm":
            return keras.layers.BatchNormalization.from_config(config)
        return keras.layers.MaxPooling2D() if kind == "MaxPool" else type(layer).from_config(config)

    copy = keras.models.clone_model(network, clone_function=layer)
    copy.set_weights(network.get_weights())
    return copy


def methods(args: argparse.Namespace, x: np.ndarray, y: np.ndarray) -> None:
    """Print a table of all methods beside natural training and ADV."""
    shape, _, make = NETWORKS[args.network]

    def step(name: str) -> Side:
        lambdas = {"lambdas": [0.0, 0.1, 0.2, 0.3, 0.4, 1.0]} if name == "oat" else {}
        network = with_precision(make(shape, CLASSES, **lambdas), args.precision)
        settings = settings_of(name, args.steps)
        settings.pop("lambdas", None)  # the method draws the lambdas of the network
        return _compiled(name, network, settings, x, y)

    references, cells = {name: step(name) for name in ("natural", "adv")}, []
    for name in tqdm([n for n in METHODS if _is_chosen(args, n)], disable=None):
        if name == "oat" and args.network == "mnist":
            continue  # this network takes no lambda
        seconds = medians({**references, "method": step(name)}, args)
        ratios = [f"{seconds['method'] / seconds[side]:.2f}" for side in references]
        counts = map(str, passes(name, args.steps))
        cells.append([name, f"{1000 * seconds['method']:.0f}", *ratios, *counts])
    header = ["method", "ms", "x natural", "x ADV", "forward", "backward"]
    print(markdown_table(header, cells))


def art(network: keras.Model, row: tuple, x: np.ndarray, y: np.ndarray) -> Side:
    """Return a step of adversarial-robustness-toolbox's trainer on its TensorFlow classifier."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import TensorFlowV2Classifier

    optimizer = keras.optimizers.SGD(RATE, momentum=MOMENTUM)
    classifier = TensorFlowV2Classifier(
        network,
        CLASSES,
        x.shape[1:],
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer,
        clip_values=(0, 1),
    )
    steps = row[2]
    attack = ProjectedGradientDescent(
        classifier,
        eps=EPS,
        eps_step=1.25 * EPS if steps == 1 else EPS / 4,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    trainer = AdversarialTrainer(classifier, attack, ratio=1.0)
    return Side(lambda: trainer.fit(x, y, batch_size=len(x), nb_epochs=1))


def theirs(
    network: keras.Model, row: tuple, x: np.ndarray, y: np.ndarray, args: argparse.Namespace
) -> dict[str, Side]:
    """Return the same step in torch, in each of its forms; no step without torch."""
    if args.ours_only:
        return {}
    import torch_step

    forms: dict[str, dict[str, Any]] = {
        "torch": {},
        "torch, channels last": {"channels_last": True},
    }
    if args.compile and not row[3]:  # torch.compile has no double backward
        forms["torch.compile"] = {"compiled": True}
    device = torch_device(args.device)
    torch_step.prepare(device)
    settings: dict[str, Any] = {"eps": EPS, "rate": RATE, "momentum": MOMENTUM, "device": device}
    settings["autocast"] = args.precision == "mixed_bfloat16"
    return {
        form: Side(
            torch_step.step(network, row, x, y, **settings, **options),
            lambda _: torch_step.wait(device),
        )
        for form, options in forms.items()
    }


def flops(network: keras.Model, size: int) -> int:
    """Return the FLOPs of the matrix products and convolutions in a forward pass of `size` images.

    A multiplication and an addition are two FLOPs.
    """
    total = 0
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            places = np.prod(layer.output.shape[1:-1], dtype=int)
            total += 2 * int(places) * int(np.prod(layer.kernel.shape))
    return size * total


def fed(shape: tuple[int, int, int], size: int) -> float:
    """Return the batches per second of the input pipeline alone, with crops and flips."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20 * size, *shape), np.uint8)
    split = Split.of(images, rng.integers(0, CLASSES, len(images)))
    data = iter(batches(split, size, training=True, augment="crop_flip"))
    next(data)
    side = Side(lambda: next(data)["image"].numpy())
    return 1 / statistics.median(side.seconds(1) for _ in range(60))


def medians(sides: Mapping[str, Side], args: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of a step of each side, over --rounds turns after a warm-up.

    Only the second half of a turn is measured, as the threads of the side before it slow down the
    first half.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, args.rounds):  # the first warms up
        for name, side in sides.items():
            side.seconds(TOGETHER[args.device])
            seconds = side.seconds(TOGETHER[args.device])
            if turn >= 0:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def _is_chosen(args: argparse.Namespace, title: str) -> bool:
    return any(part in title for part in args.rows)


def measured(
    row: tuple, args: argparse.Namespace, x: np.ndarray, y: np.ndarray
) -> tuple[dict[str, float], dict[str, float], bool]:
    """Return, by side, the seconds of a step and of the first step; and whether ours is by XLA."""
    shape, _, make = NETWORKS[args.network]
    network = make(shape, CLASSES)
    sides = theirs(network, row, x, y, args)
    if args.art and row[1] == "adv" and args.precision == "float32":
        sides["ART"] = art(make(shape, CLASSES), row, x, y)
    if args.plain:
        sides["ours, Keras's layers"] = ours(
            with_precision(plain(network), args.precision), row, x, y
        )
    sides["ours"] = ours(with_precision(network, args.precision), row, x, y)
    first = {name: side.seconds(1) for name, side in sides.items()}
    return medians(sides, args), first, sides["ours"].xla


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="mnist", choices=NETWORKS)
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16"])
    parser.add_argument("--device", choices=TOGETHER, help="by default a GPU where there is one")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument(
        "--rows", nargs="*", default=[""], help="parts of the titles to run (default: all)"
    )
    parser.add_argument("--compile", action="store_true", help="add torch.compile")
    parser.add_argument("--ours-only", action="store_true", help="leave torch out")
    parser.add_argument("--plain", action="store_true", help="add our step on Keras's layers")
    parser.add_argument("--art", action="store_true", help="add the toolbox's trainer (ADV)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--methods", action="store_true", help="time all our methods instead")
    parser.add_argument("--steps", type=int, default=1, help="steps of the attack, with --methods")
    args = parser.parse_args()

    args.device = use(args.device)
    shape, size, make = NETWORKS[args.network]
    rng = np.random.default_rng(0)
    x = rng.random((size, *shape), np.float32)
    y = rng.integers(0, CLASSES, size).astype(np.int32)
    if args.methods:
        methods(args, x, y)
        return
    dtype = "bfloat16" if args.precision == "mixed_bfloat16" else "float32"
    args.ours_only = args.ours_only or not has_torch(args.device)
    measured_peaks = peaks(dtype, args.device, torch=not args.ours_only)
    peak = max(measured_peaks.values())
    values = ", ".join(f"{name} {value / 1e12:.3f}" for name, value in measured_peaks.items())
    print(f"peak in {dtype}: {values} TFLOP/s", flush=True)
    rate = fed(shape, size)
    print(f"input pipeline: {rate:.0f} batches/s, {rate * size:.0f} images/s", flush=True)
    if args.ours_only:
        print("torch is left out: --ours-only, or none that computes on this device", flush=True)
    forward = flops(make(shape, CLASSES), size)
    rows: list[dict[str, Any]] = []
    record: dict[str, Any] = {
        "network": args.network,
        "precision": args.precision,
        "batch": size,
        "rounds": args.rounds,
        "device": name_of(args.device),
        "peak": peak,
        "peaks": measured_peaks,
        "input_batches_per_second": rate,
        "rows": rows,
        "versions": versions(args.device),
    }
    for row in (row for row in ROWS if _is_chosen(args, row[0])):
        seconds, first, xla = measured(row, args, x, y)
        counted = row[-1] * forward
        record["xla"] = xla
        rows.append({"row": row[0], "flops": counted, "seconds": seconds, "first_seconds": first})
        times = "  ".join(f"{side} {1000 * s:.1f} ms" for side, s in seconds.items())
        share = counted / seconds["ours"] / peak
        print(f"{row[0]:16} {times}  {share:.0%} of the peak", flush=True)
        if args.json:  # after each row, so that a stopped process leaves its rows
            args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(steps(record))


if __name__ == "__main__":
    main()
