"""What an evaluation shows beside its counts: loss valley and landscape, margins, images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.folder import Folder
from pipelines.spec import Spec
from pipelines.stages.board import write_board
from tfrobust.data import Split
from tfrobust.evaluation import (
    Result,
    adversaries,
    landscape,
    margins,
    predictor,
    valley,
    worst_case,
)
from tfrobust.evaluation.craft import LogitsFn
from tfrobust.io import write_atomically
from tfrobust.report import load_run

PROBES, VALLEY = 8, 200  # test images


def pictures(
    spec: Spec, folder: Folder, logits_fn: LogitsFn, test: Split, results: Sequence[Result]
) -> None:
    """valley.npz, landscape.npz, probes.npz; and, of all that is known, TensorBoard's events."""
    sizes: Any = {"seed": spec.seed, "batch_size": spec.evaluation.batch_size}
    some = test.first(min(VALLEY, len(test)))
    around = valley(logits_fn, some.as_float(), some.labels, spec.threat, **sizes)
    write_atomically(folder.valley, lambda p: np.savez(p, **around._asdict()))
    _landscape(spec, folder, logits_fn, test, results)
    _probe(spec, folder, logits_fn, test.first(min(PROBES, len(test))))
    found = margins(logits_fn, some.as_float(), some.labels, spec.threat, **sizes)
    write_board(folder.tensorboard / "attack_eval", load_run(folder.path), found)


def _landscape(
    spec: Spec, folder: Folder, logits_fn: LogitsFn, test: Split, results: Sequence[Result]
) -> None:
    """Around the first image that every attack left right, and the first that one broke."""
    worst = worst_case(results)
    right = results[0].robust[: len(worst)]
    rows = np.concatenate([np.flatnonzero(worst)[:1], np.flatnonzero(right & ~worst)[:1]])
    if not len(rows):
        return
    two = test.take(rows)
    sizes: Any = {"seed": spec.seed, "batch_size": spec.evaluation.batch_size}
    found = landscape(logits_fn, two.as_float(), two.labels, spec.threat, **sizes)
    arrays = found._asdict() | {"index": two.index, "label": two.labels, "stands": worst[rows]}
    write_atomically(folder.landscape, lambda p: np.savez(p, **arrays))


def _probe(spec: Spec, folder: Folder, logits_fn: LogitsFn, few: Split) -> None:
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
    write_atomically(folder.probes, lambda p: np.savez(p, **arrays))
