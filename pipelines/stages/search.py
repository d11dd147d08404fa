"""Stage search: KerasTuner draws values, each trial is a training run in a folder of its own.

Imports KerasTuner, so it is itself imported only by a search.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import keras
import keras_tuner as kt
import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from pipelines import config as configs
from pipelines import search_cluster
from pipelines.folder import Folder
from pipelines.sections import Search
from pipelines.spec import STAGES, Spec, trial_spec
from pipelines.stages.train import Diverged, splits, train
from tfrobust._compat import with_whole_files
from tfrobust.errors import OutOfMemory, UserError, in_memory
from tfrobust.io import write_text
from tfrobust.report import (
    SearchTrial,
    best_epoch,
    best_trial,
    completed,
    number,
    percent,
    write_trials,
)

ORACLES = {
    "random": kt.oracles.RandomSearchOracle,
    "bayesian": kt.oracles.BayesianOptimizationOracle,
    "hyperband": kt.oracles.HyperbandOracle,
}
SCORE, CLEAN, ROBUST = "score", "val_accuracy", "val_robust_accuracy"
FAILED = "failed.txt"  # why: KerasTuner's workers do not tell their chief
MANY = 10**9


class Unfit(UserError):
    """Values that do not fit together."""


def search(spec: Spec, folder: Folder) -> None:
    """Run the trials, or as the chief have workers run them, and write down what they found.

    Goes on from what is saved. Raises UserError where no trial may be the best.
    """
    splits(spec)  # a mistake that only the data tell is no trial's
    tuner = _Tuner(spec, folder)
    with _reasons():
        if search_cluster.role() == "chief":
            search_cluster.check_free()
            print(
                f"search: the chief at {search_cluster.address()}, waiting for workers", flush=True
            )
        tuner.search()
    trials = tuner.trials()
    least = tuner.plan.min_clean
    top = best_trial(trials, least)
    if not completed(trials):
        raise UserError(f"search: expected a trial that ends, all failed: {trials[0].reason}")
    if top is None:
        highest = max(completed(trials), key=lambda trial: trial.clean)
        raise UserError(
            f"search.min_clean: expected at most the {highest.clean:.4g} that trial "
            f"{highest.name} reached, received {least}"
        )
    write_text(folder.best, configs.dump(_best(spec, top.values)))
    print(f"search: the best is trial {top.name}, {_told(top)}: {folder.best}", flush=True)


def work(spec: Spec, folder: Folder) -> None:
    """Run trials for the chief until it has no more. The folder must be the chief's, by a shared
    file system where it is another machine."""
    tuner = _Tuner(spec, folder)
    print(
        f"search: {tuner.tuner_id}, a worker of the chief at {search_cluster.address()}", flush=True
    )
    with _reasons():
        tuner.search()


@contextlib.contextmanager
def _reasons() -> Any:
    """What KerasTuner wraps, as it was raised; a chief that is gone in one line."""
    try:
        yield
    except kt.errors.FatalError as error:
        raise error.__cause__ or error from None
    except grpc.RpcError as error:
        raise UserError(
            f"{search_cluster.IP}, {search_cluster.PORT}: expected the chief at "
            f"{search_cluster.address()}, it has stopped or is out of reach "
            f"({error.code().name}); start all again: what is saved is kept"
        ) from None


class _Tuner(kt.engine.base_tuner.BaseTuner):
    """Runs trials as training runs in RUN/search/trial_N."""

    def __init__(self, spec: Spec, folder: Folder):
        assert spec.search is not None and spec.train is not None
        self.spec, self.plan, self.folder = spec, spec.search, folder
        self.state = oracle = _oracle(self.plan, spec.seed, spec.train.epochs, self._ended)
        super().__init__(oracle, directory=str(folder.path), project_name=folder.search.name)
        oracle.verbose = 0
        self.owner = (
            search_cluster.role() != "worker"
        )  # of the folder; a worker's oracle is a client
        if self.owner and folder.oracle.is_file():
            _reload(oracle, folder.oracle)
        if self.owner:
            shutil.rmtree(folder.tensorboard, ignore_errors=True)
            self._write(self.trials())

    def save(self) -> None:
        if self.owner:
            self.state.save()

    def on_search_begin(self) -> None:
        self.save()

    def pre_create_trial(self) -> None:
        if not self.owner:
            time.sleep(1)  # KerasTuner asks again at once while others' trials must end first

    def on_trial_end(self, trial: Any) -> None:
        super().on_trial_end(trial)
        if not self.owner:
            print(f"search: trial {trial.trial_id} {trial.status.lower()}", flush=True)

    def run_trial(self, trial: Any, *_: Any, **__: Any) -> dict[str, float]:
        """The accuracies of a trial. One that cannot be trained fails; any other error, which
        KerasTuner would take for a failed trial too, ends the search."""
        try:
            found = self._trained(trial)
        except (Unfit, Diverged, OutOfMemory) as error:
            write_text(Path(self.get_trial_dir(trial.trial_id)) / FAILED, f"{error}\n")
            raise kt.errors.FailedTrialError(str(error)) from None
        except Exception as error:
            raise kt.errors.FatalError(str(error)) from error
        least = self.plan.min_clean or 0.0
        enough = found[CLEAN] >= least
        # Below all that have enough, those nearer to it first (the rule of Deb, 2000).
        return {SCORE: found[ROBUST] if enough else found[CLEAN] - least, **found}

    def _trained(self, trial: Any) -> dict[str, float]:
        """Train, or go on: in the folder of the trial or, where hyperband goes on with another one,
        of that. Raises Unfit, Diverged or OutOfMemory for values that cannot be trained."""
        drawn = first = trial.hyperparameters.values
        name = trial.trial_id
        while "tuner/trial_id" in first:
            name = first["tuner/trial_id"]
            first = self.oracle.get_trial(name).hyperparameters.values
        folder, epochs = Folder(Path(self.get_trial_dir(name))), drawn.get("tuner/epochs")
        try:
            spec = trial_spec(f"{self.spec.name}_{name}", self.spec.unresolved, self._values(drawn))
        except UserError as error:
            raise Unfit(str(error)) from None
        keras.backend.clear_session()
        with folder.locked(wait=True):  # a worker that the chief has forgotten may be at it
            write_text(folder.config, configs.dump({"name": spec.name, **spec.config}))
            log = (folder.path / "train.log").open("a", encoding="utf-8", buffering=1)
            fits = in_memory("data.batch_size", spec.data.batch_size)
            with log, contextlib.redirect_stdout(log), fits:
                train(spec, folder, epochs)
            return _measured(folder, spec, epochs)

    def _values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {key: known.value(drawn[key]) for key, known in self.plan.space.items()}

    def trials(self) -> list[SearchTrial]:
        """All so far, in the order of their start."""
        return [self._trial(self.state.trials[name]) for name in self.state.start_order]

    def _trial(self, of: Any) -> SearchTrial:
        name, status = of.trial_id, of.status.lower()
        found = SearchTrial(name, self._values(of.hyperparameters.values), status)
        if status == "completed":
            epochs, *both = (of.metrics.get_last_value(key) for key in ("epochs", CLEAN, ROBUST))
            clean, robust = map(float, both)
            return dataclasses.replace(found, epochs=int(epochs), clean=clean, robust=robust)
        why = Path(self.get_trial_dir(name)) / FAILED
        known = status == "failed" and why.is_file()
        reason = why.read_text(encoding="utf-8").strip() if known else ""
        return dataclasses.replace(found, reason=reason)

    def _ended(self, name: str) -> None:
        """Tell of a trial that has just ended, and add it to the tables."""
        trials = self.trials()
        self._write(trials, name)
        this = next(trial for trial in trials if trial.name == name)
        done = sum(trial.status in ("completed", "failed") for trial in trials)
        total = f" of {self.plan.trials}" if self.plan.trials else ""
        top = best_trial(trials, self.plan.min_clean)
        so_far = "none yet" if top is None else f"{percent(top.robust)} (trial {top.name})"
        print(f"search: {done}{total}: trial {name}, {_told(this)}; best {so_far}", flush=True)

    def _write(self, trials: Sequence[SearchTrial], name: str | None = None) -> None:
        """trials.csv, and for TensorBoard the trial of this name or all."""
        write_trials(self.folder.trials, list(self.plan.space), trials)
        if name is None:
            _board_of_search(self.folder.tensorboard, self.plan)
        for done in completed(trials):
            if name in (None, done.name):
                _board(self.folder.tensorboard / f"trial_{done.name}", done)


def _oracle(plan: Search, seed: int, epochs: int, ended: Callable[[str], None]) -> Any:
    """KerasTuner's oracle of the plan, that writes its files whole and tells of ended trials."""

    kind: Any = with_whole_files(ORACLES[plan.tuner])

    class Oracle(kind):
        def end_trial(self, trial: Any) -> None:
            super().end_trial(trial)
            self.save()  # KerasTuner's own comes before the trial is taken from those that run
            ended(trial.trial_id)

    more = {"max_epochs": epochs} if plan.tuner == "hyperband" else {}
    oracle = Oracle(
        objective=kt.Objective(SCORE, "max"),
        # KerasTuner takes 0 for none, and draws from seed, seed + 1, ...: far apart, no two share.
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0]) or 1,
        hyperparameters=_declared(plan),
        max_consecutive_failed_trials=MANY,
        **more,
    )
    oracle.max_trials = plan.trials
    return oracle


