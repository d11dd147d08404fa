"""Time of one training step, ours against the same step in torch, in one run.

    python tools/bench_train.py --network wrn_16_2 --precision float32 --rounds 5 --json FILE

For each method the sides take turns, two steps each, of which the second counts, after warming up;
the table has the medians. The torch side has the same weights, batch and passes: eager, eager on
channels-last tensors, and with --compile torch.compile where it can (it has no double backward); in
bfloat16 under autocast. --art adds adversarial-robustness-toolbox's trainer on TensorFlow (ADV
only). FLOPs are those of a forward pass times the counted passes; the peak is that of a product of
two 4096 x 4096 matrices, measured in the same run, and so is the rate of the input pipeline, which
must be above that of the steps.

    python tools/bench_train.py --methods --network wrn_16_2 --steps 1

times every method of ours instead, each in turns with natural training and ADV under the same
attack, beside the passes that it takes (tools/passes.py).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
from passes import passes
from passes import settings as settings_of
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torch_network import TorchNetwork
from tqdm import tqdm

from tfrobust import FGSM, PGD, Threat
from tfrobust.data import Split, batches
from tfrobust.methods import METHODS
from tfrobust.models import trades_cnn, wide_resnet, with_precision
from tfrobust.report.text import markdown_table

NETWORKS: dict[str, tuple[tuple[int, int, int], int, Callable[..., keras.Model]]] = {
    "mnist": ((28, 28, 1), 128, trades_cnn),
    "wrn_16_2": ((32, 32, 3), 64, functools.partial(wide_resnet, depth=16, width=2)),
    "wrn_28_2": ((32, 32, 3), 64, functools.partial(wide_resnet, depth=28, width=2)),
}
# (title, method, steps of the attack, alpha, beta, passes). Passes are forward ones: a gradient in
# the image costs one more, in the weights too two more, and that of the Jacobian term's two passes
# four.
ROWS = (
    ("natural", "natural", 0, 0.0, 0.0, 3),
    ("ADV, 1 step", "adv", 1, 0.0, 0.0, 2 + 3),
    ("ADV, 10 steps", "adv", 10, 0.0, 0.0, 20 + 3),
    ("TRADES, 1 step", "trades", 1, 0.0, 5.0, 1 + 2 + 6),
    ("ATLAS, 1 step", "atlas", 1, 1e-4, 5.0, 2 + 2 + 4 + 3),
    ("ATLAS, 10 steps", "atlas", 10, 1e-4, 5.0, 20 + 2 + 4 + 3),
)
EPS, CLASSES, RATE, MOMENTUM = 8 / 255, 10, 0.01, 0.9
SIZE = 4096  # of the matrices whose product is the peak

Step = Callable[[], None]


def ours(network: keras.Model, row: tuple, x: np.ndarray, y: np.ndarray) -> Step:
    """Keras's own compiled train function on a data set that repeats the batch."""
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
) -> Step:
    facts: dict[str, Any] = {"num_examples": len(x), "batch_size": len(x), "steps_per_epoch": 1}
    model = METHODS[name](network, threat=Threat("linf", EPS), **facts, **settings)
    model.compile(keras.optimizers.SGD(RATE, momentum=MOMENTUM))
    model.optimizer.build(network.trainable_variables)
    model.make_train_function()
    data = ({"image": x, "index": np.arange(len(x))}, y)
    # Of no fixed length, as the pipeline's own: with one, TensorFlow leaves ReLUs unfused.
    batch = iter(tf.data.Dataset.from_tensor_slices(data).batch(len(x)).cache().repeat())

    def step() -> None:
        float(model.train_function(batch)["loss"])  # waits for the step's end

    return step


