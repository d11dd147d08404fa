"""Stage attack_eval: the network against a list of attacks, to eval.json and flags.npz."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.folder import Folder
from pipelines.provenance import commit, versions
from pipelines.sections import EvaluationOptions
from pipelines.spec import Spec
from pipelines.stages.pictures import pictures
from tfrobust.data import Split
from tfrobust.evaluation import (
    Check,
    Result,
    check_inputs,
    checks,
    eps_curve,
    least_eps,
    merged,
    predictor,
    run,
    settings,
    worst_case,
)
from tfrobust.evaluation.craft import LogitsFn
from tfrobust.io import UNREADABLE, write_atomically, write_text
from tfrobust.models import SavedNetwork
from tfrobust.registry import require

CURVE = 500  # test images
GRID = 1e-4  # of 1/255: float32 rounding
SECTIONS = ("seed", "threat", "data", "model", "attacks", "evaluation")


def attack_eval(spec: Spec, folder: Folder, logits_fn: SavedNetwork) -> None:
    """Clean accuracy, then each attack on the test split; eval.json is whole after each one."""
    test = spec.data.source.load("test")
    x, y, options = test.as_float(), test.labels, spec.evaluation
    test = dataclasses.replace(test, images=x)  # those of files are decoded once
    check_inputs(logits_fn, x, y, spec.threat, options.batch_size)
    if options.save == "uint8":
        expected = "float32, as the images are no multiples of 1/255"
        off = max(np.abs(np.rint(255 * image) - 255 * image).max() for image in x)
        require(off < 1e-3, "evaluation.save", expected, options.save)
    finished, known = _finished(folder, spec)
    results: list[Result] = []
    for result in run(
        logits_fn,
        x,
        y,
        spec.threat,
        spec.trials,
        mode=options.mode,
        seed=spec.seed,
        batch_size=options.batch_size,
        images=options.save is not None,
        finished=finished,
    ):
        results.append(result)
        if len(results) > len(finished):
            _record(folder, spec, results, test, logits_fn)
            results[-1] = dataclasses.replace(result, images=None)  # the file has what is needed
            print(f"{result.name}: {result.accuracy:.2%} of {len(result.robust)}", flush=True)
    if spec.trials:
        found = checks(
            logits_fn, x, y, spec.threat, results, seed=spec.seed, batch_size=options.batch_size
        )
        curve: list[dict[str, float]] = []
        _record(folder, spec, results, test, logits_fn, found, known)
        for row in _curve(spec, logits_fn, x, y, results, known):
            curve.append(row)
            if len(curve) > len(known):
                _record(folder, spec, results, test, logits_fn, found, curve)
        for check in found:
            if check.warns:
                print(f"warning: {check.name}: {check.text}", flush=True)
        sizes: Any = {"seed": spec.seed, "batch_size": options.batch_size}
        few = slice(CURVE)
        least = least_eps(
            logits_fn, x[few], y[few], spec.threat, clean=results[0].robust[few], **sizes
        )
        over_eps = eps_curve(least, spec.threat)
        _record(folder, spec, results, test, logits_fn, found, curve, over_eps)
        pictures(spec, folder, logits_fn, test, results)


def _curve(
    spec: Spec,
    network: SavedNetwork,
    x: np.ndarray,
    y: np.ndarray,
    first: Sequence[Result],
    known: Sequence[dict[str, float]],
) -> Iterator[dict[str, float]]:
    """Of a once-for-all network clean and worst-case accuracy at each lambda of the config, and at
    each of its widths."""
    for place, row in enumerate(_points(spec.evaluation)):
        if place < len(known):
            yield known[place]
            continue
        results: Sequence[Result] = first
        if place:
            width = row.get("width", network.width)
            at = dataclasses.replace(network, strength=row["lambda"], width=width)
            options: Any = {"seed": spec.seed, "batch_size": spec.evaluation.batch_size}
            results = list(run(at, x, y, spec.threat, spec.trials, **options))
        worst = worst_case(results)
        clean, robust = float(results[0].robust[: len(worst)].mean()), float(worst.mean())
        where = ", ".join(f"{name} {value:g}" for name, value in row.items())
        print(f"{where}: {clean:.2%} clean, {robust:.2%} robust", flush=True)
        yield row | {"clean_accuracy": clean, "robust_accuracy": robust}


def _points(options: EvaluationOptions) -> list[dict[str, float]]:
    """Where a once-for-all network is evaluated: each lambda, and each at all widths."""
    if options.lambdas is None and options.widths is None:
        return []
    lambdas = [{"lambda": value} for value in options.lambdas or [1.0]]
    if options.widths is None:
        return lambdas
    return [row | {"width": width} for width in options.widths for row in lambdas]


def _finished(folder: Folder, spec: Spec) -> tuple[list[Result], list[dict[str, float]]]:
    """What an interrupted evaluation of the same inputs had finished: clean, then the first rows;
    and of the trade-off curve.

    eval.json is written last, so flags.npz holds at least its rows.
    """
    kept = [folder.adversarial] if spec.evaluation.save else []
    if not all(path.is_file() for path in (folder.evaluation, folder.flags, *kept)):
        return [], []
    try:
        return _read(folder, spec)
    except (*UNREADABLE, TypeError, AttributeError):
        files = f"{folder.evaluation} and {folder.flags.name}"
        print(f"warning: {files}: damaged, all attacks are run again", flush=True)
        return [], []


def _read(folder: Folder, spec: Spec) -> tuple[list[Result], list[dict[str, float]]]:
    whole = json.loads(folder.evaluation.read_text(encoding="utf-8"))
    rows, curve = whole["attacks"], whole.get("curve", [])
    with np.load(folder.flags) as flags:
        clean = Result("clean", flags["clean"], 0.0)
        found = [
            Result(
                row["name"],
                flags[row["name"]],
                row["seconds"],
                attacked=row["attacked"],
                queries=row["queries"],
                gradients=row["gradients"],
            )
            for row in rows
        ]
        return [clean, *found], curve


def _record(
    folder: Folder,
    spec: Spec,
    results: Sequence[Result],
    test: Split,
    logits_fn: LogitsFn,
    found: Sequence[Check] = (),
    curve: Sequence[dict[str, float]] = (),
    over_eps: Sequence[dict[str, float]] = (),
) -> None:
    """Everything known so far, eval.json last."""
    clean, *attacked = results
    worst = worst_case(results)
    done = {result.name for result in attacked}
    evaluation = {
        "examples": len(clean.robust),
        "clean_accuracy": clean.accuracy,
        "robust_accuracy": float(worst.mean()) if attacked else None,
        "worst_case_examples": len(worst),
        "mode": spec.evaluation.mode,
        "attacks": [settings(result, spec.threat) for result in attacked],
        "pending": [trial.name for trial in spec.trials if trial.name not in done],
        "checks": [dataclasses.asdict(check) for check in found],
        "curve": list(curve),
        "eps_curve": list(over_eps),
        "threat": {"norm": spec.threat.norm, "eps": spec.threat.eps},
        "seed": spec.seed,
        "data": {"name": spec.config["data"]["name"], "split": "test"},
        "model": spec.config.get("model"),
        "versions": versions(),
        "commit": commit(),
        "training_commit": folder.commit("train"),
    }
    if spec.evaluation.save is not None:
        evaluation |= _save_images(folder.adversarial, spec, results, test, logits_fn)
    flags = {result.name: result.robust for result in results}
    write_atomically(
        folder.flags, lambda p: np.savez(p, index=test.index, label=test.labels, **flags)
    )
    write_text(folder.evaluation, json.dumps(evaluation, indent=2) + "\n")


def _save_images(
    path: Path, spec: Spec, results: Sequence[Result], test: Split, logits_fn: LogitsFn
) -> dict[str, float]:
    """Of each test image the adversary that broke it first, else the last that was tried.

    As uint8 the images are rounded to 1/255, which may undo an attack: the accuracy on the
    rounded images is returned, for those that every attack saw.
    """
    before = test.as_float()
    if path.is_file():
        with np.load(path) as saved:
            before = _as_float(saved["image"])
    images = merged(before, results)
    accuracy = {}
    if spec.evaluation.save == "uint8":
        images = _rounded(images, test.as_float())
        n = len(worst_case(results))  # of so many is the headline
        predict = predictor(logits_fn, spec.evaluation.batch_size)
        right = predict(_as_float(images[:n])) == test.labels[:n]
        accuracy["rounded_robust_accuracy"] = float((right & results[0].robust[:n]).mean())
    write_atomically(path, lambda p: np.savez(p, image=images, label=test.labels, index=test.index))
    return accuracy


def _rounded(images: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Multiples of 1/255 as uint8, towards the clean image: what is in the ball stays there."""
    scaled = np.float64(255) * images
    up = images < clean
    whole = np.where(up, np.ceil(scaled - GRID), np.floor(scaled + GRID))
    return whole.astype(np.uint8)


def _as_float(images: np.ndarray) -> np.ndarray:
    return images / np.float32(255) if images.dtype == np.uint8 else images
