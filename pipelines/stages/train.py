"""Stage train: a method on a data set, to model.keras at the best epoch."""

from __future__ import annotations

import contextlib
import csv
import functools
import math
import sys
from pathlib import Path

import keras
import numpy as np

from pipelines.folder import Folder
from pipelines.sections import Train
from pipelines.spec import Spec
from tfrobust.data import Extra, Split, batches, hold_out
from tfrobust.distribution import gathered, strategy, worker
from tfrobust.errors import UserError, require
from tfrobust.io import write_atomically
from tfrobust.methods import RobustModel
from tfrobust.models import with_keras_layers, with_precision
from tfrobust.registry import located
from tfrobust.training import (
    BatchTimer,
    Best,
    CatastrophicOverfitting,
    Checkpoints,
    History,
    Interruption,
    NotFinite,
    Resume,
    TableQuantiles,
)

VALIDATION_BATCH = 500
EXTREMES = 8  # images at each end of a table
STEPS_AT_ONCE = 20  # of a compiled step, at most
ROLLBACK = 0.5  # of the learning rate, each time


class Diverged(UserError):
    """The loss was not finite, more often than train.rollbacks allows."""


def train(spec: Spec, folder: Folder, epochs: int | None = None) -> None:
    """Train, or go on from the last checkpoint; the same config gives the same weights on CPU.

    epochs: stop after so many of the config's, as if the run were left there. Raises Diverged.
    """
    plan = spec.train
    assert plan is not None
    checkpoints, network = Checkpoints(folder.checkpoints), None
    checkpoints.back_to(int(gathered(np.array(checkpoints.step)).min()))
    data = splits(spec)
    with Interruption().caught() as interruption:
        while network is None:
            try:
                network = _trained(
                    spec, plan, folder, data, checkpoints, interruption, epochs or plan.epochs
                )
            except NotFinite as error:
                if checkpoints.rollbacks >= plan.rollbacks:
                    hint = "lower optimizer.learning_rate, or raise train.rollbacks"
                    raise Diverged(f"train: {error}; {hint}") from None
                checkpoints.rollbacks += 1
                print(f"train: {error}; going on from there at {ROLLBACK:g} times the rate")
    network = with_precision(network, "float32")
    with contextlib.suppress(UserError):  # Keras has no layers for a once-for-all network
        network = with_keras_layers(network)
    write_atomically(folder.model, network.save)


def progress(folder: Folder) -> tuple[float, bool]:
    """The epochs that the last checkpoint of a run has behind it, a half for any part of one; and
    whether the schedule ended the run."""
    note = Checkpoints(folder.checkpoints).note
    rows = list(csv.DictReader(note.get("history", [])))
    begun = note.get("step", 0) > (int(rows[-1]["step"]) if rows else 0)
    return len(rows) + 0.5 * begun, bool(note.get("stopped"))


