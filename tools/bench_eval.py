"""AutoAttack on one network, ours against the public implementation: wall time and accuracy.

    python tools/bench_eval.py RUN --autoattack DIR --data mnist --eps 0.3 --examples 1000

RUN: a run folder or .keras file of one of our networks. DIR:
a checkout of github.com/fra31/auto-attack (a392200). --adapter runs the checkout's TensorFlow
adapter instead of its torch form; its `.cuda()` calls have to be taken out of the checkout first.
Both sides get the same weights, images and batches of 250, one after the other in this process, on
all cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from torch_network import TorchNetwork

from tfrobust import Threat
from tfrobust.data import DATASETS
from tfrobust.evaluation import Trial, run, trials
from tfrobust.models import load_keras

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
THEIRS = ("apgd-ce", "apgd-t", "fab-t", "square")
BATCH_SIZE = 250


def theirs(
    network: keras.Model, x: np.ndarray, y: np.ndarray, threat: Threat, seed: int, adapter: bool
) -> list[dict[str, Any]]:
    """The public AutoAttack, each attack on what the ones before have left standing."""
    from autoattack import AutoAttack

    options = {"norm": NORMS[threat.norm], "eps": threat.eps, "seed": seed, "device": "cpu"}
    if adapter:
        from autoattack.utils_tf2 import ModelAdapter

        model = ModelAdapter(network)
        predict = model.predict
    else:
        model = predict = TorchNetwork(network).eval()
    adversary = AutoAttack(model, verbose=False, is_tf_model=adapter, **options)
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(y).long()
    with torch.no_grad():
        right = torch.cat([predict(part).argmax(1) for part in images.split(BATCH_SIZE)]) == labels
    rows = []
    for name in THEIRS:
        adversary.attacks_to_run = [name]
        begun = time.perf_counter()
        standing = torch.where(right)[0]
        found = adversary.run_standard_evaluation(images[standing], labels[standing], BATCH_SIZE)
        with torch.no_grad():
            logits = torch.cat([predict(part) for part in found.split(BATCH_SIZE)])
        seconds = time.perf_counter() - begun
        right[standing] = logits.argmax(1) == labels[standing]
        rows.append({"attack": name, "seconds": seconds, "robust": float(right.float().mean())})
        _tell("theirs", rows[-1])
    return rows


def ours(
    network: keras.Model, x: np.ndarray, y: np.ndarray, threat: Threat, seed: int
) -> list[dict[str, Any]]:
    """tfrobust's AutoAttack; tracing counts."""
    listed: list[Trial] = trials("autoattack", threat)
    rows = []
    for result in run(
        lambda images: network(images, training=False),
        x,
        y,
        threat,
        listed,
        seed=seed,
        batch_size=BATCH_SIZE,
        progress=False,
    ):
        if result.trial is not None:
            name = result.trial.attack.title
            rows.append({"attack": name, "seconds": result.seconds, "robust": result.accuracy})
            _tell("ours", rows[-1])
    return rows


def _tell(side: str, row: dict[str, Any]) -> None:
    print(f"{side:7} {row['attack']:8} {row['seconds']:8.1f} s  {row['robust']:.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder or .keras file")
    parser.add_argument("--autoattack", type=Path, required=True, help="the checkout")
    parser.add_argument("--adapter", action="store_true", help="their TensorFlow adapter")
    parser.add_argument("--data", default="mnist", choices=sorted(DATASETS))
    parser.add_argument("--norm", default="linf", choices=sorted(NORMS))
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    sys.path.insert(0, str(args.autoattack))
    network, threat = load_keras(args.run), Threat(args.norm, args.eps)
    test = DATASETS[args.data]().load("test")
    x, y = test.as_float()[: args.examples], test.labels[: args.examples]
    forward = TorchNetwork(network).eval()
    gap = np.abs(
        forward(torch.from_numpy(x[:100]).permute(0, 3, 1, 2)).detach().numpy()
        - network(x[:100]).numpy()
    ).max()
    print(f"largest difference of a logit between the two networks: {gap:.1e}")
    rows = {
        "theirs": theirs(network, x, y, threat, args.seed, args.adapter),
        "ours": ours(network, x, y, threat, args.seed),
    }
    for side, listed in rows.items():
        total = {"attack": "all", "seconds": sum(r["seconds"] for r in listed)}
        _tell(side, total | {"robust": listed[-1]["robust"]})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
