"""Stage attack_eval: the network against a list of attacks, to eval.json and flags.npz."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pipelines.folder import Folder
from pipelines.provenance import commit, versions
from pipelines.spec import Spec
from tfrobust.data import Split
from tfrobust.evaluation import Result, adversaries, evaluate, predictor, worst_case
from tfrobust.io import write_atomically, write_text

PROBES = 8
SECTIONS = ("seed", "threat", "data", "attacks")


def attack_eval(spec: Spec, folder: Folder, network: keras.Model) -> None:
    """Clean accuracy, then each attack on the test split; eval.json is whole after each one."""
    _, test = spec.data.source.load()
    x, y = test.as_float(), test.labels

    def logits_fn(images: Any) -> Any:
        return network(images, training=False)

    results = _finished(folder, spec)
    left = spec.trials[max(0, len(results) - 1) :]
    for result in evaluate(logits_fn, x, y, spec.threat, left, seed=spec.seed):
        if result.name in [before.name for before in results]:
            continue  # the clean images again
        results.append(result)
        _record(folder, spec, results, test)
        print(f"{result.name}: {result.accuracy:.2%} of {len(result.robust)}", flush=True)
    if spec.trials:
        _probe(folder.probes, spec, logits_fn, test.take(np.arange(min(PROBES, len(test)))))


def _finished(folder: Folder, spec: Spec) -> list[Result]:
    """What an interrupted evaluation of the same inputs had finished: clean, then the first trials.

    eval.json is written last, so flags.npz holds at least its rows.
    """
    if not folder.evaluation.is_file() or not folder.flags.is_file():
        return []
    rows = json.loads(folder.evaluation.read_text(encoding="utf-8"))["attacks"]
    with np.load(folder.flags) as flags:
        clean = Result("clean", flags["clean"], 0.0)
        return [clean, *(Result(r["name"], flags[r["name"]], r["seconds"]) for r in rows)]


def _record(folder: Folder, spec: Spec, results: Sequence[Result], test: Split) -> None:
    clean, *attacked = results
    worst = worst_case(results)
    evaluation = {
        "examples": len(clean.robust),
        "clean_accuracy": clean.accuracy,
        "robust_accuracy": float(worst.mean()) if attacked else None,
        "worst_case_examples": len(worst),
        "attacks": [
            {
                "name": result.name,
                "examples": len(result.robust),
                "robust_accuracy": result.accuracy,
                "seconds": round(result.seconds, 2),
                "config": trial.attack.settings(spec.threat),
            }
            for result, trial in zip(attacked, spec.trials, strict=False)
        ],
        "threat": {"norm": spec.threat.norm, "eps": spec.threat.eps},
        "seed": spec.seed,
        "data": {"name": spec.config["data"]["name"], "split": "test"},
        "versions": versions(),
        "commit": commit(),
        "training_commit": folder.commit("train"),
    }
    flags = {result.name: result.robust for result in results}
    write_atomically(
        folder.flags, lambda p: np.savez(p, index=test.index, label=test.labels, **flags)
    )
    write_text(folder.evaluation, json.dumps(evaluation, indent=2) + "\n")


def _probe(path: Path, spec: Spec, logits_fn: Any, few: Split) -> None:
    """A few images under the first attack, for the report's figure."""
    trial, x, predict = spec.trials[0], few.as_float(), predictor(logits_fn)
    x_adv = adversaries(logits_fn, x, few.labels, trial.attack, spec.threat, seed=spec.seed)
    arrays = {
        "image": x,
        "adversarial": x_adv,
        "label": few.labels,
        "clean_prediction": predict(x),
        "adversarial_prediction": predict(x_adv),
        "index": few.index,
        "attack": np.array(trial.name),
        "class_names": np.array(spec.data.source.class_names),
    }
    write_atomically(path, lambda p: np.savez(p, **arrays))