def methods(args: argparse.Namespace, x: np.ndarray, y: np.ndarray) -> None:
    """A table of all methods beside natural training and ADV."""
    shape, _, make = NETWORKS[args.network]

    def step(name: str) -> Step:
        lambdas = {"lambdas": [0.0, 0.1, 0.2, 0.3, 0.4, 1.0]} if name == "oat" else {}
        network = with_precision(make(shape, CLASSES, **lambdas), args.precision)
        return _compiled(name, network, settings_of(name, args.steps), x, y)

    beside, cells = {name: step(name) for name in ("natural", "adv")}, []
    for name in tqdm([n for n in METHODS if args.rows in n], disable=None):
        if name == "oat" and args.network == "mnist":
            continue  # this network takes no lambda
        sides = {**beside, "own": step(name)}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(-1, args.rounds):
            for side, run in sides.items():
                run()
                seconds = _timed(run)
                if turn >= 0:
                    times[side].append(seconds)
        natural, adv, own = (statistics.median(values) for values in times.values())
        counts = map(str, passes(name, args.steps))
        ratios = [f"{own / natural:.2f}", f"{own / adv:.2f}"]
        cells.append([name, f"{1000 * own:.0f}", *ratios, *counts])
    header = ["method", "ms", "x natural", "x ADV", "forward", "backward"]
    print(markdown_table(header, cells))


