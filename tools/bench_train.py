"""Time one training step of ours beside the same step in torch.

    python tools/bench_train.py --network wrn_16_2 --precision float32 --rounds 5 --json FILE

After a warm-up the sides take turns, for each method. A turn has two steps, of which the second
counts; on a GPU it has ten, of which the last five count, between two waits for the device. The
table shows medians. On a GPU our step is compiled by XLA. The torch side has the same weights,
batch and passes, in several forms: eager, eager on channels-last tensors, and with --compile
torch.compile where that works (it has no double backward); bfloat16 is autocast. Without torch only
our step is timed. --plain adds our step on Keras's own BatchNormalization and MaxPooling2D, --art
the trainer of adversarial-robustness-toolbox on TensorFlow (ADV only).

FLOPs are those of a forward pass times the counted passes. The peak is the best rate of TensorFlow
and torch at the product of two matrices, measured in the same process. So is the rate of the input
pipeline, which must be above that of the steps.

    python tools/bench_train.py --methods --network wrn_16_2 --steps 1

times every method of ours instead, in turns with natural training and ADV under the same attack,
and shows the passes that each takes (tools/passes.py).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from device import TOGETHER, Side, has_torch, name_of, peaks, torch_device, use, versions
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


# name: (image shape, batch size, network); wrn_10_1 is small enough to try the tool with.
NETWORKS: dict[str, tuple[tuple[int, int, int], int, Callable[..., keras.Model]]] = {
    "mnist": ((28, 28, 1), 128, trades_cnn),
    "wrn_10_1": (COLOUR, 16, _wide(10, 1)),
    "wrn_16_2": (COLOUR, 64, _wide(16, 2)),
    "wrn_28_2": (COLOUR, 64, _wide(28, 2)),
    "wrn_28_8": (COLOUR, 128, _wide(28, 8)),
    "wrn_28_10": (COLOUR, 128, _wide(28, 10)),
}
# (title, method, steps of the attack, alpha, beta, passes). The unit of passes is a forward pass: a
# gradient with respect to the image costs one more, one with respect to the weights as well two
# more, and the gradient through the two passes of the Jacobian term four.
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
    """Return our step: Keras's own train function on a data set that repeats the batch."""
    _, name, steps, alpha, beta, _ = row
    settings: dict[str, Any] = {"alpha": alpha} if alpha else {}
    if beta:
        settings["beta"] = beta
    if steps:
        # A one-step attack is FGSM; both project, clip and start at random.
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
    # The data set has no fixed length, as in a run: with one, TensorFlow leaves ReLUs unfused.
    batch = iter(tf.data.Dataset.from_tensor_slices(data).batch(len(x)).cache().repeat())
    return Side(lambda: model.train_function(batch)["loss"], float, bool(model.jit_compile))


def plain(network: keras.Model) -> keras.Model:
    """Return the network with Keras's own layers in place of ours."""

    def layer(layer: Any) -> Any:
        config, kind = layer.get_config(), type(layer).__name__
        if kind == "BatchNorm":
            return keras.layers.BatchNormalization.from_config(config)
        return keras.layers.MaxPooling2D() if kind == "MaxPool" else type(layer).from_config(config)

    made = keras.models.clone_model(network, clone_function=layer)
    made.set_weights(network.get_weights())
    return made


def methods(args: argparse.Namespace, x: np.ndarray, y: np.ndarray) -> None:
    """Print a table of all methods beside natural training and ADV."""
    shape, _, make = NETWORKS[args.network]

    def step(name: str) -> Side:
        lambdas = {"lambdas": [0.0, 0.1, 0.2, 0.3, 0.4, 1.0]} if name == "oat" else {}
        network = with_precision(make(shape, CLASSES, **lambdas), args.precision)
        settings = settings_of(name, args.steps)
        settings.pop("lambdas", None)  # those of the network are drawn
        return _compiled(name, network, settings, x, y)

    beside, cells = {name: step(name) for name in ("natural", "adv")}, []
    for name in tqdm([n for n in METHODS if _is_chosen(args, n)], disable=None):
        if name == "oat" and args.network == "mnist":
            continue  # this network takes no lambda
        sides = {**beside, "own": step(name)}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(-1, args.rounds):
            for name_of_side, side in sides.items():
                seconds = _turn(side, args.device)
                if turn >= 0:
                    times[name_of_side].append(seconds)
        natural, adv, step_time = (statistics.median(values) for values in times.values())
        counts = map(str, passes(name, args.steps))
        ratios = [f"{step_time / natural:.2f}", f"{step_time / adv:.2f}"]
        cells.append([name, f"{1000 * step_time:.0f}", *ratios, *counts])
    header = ["method", "ms", "x natural", "x ADV", "forward", "backward"]
    print(markdown_table(header, cells))


def art(network: keras.Model, row: tuple, x: np.ndarray, y: np.ndarray) -> Side:
    """Return one batch of adversarial-robustness-toolbox's trainer on its TensorFlow classifier."""
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
    if args.compile and not row[3]:  # it has no double backward
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
    """Return the FLOPs of a forward pass of `size` images in matrix products and convolutions, in
    which a multiplication and an addition are two."""
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


def _turn(side: Side, device: str) -> float:
    """Return the seconds of a step, measured in the second half of a turn: the threads of the side
    before slow down the first half."""
    side.seconds(TOGETHER[device])
    return side.seconds(TOGETHER[device])


def _is_chosen(args: argparse.Namespace, title: str) -> bool:
    return any(part in title for part in args.rows)


def measured(
    row: tuple, args: argparse.Namespace, x: np.ndarray, y: np.ndarray
) -> tuple[dict[str, float], dict[str, float], bool]:
    """Return the seconds of a step and those of the first step, both by side, and whether XLA
    compiles our step."""
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
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in tqdm(range(-1, args.rounds), desc=row[0], disable=None):  # the first warms up
        for name, side in sides.items():
            seconds = _turn(side, args.device)
            if turn >= 0:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians, first, sides["ours"].xla


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
        medians, first, xla = measured(row, args, x, y)
        counted = row[-1] * forward
        record["xla"] = xla
        rows.append({"row": row[0], "flops": counted, "seconds": medians, "first_seconds": first})
        times = "  ".join(f"{side} {1000 * s:.1f} ms" for side, s in medians.items())
        share = counted / medians["ours"] / peak
        print(f"{row[0]:16} {times}  {share:.0%} of the peak", flush=True)
        if args.json:  # after each row, so that a run that is stopped keeps its rows
            args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """Return the Markdown table of the figures."""
    rows = record["rows"]
    sides = dict.fromkeys(side for row in rows for side in row["seconds"])
    others = [side for side in sides if side != "ours"]
    cells = []
    for row in rows:
        seconds = row["seconds"]
        rivals = [s for side, s in seconds.items() if not side.startswith("ours")]
        cells.append(
            [
                row["row"],
                _milliseconds(seconds["ours"]),
                *(_milliseconds(seconds.get(side)) for side in others),
                f"{min(rivals) / seconds['ours']:.2f}" if rivals else "–",
                f"{row['flops'] / 1e9:.1f}",
                f"{100 * row['flops'] / seconds['ours'] / record['peak']:.0f} %",
            ]
        )
    header = ["step", "ours (ms)", *others, "fastest / ours", "GFLOP", "of the peak"]
    return markdown_table(header, cells)


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1000 * seconds:.1f}" if seconds < 0.02 else f"{1000 * seconds:.0f}"


if __name__ == "__main__":
    main()
