"""Attack a network on a test set and count what stays right."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tfrobust.attacks import Transfer
from tfrobust.evaluation.craft import BATCH_SIZE, LogitsFn, craft, predictor
from tfrobust.evaluation.inputs import SOME, check_inputs
from tfrobust.evaluation.trials import AttackSpec, Trial, trials
from tfrobust.registry import choose, in_memory
from tfrobust.threat import Threat

MODES = ("cascade", "each")


@dataclasses.dataclass(frozen=True)
class Result:
    """What an attack left standing.

    name: "clean", the trial's or the suite's. robust: bool [n] of the first n images: right on
    the clean image, under this attack, and in a cascade under those before it. attacked: how many
    images the attack ran on; queries, gradients: its forward and backward passes over them all.
    images: the adversarial images [n, H, W, C], the clean one where the attack did not run; only
    on demand, and not for a suite.
    """

    name: str
    robust: np.ndarray
    seconds: float
    trial: Trial | None = None
    attacked: int = 0
    queries: int = 0
    gradients: int = 0
    images: np.ndarray | None = None

    @property
    def accuracy(self) -> float:
        """The fraction of the n images still right."""
        return float(self.robust.mean())


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: the clean result first, then one for each attack and suite."""

    results: list[Result]

    @property
    def clean_accuracy(self) -> float:
        return self.results[0].accuracy

    @property
    def robust(self) -> np.ndarray:
        """bool [n]: right in every trial, for the images that all of them saw."""
        return worst_case(self.results)

    @property
    def robust_accuracy(self) -> float:
        """The headline: the worst case over all attacks."""
        return float(self.robust.mean())

    @property
    def images(self) -> np.ndarray | None:
        """Of each image the adversary that broke it first, else the last that was tried; None
        unless they were kept."""
        first = self.results[0].images
        return None if first is None else merged(first, self.results)

    def __str__(self) -> str:
        lines = [f"{r.name}: {r.accuracy:.2%} of {len(r.robust)}" for r in self.results]
        lines.append(f"worst case: {self.robust_accuracy:.2%} of {len(self.robust)}")
        return "\n".join(lines)


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
    progress: bool = True,  # on a terminal
) -> Evaluation:
    """The robust accuracy of a network under a list of attacks.

    logits_fn: [B, H, W, C] in the box -> logits [B, C], any callable, such as a Keras network; x:
    float32 [N, H, W, C]; y: int [N]. attacks: "autoattack", "paper", the name of an attack, a
    mapping with its settings, an Attack, or a list of these. mode: "cascade" attacks only what
    the attacks before have left standing; "each" gives every attack all images that are right
    when clean. images: keep the adversarial images. Raises UserError for inputs that do not fit.
    """
    found, x, y = trials(attacks, threat), np.asarray(x), np.asarray(y)
    with in_memory("batch_size", batch_size):
        check_inputs(logits_fn, x, y, threat, batch_size)
        results = run(
            logits_fn,
            x,
            y,
            threat,
            found,
            mode=mode,
            seed=seed,
            batch_size=batch_size,
            images=images,
            progress=progress,
        )
        return Evaluation(list(results))


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
    for trial in found:  # a mistake is told before the first attack
        if isinstance(trial.attack, Transfer) and trial.name not in known:
            trial.attack.surrogate.check(x[:SOME], "source")
    clean = known.get("clean") or _clean(logits_fn, x, y, batch_size, images)
    yield clean
    standing = clean.robust.copy()  # after the attacks so far, those of the suite in mode each
    suite: list[Result] = []
    for place, trial in enumerate(found):
        if mode == "each" and not (trial.suite and suite):
            standing = clean.robust.copy()
        result = known.get(trial.name) or _attacked(
            logits_fn, x, y, threat, trial, standing, seed, batch_size, images, progress
        )
        standing[: len(result.robust)] = result.robust
        yield result
        if trial.suite:
            suite.append(result)
            if place + 1 == len(found) or found[place + 1].suite != trial.suite:
                yield known.get(trial.suite) or _summed(trial.suite, suite)
                suite = []


def merged(images: np.ndarray, results: Iterable[Result]) -> np.ndarray:
    """`images` [N, H, W, C] with those that the results hold in their place, up to the one that
    broke each."""
    images, standing = images.copy(), np.ones(len(images), bool)
    for result in results:
        n = len(result.robust)
        if result.images is not None:
            rows = np.flatnonzero(standing[:n])
            images[rows] = result.images[rows]
        standing[:n] &= result.robust
    return images


def _clean(
    logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray, batch_size: int, images: bool
) -> Result:
    begun = time.perf_counter()
    right = predictor(logits_fn, batch_size)(x) == y
    seconds = time.perf_counter() - begun
    return Result("clean", right, seconds, None, len(x), len(x), 0, x if images else None)


def _attacked(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    trial: Trial,
    standing: np.ndarray,
    seed: int,
    batch_size: int,
    images: bool,
    progress: bool,
) -> Result:
    """One attack on those of its first images that stand."""
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
    )
    robust[rows] = made.right
    kept = None
    if images:
        kept = x[: len(robust)].copy()
        kept[rows] = made.images
    return Result(
        trial.name,
        robust,
        time.perf_counter() - begun,
        trial,
        len(rows),
        int(made.queries.sum()),
        int(made.gradients.sum()),
        kept,
    )


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


def worst_case(results: Sequence[Result]) -> np.ndarray:
    """bool [n]: right in every trial, for the images that all of them saw."""
    n = min(len(result.robust) for result in results)
    return np.logical_and.reduce([result.robust[:n] for result in results])


def settings(result: Result, threat: Threat) -> dict[str, Any]:
    """The row of a result in eval.json."""
    row: dict[str, Any] = {
        "name": result.name,
        "examples": len(result.robust),
        "robust_accuracy": result.accuracy,
        "seconds": round(result.seconds, 2),
        "attacked": result.attacked,
        "queries": result.queries,
        "gradients": result.gradients,
    }
    trial = result.trial
    if trial is not None:
        row["config"] = trial.attack.settings(threat)
        row["suite"] = trial.suite
    return row
