"""Attack a network on a test set and count what stays right."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.attacks import SavedImages, Transfer
from tfrobust.distribution import gathered
from tfrobust.evaluation.checks import checks
from tfrobust.evaluation.craft import BATCH_SIZE, LogitsFn, Predict, craft, predictor
from tfrobust.evaluation.inputs import SOME, check_inputs
from tfrobust.evaluation.results import Evaluation, Result, worst_case
from tfrobust.evaluation.trials import AttackSpec, Trial, trials
from tfrobust.registry import choose, in_memory
from tfrobust.threat import Threat

MODES = ("cascade", "each")


def evaluate(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    attacks: AttackSpec | Sequence[AttackSpec] = "autoattack",
    *,
    mode: str = "cascade",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    images: bool = False,
    check: bool = True,
    progress: bool = True,  # on a terminal
) -> Evaluation:
    """The robust accuracy of a network under a list of attacks.

    logits_fn: [B, H, W, C] in the box -> logits [B, C], any callable, such as a Keras network; x:
    float32 [N, H, W, C]; y: int [N]. attacks: "autoattack", "paper", the name of an attack, a
    mapping with its settings, an Attack, or a list of these. mode: "cascade" attacks only what
    the attacks before have left standing; "each" gives every attack all images that are right
    when clean. images: keep the adversarial images. check: end with `checks`, some 200 forward and
    backward passes for each of up to 200 images. Raises UserError for inputs that do not fit.
    """
    found, x, y = trials(attacks, threat), np.asarray(x), np.asarray(y)
    with in_memory("batch_size", batch_size):
        check_inputs(logits_fn, x, y, threat, batch_size)
        options: Any = {"seed": seed, "batch_size": batch_size, "progress": progress}
        results = list(run(logits_fn, x, y, threat, found, mode=mode, images=images, **options))
        signs = checks(logits_fn, x, y, threat, results, **options) if check and found else []
        return Evaluation(results, signs)


def run(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    found: Sequence[Trial],
    *,
    mode: str = "cascade",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    images: bool = False,
    progress: bool = True,
    finished: Iterable[Result] = (),
) -> Iterator[Result]:
    """The results of `evaluate`, each as soon as it is known.

    finished: results of an earlier, interrupted run with the same arguments; they are given again
    and not computed again.
    """
    choose("mode", mode, MODES)
    known = {result.name: result for result in finished}
    classes = logits_fn(tf.constant(x[:1])).shape[-1]
    found = [_fitted(trial, classes, x, trial.name in known) for trial in found]
    predict = predictor(logits_fn, batch_size)
    clean = known.get("clean") or _clean(predict, x, y, images)
    yield clean
    standing = clean.robust.copy()  # after the attacks so far, those of the suite in mode each
    suite: list[Result] = []
    for place, trial in enumerate(found):
        if mode == "each" and not (trial.suite and suite):
            standing = clean.robust.copy()
        if trial.name in known:
            result = dataclasses.replace(known[trial.name], trial=trial)
        else:
            begun = time.perf_counter()
            robust = standing[: trial.examples].copy()
            rows = np.flatnonzero(robust)
            made = craft(
                logits_fn,
                x[rows],
                y[rows],
                trial.attack,
                threat,
                seed=seed,
                batch_size=batch_size,
                progress=trial.name if progress else None,
                rows=rows,
                total=len(robust),
                predict=predict,
            )
            robust[rows] = made.right
            result = Result(
                trial.name,
                robust,
                time.perf_counter() - begun,
                trial,
                len(rows),
                int(made.queries.sum()),
                int(made.gradients.sum()),
                _placed(made.images, rows, x[: len(robust)]) if images else None,
            )
        standing[: len(result.robust)] = result.robust
        yield result
        if trial.suite:
            suite.append(result)
            if place + 1 == len(found) or found[place + 1].suite != trial.suite:
                yield known.get(trial.suite) or _summed(trial.suite, suite)
                suite = []


def _fitted(trial: Trial, classes: int, x: np.ndarray, done: bool) -> Trial:
    """The trial as it runs on this network. Raises UserError, before the first attack begins, for
    one that cannot."""
    attack = trial.attack.fitted(classes)
    if isinstance(attack, Transfer) and not done:
        attack.surrogate.check(x[:SOME], "source")
    if isinstance(attack, SavedImages) and not done:
        attack.lookup(np.arange(0))  # reads and checks the file
    return dataclasses.replace(trial, attack=attack)


def _clean(predict: Predict, x: np.ndarray, y: np.ndarray, images: bool) -> Result:
    begun = time.perf_counter()
    # The first worker's: others may round a tie another way, and all must go on with the same.
    right = gathered((predict(x) == y).astype(np.int32))[0].astype(bool)
    seconds = time.perf_counter() - begun
    return Result("clean", right, seconds, None, len(x), len(x), 0, x if images else None)


def _placed(images: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The images in these rows of a copy of the others."""
    whole = others.copy()
    whole[rows] = images
    return whole


def _summed(name: str, results: Sequence[Result]) -> Result:
    """A suite as one attack."""
    return Result(
        name,
        worst_case(results),
        sum(result.seconds for result in results),
        None,
        max(result.attacked for result in results),
        sum(result.queries for result in results),
        sum(result.gradients for result in results),
    )
