"""Training of a network by a method on a data set, and the weights of the best epoch."""

from __future__ import annotations

import contextlib
import csv
import functools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipelines.run_folder import RunFolder
from pipelines.sections import Train
from pipelines.spec import Spec
from pipelines.stages.time_left import TimeLeft
from tfrobust.data import Extra, Split, batches, hold_out
from tfrobust.distribution import stack_workers, strategy, worker
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
    RecomputedStatistics,
    Resume,
    TableQuantiles,
)

VALIDATION_BATCH = 500
EXTREMES = 8  # the number of images with the smallest, and with the largest, values of a table
STEPS_AT_ONCE = 20  # the largest number of compiled steps between two returns to the host
ROLLBACK = 0.5  # the factor of the learning rate at each rollback


# The examples for training and for validation, and the extra data set.
Splits = tuple[Split, Split, Extra | None]


class Unfit(UserError):
    """The values of a config do not fit together, or do not fit the data."""


class Diverged(UserError):
    """The loss was not finite more often than `train.rollbacks` allows."""


def train(
    spec: Spec,
    folder: RunFolder,
    epochs: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> RobustModel:
    """Train from the last checkpoint, or from the start, and write the network to model.keras.

    The same config gives the same weights on CPU, whether or not the training was interrupted.

    Args:
        spec: The run.
        folder: The folder of the run.
        epochs: The epoch after which to stop, as if the run were interrupted there. None trains
            all epochs of the config.
        callbacks: Further callbacks for `fit`, which only watch.

    Returns:
        The method around the network.

    Raises:
        Diverged: If the loss is not finite more often than `train.rollbacks` allows.
    """
    plan = spec.train
    assert plan is not None
    checkpoints, model = Checkpoints(folder.checkpoints), None
    of_workers = stack_workers(np.array([checkpoints.step, checkpoints.rollbacks]))
    checkpoints.rewind(int(of_workers[:, 0].min()))
    if (rollbacks := int(of_workers[:, 1].max())) > checkpoints.rollbacks:
        checkpoints.rollbacks = rollbacks  # another worker stopped after it had noted the last one
    data = splits(spec)
    with Interruption().caught() as interruption:
        while model is None:
            try:
                last = epochs or plan.epochs
                model = _train_up_to_epoch(
                    spec, plan, folder, data, checkpoints, interruption, last, callbacks
                )
            except NotFinite as error:
                if checkpoints.rollbacks >= plan.rollbacks:
                    hint = "lower optimizer.learning_rate, or raise train.rollbacks"
                    raise Diverged(f"train: {error}; {hint}") from None
                checkpoints.rollbacks += 1
                print(f"train: {error}; going on from there at {ROLLBACK:g} times the rate")
    network = with_precision(model.network, "float32")
    with contextlib.suppress(UserError):  # Keras has no layers for a once-for-all network
        network = with_keras_layers(network)
    write_atomically(folder.model, network.save)
    return model


def progress(folder: RunFolder) -> tuple[float, bool]:
    """Return how far training had come at the last checkpoint.

    Returns:
        The number of trained epochs, where an unfinished epoch counts as a half; and whether the
        schedule has ended the run.
    """
    note = Checkpoints(folder.checkpoints).note
    rows = list(csv.DictReader(note.get("history", [])))
    last_step = int(rows[-1]["step"]) if rows else 0
    unfinished = note.get("step", 0) > last_step
    return len(rows) + 0.5 * unfinished, bool(note.get("stopped"))


def _train_up_to_epoch(
    spec: Spec,
    plan: Train,
    folder: RunFolder,
    data: Splits,
    checkpoints: Checkpoints,
    interruption: Interruption,
    epochs: int,
    callbacks: Sequence[keras.callbacks.Callback],
) -> RobustModel:
    """Train until `epochs` epochs are done; return the method around the best epoch's network."""
    timer = BatchTimer()  # its clock runs from here, where the data are loaded
    keras.utils.set_random_seed(spec.seed)
    split, held_out, extra = data
    steps = plan.steps_per_epoch or len(split) // spec.data.batch_size
    note, rollbacks = checkpoints.note, checkpoints.rollbacks
    model = _compiled(spec, plan, data, steps, rollbacks)

    def stream(first: int) -> tf.data.Dataset:
        return batches(
            split,
            spec.data.batch_size,
            seed=spec.seed,
            training=True,
            augment=spec.data.augment,
            first_step=first,
            steps_per_epoch=steps,
            extra=extra,
        )

    statistics = RecomputedStatistics(model, lambda epoch: stream(epoch * steps).take(steps))
    best = Best(model, plan.monitor)
    first_full = math.ceil(plan.epsilon_warmup_epochs + plan.epsilon_ramp_epochs)
    guides = plan.schedule.callbacks(first_full, plan.monitor)
    monitors = [CatastrophicOverfitting(), TableQuantiles(split.index)]
    steering = [statistics, timer, *guides, best, *monitors]  # the timer counts the statistics
    history = History(folder.history, note.get("history", []), folder.tensorboard)
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
    _slow_down(model, rollbacks - note.get("rollbacks", rollbacks))
    _announce(model, plan, resume)
    validation = _validation(held_out)
    first_worker = worker()[0] == 0  # the only one that prints
    watching = [*callbacks, TimeLeft(plan.epochs)] if first_worker else callbacks
    verbose = (1 if sys.stdout.isatty() else 2) if first_worker else 0

    def fit(last: int) -> None:
        first = resume.step
        # Keras fails on several steps at once on several replicas.
        if model.jit_compile and strategy().num_replicas_in_sync == 1:
            model.steps_per_execution = _steps_at_once(steps, first)
        model.fit(
            stream(first),
            steps_per_epoch=steps - first % steps,
            initial_epoch=first // steps,
            epochs=last,
            validation_data=validation,
            callbacks=[*steering, history, *watching, resume],
            shuffle=False,  # `batches` shuffles
            verbose=verbose,
        )

    if resume.batch:
        fit(resume.epoch + 1)  # the rest of an unfinished epoch
    if resume.epoch < epochs and not resume.stopped:
        fit(epochs)
    interruption.heed(resume.epoch, 0)
    best.restore()
    _extremes(folder.extremes, model, split)
    return model


def _compiled(spec: Spec, plan: Train, data: Splits, steps: int, rollbacks: int) -> RobustModel:
    """Return the method around a new network, compiled, on the replicas of the strategy.

    Args:
        spec: The run.
        plan: Its section `train`.
        data: Its examples.
        steps: The number of batches in an epoch.
        rollbacks: How often the learning rate has been lowered.
    """
    assert spec.method is not None and spec.optimizer is not None and spec.network is not None
    split, held_out, extra = data
    base = float(spec.optimizer().learning_rate) * ROLLBACK**rollbacks
    with strategy().scope():
        network = with_precision(spec.network(), spec.precision)
        model = spec.method(
            network,
            warmup_steps=round(plan.epsilon_warmup_epochs * steps),
            ramp_steps=round(plan.epsilon_ramp_epochs * steps),
            num_examples=_table_size(split, held_out) + (0 if extra is None else len(extra.split)),
            batch_size=spec.data.batch_size,
            steps_per_epoch=steps,
        )
        updates = steps * model.updates_per_batch
        rate = plan.schedule.learning_rate(base, updates, plan.epochs)
        model.compile(spec.optimizer(learning_rate=rate), jit_compile=plan.jit_compile)
        model.optimizer.build(model.network.trainable_variables)
    return model


def _slow_down(model: RobustModel, new_rollbacks: int) -> None:
    """Lower the learning rate that the checkpoint restored, for each rollback since.

    The rate of a schedule is not in the checkpoint, but has been made with the lower base.
    """
    rate = model.optimizer.learning_rate
    if new_rollbacks and isinstance(rate, keras.Variable):
        rate.assign(rate * ROLLBACK**new_rollbacks)


def _announce(model: RobustModel, plan: Train, resume: Resume) -> None:
    """Print what is about to be trained."""
    if model.jit_compile:
        print("train: XLA compiles the step first", flush=True)
    if resume.step:
        position = f"{resume.epoch} of {plan.epochs} epochs and {resume.batch} batches"
        print(f"train: going on after {position}", flush=True)
    else:
        print(f"train: {plan.epochs} epochs of {resume.steps} batches", flush=True)


def _validation(held_out: Split) -> tf.data.Dataset | None:
    """Return the batches of validation, or None without held-out examples."""
    if not len(held_out):
        print("train: no validation (data.validation is 0): the last epoch is kept", flush=True)
        return None
    replicas = strategy().num_replicas_in_sync
    return batches(held_out, VALIDATION_BATCH // replicas * replicas)


def _steps_at_once(steps: int, first: int) -> int:
    """Return the number of compiled steps between two returns to the host.

    It is the largest number up to STEPS_AT_ONCE that divides both the `steps` of an epoch and the
    step `first` at which training goes on, so that every epoch ends at a return.
    """
    common = math.gcd(steps, first)
    return max(n for n in range(1, STEPS_AT_ONCE + 1) if common % n == 0)


def _extremes(path: Path, model: RobustModel, split: Split) -> None:
    """Write the method's per-example table, if any, and the images of its extreme values.

    The table has one number for each training example, such as the eps of IAAT. Examples that are
    no images have no picture, and so there is no file.
    """
    if len(split.images.shape) != 4:
        return
    for name, table in model.tables().items():
        values = keras.ops.convert_to_numpy(table.table)[split.index]
        order = np.argsort(values, kind="stable")
        few = min(EXTREMES, len(order) // 2)
        ends = np.concatenate([order[:few], order[len(order) - few :]])
        chosen = split.take(ends)
        arrays = {"image": chosen.as_float(), "label": chosen.labels, "value": values[ends]}
        arrays |= {"name": np.array(name), "values": values, "index": split.index}
        write_atomically(path, functools.partial(np.savez, **arrays))


def _table_size(*splits: Split) -> int:
    """Return the number of rows of a table with a row for each index in the splits."""
    return 1 + max(int(split.index.max(initial=-1)) for split in splits)


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """Return a context in which a UserError is an Unfit."""
    try:
        yield
    except UserError as error:
        raise Unfit(str(error)) from None


def splits(spec: Spec) -> Splits:
    """Return the examples for training and for validation, and the extra data set or None.

    The validation examples are held out of the training split. Their number is rounded down to a
    multiple of the number of replicas.

    Raises:
        Unfit: If the sizes in the config do not fit the data.
        UserError: If the data cannot be read.
    """
    examples, section = spec.data.train, spec.data.extra
    if section is not None:
        extra_split = located("data.extra", section.source.load, "train")
    held, size = spec.data.validation, spec.data.batch_size
    with fitting():
        count = len(examples)
        require(count, "data", "a data set with training images", "one without")
        require(held < count, "data.validation", f"fewer than the {count} training images", held)
        split, held_out = hold_out(examples, held, spec.seed)
        count, replicas = len(split), strategy().num_replicas_in_sync
        require(size <= count, "data.batch_size", f"at most the {count} training images", size)
        expected = f"a multiple of {replicas} replicas"
        require(size % replicas == 0, "data.batch_size", expected, size)
        held_out = held_out.first(len(held_out) // replicas * replicas)
        if section is None:
            return split, held_out, None
        extra = located("data.extra", Extra, extra_split, section.share, section.weight)
        located("data", extra.rows, size)
        return split, held_out, extra
