"""Stage train: a method on a data set, to model.keras at the best epoch."""

from __future__ import annotations

import math
import sys
from typing import Any

import keras
import tensorflow as tf

from pipelines.folder import Folder
from pipelines.spec import Spec
from tfrobust.data import Split, batches, hold_out
from tfrobust.io import write_atomically
from tfrobust.models import with_precision
from tfrobust.registry import require
from tfrobust.training import (
    MONITOR,
    BatchTimer,
    CatastrophicOverfitting,
    History,
    Resume,
    strategy,
)

VALIDATION_BATCH = 500
SECTIONS = ("seed", "precision", "threat", "data", "model", "method", "optimizer", "train")


def train(spec: Spec, folder: Folder) -> None:
    """Train, or go on from the last checkpoint; the same config gives the same weights on CPU."""
    plan = spec.train
    assert plan is not None and spec.method is not None and spec.optimizer is not None
    keras.utils.set_random_seed(spec.seed)
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()

    split, held_out = splits(spec)
    size = spec.data.batch_size
    steps = min(plan.steps_per_epoch or len(split), len(split) // size)

    base = float(spec.optimizer().learning_rate)
    rate = plan.schedule.learning_rate(base, steps, plan.epochs)
    with strategy().scope():
        assert spec.network is not None
        network = with_precision(spec.network(), spec.precision)
        model = spec.method(network, ramp_steps=round(plan.epsilon_ramp_epochs * steps))
        model.compile(spec.optimizer(learning_rate=rate))
        model.optimizer.build(model.network.trainable_variables)

    steering = plan.schedule.callbacks(first_epoch=math.ceil(plan.epsilon_ramp_epochs))
    steering.append(
        keras.callbacks.ModelCheckpoint(
            str(folder.best),
            save_weights_only=True,
            mode="max",
            monitor=MONITOR,
            save_best_only=bool(len(held_out)),
        )
    )
    steering.append(CatastrophicOverfitting())
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    resume = Resume(model, folder.checkpoints, steering)
    first = resume.first_epoch
    if first:
        print(f"train: going on after epoch {first} of {plan.epochs}")
    if first < plan.epochs and not resume.stopped:
        model.fit(
            batches(
                split,
                size,
                seed=spec.seed,
                training=True,
                augment=spec.data.augment,
                first_epoch=first,
                steps_per_epoch=steps,
            ),
            steps_per_epoch=steps,
            initial_epoch=first,
            epochs=plan.epochs,
            validation_data=batches(held_out, VALIDATION_BATCH) if len(held_out) else None,
            callbacks=[BatchTimer(), *steering, *_records(folder, first), resume],
            shuffle=False,  # `batches` has
            verbose=1 if sys.stdout.isatty() else 2,
        )
    model.load_weights(folder.best)
    trained = with_precision(model.network, "float32")
    write_atomically(folder.model, trained.save)


def splits(spec: Spec) -> tuple[Split, Split]:
    """(training, held-out validation) examples. Raises UserError if the sizes do not fit."""
    whole, _ = spec.data.source.load()
    held, size = spec.data.validation, spec.data.batch_size
    count = len(whole)
    require(held < count, "data.validation", f"fewer than the {count} training images", held)
    split, held_out = hold_out(whole, held, spec.seed)
    count = len(split)
    require(size <= count, "data.batch_size", f"at most the {count} training images", size)
    return split, held_out


def _records(folder: Folder, first_epoch: int) -> list[Any]:
    board = keras.callbacks.TensorBoard(str(folder.tensorboard), profile_batch=0, write_graph=False)
    return [History(folder.history, first_epoch), board]
