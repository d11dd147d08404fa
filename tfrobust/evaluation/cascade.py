"""The run of a list of attacks on a test set, as a cascade or each on all images."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.attacks import SavedImages, registered_name
from tfrobust.distribution import stack_workers
from tfrobust.errors import choose
from tfrobust.evaluation.attack_list import ListedAttack
from tfrobust.evaluation.batching import batches
from tfrobust.evaluation.crafting import (
    BATCH_SIZE,
    LogitsFn,
    Predict,
    computed_by,
    craft,
    predictor,
)
from tfrobust.evaluation.image_checks import saved_images
from tfrobust.evaluation.results import Result
from tfrobust.gate import SOME, inference
from tfrobust.provenance import circumstances
from tfrobust.record import Provenance
from tfrobust.threat import Threat

MODES = ("cascade", "each")


def run(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat,
    attack_list: Sequence[ListedAttack],
    *,
    mode: str = "cascade",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    images: bool = False,
    progress: bool = True,
    finished: Iterable[Result] = (),
    predict: Predict | None = None,
    search: LogitsFn | None = None,
    jit_compile: bool | str = False,
    precision: str | None = None,
    index: np.ndarray | None = None,
) -> Iterator[Result]:
    """Yield the results of `evaluate` one by one.

    The noise of an attack is a function of the seed, its registered name and its place among the
    attacks of that name. Arguments that are not described here are those of `evaluate`.

    Args:
        finished: Results of an earlier, interrupted call with the same arguments, which are yielded
            without being computed again.
        predict: `predictor(logits_fn, batch_size)`, if it has been traced already.
        search: The network on which the attacks search, if it is not logits_fn.
        jit_compile: Whether XLA compiles the attacks, as in `craft`.
        precision: The precision of the network, by default the dtype of its logits.
        index: The position of each image in its split, int [N], by which saved images are looked
            up; 0 to N - 1 by default.
    """
    choose("mode", mode, MODES)
    former = {result.name: result for result in finished}
    logits = inference(logits_fn)(tf.constant(x[:1]))
    attack_list = [fitted(listed, logits.shape[-1]) for listed in attack_list]
    predict = predict or predictor(logits_fn, batch_size)
    made_with: Any = {
        "seed": seed,
        "precision": precision or tf.as_dtype(logits.dtype).name,
        **computed_by(),
    }
    clean = former.get("clean") or _clean(predict, x, y, images, made_with)
    waiting = [listed for listed in attack_list if listed.name not in former]
    first = attack_list[:1] if mode == "cascade" else attack_list
    places = np.arange(len(x)) if index is None else index
    check_attacks(waiting, logits_fn, x, clean.robust, threat, batch_size, first, places)
    yield clean
    # Whether each image is right after the attacks so far; in mode each, after those of the suite.
    standing = clean.robust.copy()
    suite: list[Result] = []
    attacks_of_name: Counter[str] = Counter()
    for place, listed in enumerate(attack_list):
        name = registered_name(listed.attack)
        stream = f"{name} {attacks_of_name[name]}"
        attacks_of_name[name] += 1
        if mode == "each" and not (listed.suite and suite):
            standing = clean.robust.copy()
        if listed.name in former:
            result = dataclasses.replace(former[listed.name], listed=listed)
        else:
            begun = time.perf_counter()
            robust = standing[: listed.examples].copy()
            rows = np.flatnonzero(robust)
            crafted = craft(
                logits_fn,
                x[rows],
                y[rows],
                listed.attack,
                threat,
                seed=seed,
                batch_size=batch_size,
                progress=listed.name if progress else None,
                rows=places[rows],
                total=len(robust),
                predict=predict,
                stream=stream,
                search=search,
                jit_compile=jit_compile,
            )
            robust[rows] = crafted.right
            result = Result(
                listed.name,
                robust,
                time.perf_counter() - begun,
                listed,
                len(rows),
                int(crafted.queries.sum()),
                int(crafted.gradients.sum()),
                _placed(crafted.images, rows, x[: len(robust)]) if images else None,
                Provenance(**circumstances(), **made_with, examples=len(robust), xla=crafted.xla),
            )
        standing[: len(result.robust)] = result.robust
        yield result
        if listed.suite:
            suite.append(result)
            if place + 1 == len(attack_list) or attack_list[place + 1].suite != listed.suite:
                yield _summed(listed.suite, suite)
                suite = []


def run_all(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threats: Sequence[Threat],
    attack_list: Sequence[ListedAttack],
    *,
    finished: Iterable[Result] = (),
    **options: Any,
) -> Iterator[Result]:
    """Yield the results of `run` under each threat in turn, with the clean result once.

    Under each threat the results are those of an evaluation under it alone. A cascade begins anew:
    on the survivors of another norm's attacks the accuracy under this norm would be too low.

    Args:
        logits_fn, x, y: As in `run`.
        threats: The threats. If there are several, every attack names one.
        attack_list: The attacks.
        finished: As in `run`.
        options: The other arguments of `run`.
    """
    former = list(finished)
    for place, threat in enumerate(threats):
        listed = [each for each in attack_list if each.threat in (None, threat)]
        for result in run(logits_fn, x, y, threat, listed, finished=former, **options):
            if result.name != "clean":
                yield result
            elif not place:
                former.append(result)
                yield result


def fitted(listed: ListedAttack, classes: int) -> ListedAttack:
    """Return the attack for a network with this number of classes.

    Raises:
        UserError: If the attack cannot run on such a network.
    """
    return dataclasses.replace(listed, attack=listed.attack.fitted(classes))


def check_attacks(
    waiting: Sequence[ListedAttack],
    logits_fn: LogitsFn,
    x: np.ndarray,
    right: np.ndarray,
    threat: Threat,
    batch_size: int,
    on_all: Sequence[ListedAttack],
    index: np.ndarray,
) -> None:
    """Check that attacks fit the network, and the files that they read, before any of them runs.

    Args:
        waiting: The attacks that are still to run.
        logits_fn: The network.
        x: Clean images [N, H, W, C].
        right: Whether each clean image is classified correctly, bool [N].
        threat: The threat of attacks that name none.
        batch_size: The number of images that are checked together.
        on_all: The attacks that run on all images that are right when clean.
        index: The position of each image in its split, int [N].

    Raises:
        UserError: If an attack or a file does not fit the images, the threat or the network.
    """
    for listed in waiting:
        attack = listed.attack
        attack.check_network(inference(logits_fn), x[:SOME])
        if isinstance(attack, SavedImages):
            rows = np.flatnonzero(right[: listed.examples if listed in on_all else 0])
            for batch in batches(max(1, len(rows)), batch_size):
                saved_images(attack, index[rows[batch]], x[rows[batch]], listed.threat or threat)


def _clean(
    predict: Predict, x: np.ndarray, y: np.ndarray, images: bool, made_with: dict[str, Any]
) -> Result:
    begun = time.perf_counter()
    # All workers take the first one's predictions, as another may round a tie differently.
    right = stack_workers((predict(x) == y).astype(np.int32))[0].astype(bool)
    seconds = time.perf_counter() - begun
    provenance = Provenance(**circumstances(), **made_with, examples=len(x))
    return Result(
        "clean", right, seconds, None, len(x), len(x), 0, x if images else None, provenance
    )


def _placed(images: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return a copy of the images `others` in which these rows are replaced by `images`."""
    placed = others.copy()
    placed[rows] = images
    return placed


def _summed(name: str, results: Sequence[Result]) -> Result:
    """Return the result of a suite from those of its attacks."""
    return Result(
        name,
        np.logical_and.reduce([result.robust for result in results]),
        sum(result.seconds for result in results),
        None,
        max(result.attacked for result in results),
        sum(result.queries for result in results),
        sum(result.gradients for result in results),
        provenance=results[-1].provenance,
    )