def theirs(
    network: keras.Model,
    row: tuple,
    x: np.ndarray,
    y: np.ndarray,
    *,
    channels_last: bool = False,
    autocast: bool = False,
    compiled: bool = False,
) -> Step:
    """The same step in torch."""
    _, name, steps, alpha, beta, _ = row
    model: Any = TorchNetwork(network)
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(y).long()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    size = 1.25 * EPS if steps == 1 else EPS / 4
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # one for each mode and each kind of input
        model = torch.compile(model)

    def logits(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(images).float()

    def crafted() -> torch.Tensor:
        model.eval()
        clean = logits(images).detach().log_softmax(1) if name == "trades" else None
        found = (images + EPS * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
        for _ in range(steps):
            found.requires_grad_(True)
            out = logits(found)
            loss = (
                F.cross_entropy(out, labels, reduction="sum") if clean is None else _kl(out, clean)
            )
            (gradient,) = torch.autograd.grad(loss, found)
            found = found.detach() + size * gradient.sign()
            found = (images + (found - images).clamp(-EPS, EPS)).clamp(0, 1)
        return found

    def step() -> None:
        adversarial = crafted() if steps else images
        model.train()
        optimizer.zero_grad(set_to_none=True)
        centre = adversarial if name in ("adv", "atlas") else images
        if alpha:
            centre = centre.detach().requires_grad_(True)
        out = logits(centre)
        loss = F.cross_entropy(out, labels)
        if alpha:
            along = F.normalize(torch.randn_like(out), dim=1)
            (jacobian,) = torch.autograd.grad((along * out).sum(), centre, create_graph=True)
            loss = loss + alpha * CLASSES * jacobian.square().sum() / len(images)
        if beta:
            other = logits(images if name == "atlas" else adversarial)
            loss = loss + beta * _kl(other, out.log_softmax(1)) / len(images)
        loss.backward()
        optimizer.step()

    return step


def _kl(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The sum over the batch of KL(softmax of the reference || softmax(logits))."""
    return F.kl_div(logits.log_softmax(1), reference, reduction="sum", log_target=True)


def art(network: keras.Model, row: tuple, x: np.ndarray, y: np.ndarray) -> Step:
    """adversarial-robustness-toolbox's trainer on its TensorFlow classifier: a batch a call."""
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
    return lambda: trainer.fit(x, y, batch_size=len(x), nb_epochs=1)


def flops(network: keras.Model, x: np.ndarray) -> int:
    """Of a forward pass of the batch: matrix products and convolutions, as torch counts them."""
    model, images = TorchNetwork(network), torch.from_numpy(x).permute(0, 3, 1, 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops())


def peak(dtype: str) -> float:
    """FLOP/s of a large matrix product in TensorFlow."""
    a = tf.cast(tf.random.normal([SIZE, SIZE]), dtype)
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(a, a)))
    product()
    return 2 * SIZE**3 / statistics.median(_timed(lambda: float(product())) for _ in range(5))


def fed(shape: tuple[int, int, int], size: int) -> float:
    """Batches a second of the input pipeline alone, images cropped and flipped."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20 * size, *shape), np.uint8)
    split = Split.of(images, rng.integers(0, CLASSES, len(images)))
    data = iter(batches(split, size, training=True, augment="crop_flip"))
    next(data)
    return 1 / statistics.median(_timed(lambda: next(data)["image"].numpy()) for _ in range(60))


def _timed(step: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="mnist", choices=NETWORKS)
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16"])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--rows", default="", help="titles that contain this; all by default")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too")
    parser.add_argument("--art", action="store_true", help="the toolbox's trainer, too (ADV)")
    parser.add_argument("--json", help="where to write the figures")
    parser.add_argument("--methods", action="store_true", help="all methods of ours instead")
    parser.add_argument("--steps", type=int, default=1, help="of the attack, with --methods")
    args = parser.parse_args()

    shape, size, make = NETWORKS[args.network]
    rng = np.random.default_rng(0)
    x = rng.random((size, *shape), np.float32)
    y = rng.integers(0, CLASSES, size).astype(np.int32)
    if args.methods:
        methods(args, x, y)
        return
    half = args.precision == "mixed_bfloat16"
    top = peak("bfloat16" if half else "float32")
    print(f"peak: {top / 1e12:.3f} TFLOP/s in {'bfloat16' if half else 'float32'}", flush=True)
    rate = fed(shape, size)
    print(f"input pipeline: {rate:.0f} batches/s, {rate * size:.0f} images/s", flush=True)
    found, forward = [], flops(make(shape, CLASSES), x)
    for row in (row for row in ROWS if args.rows in row[0]):
        network = make(shape, CLASSES)
        sides: dict[str, Step] = {
            "torch": theirs(network, row, x, y, autocast=half),
            "torch, channels last": theirs(network, row, x, y, autocast=half, channels_last=True),
        }
        if args.compile and not row[3]:  # it has no double backward
            sides["torch.compile"] = theirs(network, row, x, y, autocast=half, compiled=True)
        if args.art and row[1] == "adv" and not half:
            sides["ART"] = art(make(shape, CLASSES), row, x, y)
        sides["ours"] = ours(with_precision(network, args.precision), row, x, y)
        counted = row[-1] * forward
        times: dict[str, list[float]] = {side: [] for side in sides}
        bar = tqdm(range(-1, args.rounds), desc=row[0], disable=None)
        for turn in bar:  # the first warms up
            for side, step in sides.items():
                step()  # the first in a turn is slowed down by the threads of the side before
                seconds = _timed(step)
                if turn >= 0:
                    times[side].append(seconds)
        medians = {side: statistics.median(values) for side, values in times.items()}
        found.append({"row": row[0], "flops": counted, "seconds": medians})
        told = "  ".join(f"{side} {1000 * s:.0f} ms" for side, s in medians.items())
        share = counted / medians["ours"] / top
        print(f"{row[0]:16} {told}  {share:.0%} of the peak", flush=True)
    _table(found, top)
    if args.json:
        record = {
            "network": args.network,
            "precision": args.precision,
            "batch": size,
            "rounds": args.rounds,
            "peak": top,
            "input_batches_per_second": rate,
            "rows": found,
            "versions": {"tensorflow": tf.__version__, "torch": torch.__version__},
        }
        with open(args.json, "w") as file:
            file.write(json.dumps(record, indent=2) + "\n")


def _table(found: list[dict[str, Any]], top: float) -> None:
    others = [s for s in dict.fromkeys(s for r in found for s in r["seconds"]) if s != "ours"]
    cells = []
    for row in found:
        seconds = row["seconds"]
        fastest = min(seconds[side] for side in others if side in seconds)
        cells.append(
            [
                row["row"],
                f"{1000 * seconds['ours']:.0f}",
                *(f"{1000 * seconds[s]:.0f}" if s in seconds else "–" for s in others),
                f"{fastest / seconds['ours']:.2f}",
                f"{row['flops'] / 1e9:.1f}",
                f"{100 * row['flops'] / seconds['ours'] / top:.0f} %",
            ]
        )
    print(
        markdown_table(
            ["step", "ours (ms)", *others, "fastest / ours", "GFLOP", "of the peak"], cells
        )
    )


if __name__ == "__main__":
    main()