def _trained(
    spec: Spec,
    plan: Train,
    folder: Folder,
    data: tuple[Split, Split, Extra | None],
    checkpoints: Checkpoints,
    interruption: Interruption,
    epochs: int,
) -> keras.Model:
    """The network at the best of so many epochs."""
    assert spec.method is not None and spec.optimizer is not None and spec.network is not None
    keras.utils.set_random_seed(spec.seed)
    (split, held_out, extra), rollbacks = data, checkpoints.rollbacks
    size = spec.data.batch_size
    steps = min(plan.steps_per_epoch or len(split), len(split) // size)

    base = float(spec.optimizer().learning_rate) * ROLLBACK**rollbacks
    everywhere = strategy()
    with everywhere.scope():
        network = with_precision(spec.network(), spec.precision)
        model = spec.method(
            network,
            ramp_steps=round(plan.epsilon_ramp_epochs * steps),
            num_examples=_rows(split, held_out) + (0 if extra is None else len(extra.split)),
            batch_size=size,
            steps_per_epoch=steps,
        )
        updates = steps * model.updates_per_batch
        rate = plan.schedule.learning_rate(base, updates, plan.epochs)
        model.compile(spec.optimizer(learning_rate=rate), jit_compile=plan.jit_compile)
        model.optimizer.build(model.network.trainable_variables)
    if model.jit_compile:
        print("train: XLA compiles the step first", flush=True)

    before = checkpoints.note
    history = History(folder.history, before.get("history", []), folder.tensorboard)
    best = Best(model, plan.monitor)
    guides = plan.schedule.callbacks(math.ceil(plan.epsilon_ramp_epochs), plan.monitor)
    steering = [BatchTimer(), *guides, best, CatastrophicOverfitting(), TableQuantiles(split.index)]
    resume = Resume(
        model,
        checkpoints,
        steering,
        steps,
        minutes=plan.checkpoint_minutes,
        interruption=interruption,
        history=history,
        note={"rollbacks": rollbacks},
    )
    since = rollbacks - before.get("rollbacks", rollbacks)
    if since and not callable(rate):  # the checkpoint has brought its own rate
        model.optimizer.learning_rate.assign(model.optimizer.learning_rate * ROLLBACK**since)
    if resume.step:
        done = f"{resume.epoch} of {plan.epochs} epochs and {resume.batch} batches"
        print(f"train: going on after {done}", flush=True)
    most = VALIDATION_BATCH // everywhere.num_replicas_in_sync * everywhere.num_replicas_in_sync
    validation = batches(held_out, most) if len(held_out) else None

    def fit(last: int) -> None:
        first = resume.step
        if model.jit_compile and everywhere.num_replicas_in_sync == 1:  # Keras fails on several
            model.steps_per_execution = _steps_at_once(steps, first)
        model.fit(
            batches(
                split,
                size,
                seed=spec.seed,
                training=True,
                augment=spec.data.augment,
                first_step=first,
                steps_per_epoch=steps,
                extra=extra,
            ),
            steps_per_epoch=steps - first % steps,
            initial_epoch=first // steps,
            epochs=last,
            validation_data=validation,
            callbacks=[*steering, history, resume],
            shuffle=False,  # `batches` has
            verbose=0 if worker()[0] else 1 if sys.stdout.isatty() else 2,
        )

    if resume.batch:
        fit(resume.epoch + 1)  # the rest of the epoch that was left
    if resume.epoch < epochs and not resume.stopped:
        fit(epochs)
    interruption.heed(resume.epoch, 0)
    best.restore()
    _extremes(folder.extremes, model, split)
    return model.network


def _steps_at_once(steps: int, first: int) -> int:
    """How many steps follow each other without the host, of epochs of `steps`, the first of which
    goes on at step `first`: as many as end with each epoch."""
    common = math.gcd(steps, first)
    return max(n for n in range(1, STEPS_AT_ONCE + 1) if common % n == 0)


def _extremes(path: Path, model: RobustModel, split: Split) -> None:
    """The training images with the least and the greatest number of the method's table, where it
    has one, and all numbers."""
    for name, table in model.tables().items():
        values = keras.ops.convert_to_numpy(table.table)[split.index]
        order = np.argsort(values, kind="stable")
        few = min(EXTREMES, len(order) // 2)
        ends = np.concatenate([order[:few], order[len(order) - few :]])
        chosen = split.take(ends)
        arrays = {"image": chosen.as_float(), "label": chosen.labels, "value": values[ends]}
        arrays |= {"name": np.array(name), "values": values, "index": split.index}
        write_atomically(path, functools.partial(np.savez, **arrays))


def _rows(*splits: Split) -> int:
    """Of a table with one for each index."""
    return 1 + max(int(split.index.max(initial=-1)) for split in splits)


def splits(spec: Spec) -> tuple[Split, Split, Extra | None]:
    """(training, held-out validation, extra) examples. Raises UserError if sizes do not fit."""
    whole = spec.data.train
    held, size = spec.data.validation, spec.data.batch_size
    count = len(whole)
    require(count, "data", "a data set with training images", "one without")
    require(held < count, "data.validation", f"fewer than the {count} training images", held)
    split, held_out = hold_out(whole, held, spec.seed)
    count = len(split)
    require(size <= count, "data.batch_size", f"at most the {count} training images", size)
    replicas = strategy().num_replicas_in_sync
    require(size % replicas == 0, "data.batch_size", f"a multiple of {replicas} replicas", size)
    extra, more = None, spec.data.extra
    if more is not None:
        extra = located(
            "data.extra",
            Extra,
            located("data.extra", more.source.load, "train"),
            more.share,
            more.weight,
        )
        located("data", extra.rows, size)
    return split, held_out.first(len(held_out) // replicas * replicas), extra  # each takes as many
