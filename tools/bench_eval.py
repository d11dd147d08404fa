"""Compare AutoAttack with its public implementation on one network: wall time and accuracy.

    python tools/bench_eval.py RUN --autoattack DIR --data mnist --eps 0.3 --examples 1000

RUN is a run folder or a .keras file of one of our networks. DIR is a checkout of
github.com/fra31/auto-attack (a392200); without it only our AutoAttack is measured. --adapter uses
the TensorFlow adapter of the checkout instead of its torch form; on a CPU its `.cuda()` calls have
to be removed first. Both sides get the same weights, images and batches of 250, one after the other
in this process, on a GPU or on all cores. On a GPU our side is compiled by XLA.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from device import has_torch, name_of, torch_device, use, versions

from tfrobust import Threat
from tfrobust.data import DATASETS, Split
from tfrobust.evaluation import ListedAttack, list_attacks, run
from tfrobust.models import load_keras

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
THEIRS = ("apgd-ce", "apgd-t", "fab-t", "square")
BATCH_SIZE = 250


def theirs(
    network: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    args: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each attack of the public AutoAttack, which runs as a cascade."""
    import torch
    from autoattack import AutoAttack
    from torch_network import TorchNetwork

    device = torch_device(args.device)
    options = {"norm": NORMS[threat.norm], "eps": threat.eps, "seed": args.seed, "device": device}
    if args.adapter:
        from autoattack.utils_tf2 import ModelAdapter

        model = ModelAdapter(network)
        predict = model.predict
    else:
        model = predict = TorchNetwork(network).eval().to(device)
    adversary = AutoAttack(model, verbose=False, is_tf_model=args.adapter, **options)
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.from_numpy(y).long().to(device)
    with torch.no_grad():
        classes = torch.cat([predict(part).argmax(1) for part in images.split(BATCH_SIZE)])
        correct = classes == labels
    for name in THEIRS[: args.attacks]:
        adversary.attacks_to_run = [name]
        start = time.perf_counter()
        rest = torch.where(correct)[0]
        if not len(rest):
            break
        adversarial = adversary.run_standard_evaluation(images[rest], labels[rest], BATCH_SIZE)
        adversarial = adversarial.to(device)
        with torch.no_grad():
            logits = torch.cat([predict(part) for part in adversarial.split(BATCH_SIZE)])
        correct[rest] = logits.argmax(1) == labels[rest]
        robust = float(correct.float().mean())  # the conversion waits for the device
        seconds = time.perf_counter() - start
        yield _row(name, seconds, robust, len(x))


def ours(
    network: keras.Model, x: np.ndarray, y: np.ndarray, threat: Threat, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield a row for each attack of our AutoAttack; its time includes tracing and compiling."""
    attack_list: list[ListedAttack] = list_attacks("autoattack", threat)
    for result in run(
        lambda images: network(images, training=False),
        x,
        y,
        threat,
        attack_list[: args.attacks],
        seed=args.seed,
        batch_size=BATCH_SIZE,
        progress=False,
        jit_compile="auto",
    ):
        if result.listed is not None:
            name = result.listed.attack.title
            yield _row(name, result.seconds, result.accuracy, len(x))


def _row(attack: str, seconds: float, robust: float, images: int) -> dict[str, Any]:
    rate = images / seconds
    return {"attack": attack, "seconds": seconds, "robust": robust, "images_per_second": rate}


def _print(side: str, row: dict[str, Any]) -> None:
    print(
        f"{side:7} {row['attack']:8} {row['seconds']:8.1f} s  {row['robust']:.2%}"
        f"  {row['images_per_second']:.1f} images/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder or .keras file")
    parser.add_argument("--autoattack", type=Path, help="the checkout; without it ours runs alone")
    parser.add_argument("--adapter", action="store_true", help="their TensorFlow adapter")
    parser.add_argument(
        "--device", choices=["cpu", "gpu"], help="by default a GPU where there is one"
    )
    parser.add_argument("--data", default="mnist", choices=sorted(DATASETS))
    parser.add_argument("--norm", default="linf", choices=sorted(NORMS))
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument(
        "--attacks", type=int, default=4, help="how many of the four attacks, from the first"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    args.device = use(args.device)
    network, threat = load_keras(args.run), Threat(args.norm, args.eps)
    test = images_of(args.data, args.examples)
    x, y = test.as_float(), test.labels
    sides = {"ours": ours(network, x, y, threat, args)}
    if args.autoattack:
        if not has_torch(args.device):
            raise SystemExit("--autoattack: expected a torch that computes on this device")
        sys.path.insert(0, str(args.autoattack))
        print(f"largest difference of any logit between the two networks: {gap(network, x):.1e}")
        sides["theirs"] = theirs(network, x, y, threat, args)
    record: dict[str, Any] = {
        "device": name_of(args.device),
        "images": len(x),
        "versions": versions(args.device),
    }
    for side, rows in sides.items():
        record[side] = []
        for row in rows:
            record[side].append(row)
            _print(side, row)
            if args.json:  # after each attack, so that a stopped process leaves its rows
                args.json.write_text(json.dumps(record, indent=2) + "\n")
        seconds = sum(row["seconds"] for row in record[side])
        _print(side, _row("all", seconds, record[side][-1]["robust"], len(x)))


def images_of(name: str, count: int) -> Split:
    """Return the first test images of a data set; "synthetic" has the shape of CIFAR-10."""
    options = {"like": "cifar10", "test": count} if name == "synthetic" else {}
    test = DATASETS[name](**options).load("test")
    return test.first(min(count, len(test)))


def gap(network: keras.Model, x: np.ndarray) -> float:
    """Return the largest difference of any logit between the network and its torch form."""
    import torch
    from torch_network import TorchNetwork

    forward = TorchNetwork(network).eval()
    logits = forward(torch.from_numpy(x[:100]).permute(0, 3, 1, 2)).detach().numpy()
    return float(np.abs(logits - network(x[:100]).numpy()).max())


if __name__ == "__main__":
    main()