def _declared(plan: Search) -> kt.HyperParameters:
    declared = kt.HyperParameters()
    for key, known in plan.space.items():
        if known.kind == "choice":
            declared.Choice(key, known.drawn)
        elif known.kind == "int":
            declared.Int(key, *known.values)
        else:
            declared.Float(key, *known.values, sampling=known.kind)
    return declared


def _reload(oracle: Any, path: Path) -> None:
    """The state of a search that was stopped; its running trials are run again first."""
    try:
        oracle.reload()
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        raise UserError(
            f"{path}: expected KerasTuner's state, it or a trial.json beside it is damaged; remove "
            f"{path.parent}"
        ) from None
    # A trial that was written when the process was killed, but not yet noted here.
    oracle.trials = {name: oracle.trials[name] for name in oracle.start_order}
    ended = sum(trial.status in ("COMPLETED", "FAILED") for trial in oracle.trials.values())
    print(f"search: going on after {ended} trials", flush=True)


def _measured(folder: Folder, spec: Spec, epochs: int | None) -> dict[str, float]:
    """The accuracies at the epoch that is kept of the first `epochs`, and how many there were."""
    names = ("epoch", CLEAN, ROBUST)
    with folder.history.open(newline="", encoding="utf-8") as file:
        rows = [{n: float(row[n]) for n in names} for row in csv.DictReader(file)][:epochs]
    kept = best_epoch(rows, spec.config)
    row = next(row for row in rows if row["epoch"] == kept)
    return {"epochs": float(len(rows)), CLEAN: row[CLEAN], ROBUST: row[ROBUST]}


def _best(spec: Spec, values: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run with these values."""
    best = trial_spec(f"{spec.name}_best", spec.unresolved, values)
    return {"name": best.name, **best.config, "stages": list(STAGES)}


def _told(trial: SearchTrial) -> str:
    values = ", ".join(f"{key}={_short(value)}" for key, value in trial.values.items())
    if trial.status == "failed":
        return f"{values}: failed: {trial.reason}"
    accuracies = f"{percent(trial.clean)} clean, {percent(trial.robust)} robust"
    return f"{values}: {accuracies} after {trial.epochs} epochs"


def _short(value: Any) -> str:
    return number(value) if isinstance(value, float | int | str) else json.dumps(value)


def _board_of_search(folder: Path, plan: Search) -> None:
    """The columns of TensorBoard's HParams view."""

    def domain(key: str) -> Any:
        known = plan.space[key]
        if known.kind == "choice":
            return hparams.Discrete([_short(value) for value in known.values])
        return (hparams.IntInterval if known.kind == "int" else hparams.RealInterval)(*known.values)

    with tf.summary.create_file_writer(str(folder)).as_default():
        hparams.hparams_config(
            hparams=[hparams.HParam(key, domain(key)) for key in plan.space],
            metrics=[
                hparams.Metric(CLEAN, display_name="validation clean accuracy"),
                hparams.Metric(ROBUST, display_name="validation robust accuracy"),
            ],
        )


def _board(folder: Path, trial: SearchTrial) -> None:
    """A trial's row of the view."""
    shutil.rmtree(folder, ignore_errors=True)
    values = {k: v if isinstance(v, float | int) else _short(v) for k, v in trial.values.items()}
    with tf.summary.create_file_writer(str(folder)).as_default():
        hparams.hparams(values, trial_id=trial.name)
        tf.summary.scalar(CLEAN, trial.clean, trial.epochs)
        tf.summary.scalar(ROBUST, trial.robust, trial.epochs)
