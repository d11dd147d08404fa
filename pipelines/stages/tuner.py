"""The trials of a search: training runs, whose values KerasTuner draws.

Only a search imports this module, as it imports KerasTuner.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import keras
import keras_tuner as kt
import numpy as np

from pipelines import config as configs
from pipelines import search_cluster
from pipelines.run_folder import RunFolder
from pipelines.sections import CLEAN, ROBUST, Search
from pipelines.spec import RUN_STAGES, Spec, trial_spec
from pipelines.stages.tensorboard_logs import value_text, write_columns, write_trial
from pipelines.stages.train import Train
from pipelines.stages.training import Diverged, Unfit, fitting, splits, train
from tfrobust._compat import with_whole_files
from tfrobust.errors import OutOfMemory, UserError, in_memory, require
from tfrobust.io import lock, write_text
from tfrobust.report import (
    SearchTrial,
    best_epoch,
    best_trial,
    completed,
    percent,
    write_trials,
)

ORACLES = {
    "random": kt.oracles.RandomSearchOracle,
    "bayesian": kt.oracles.BayesianOptimizationOracle,
    "hyperband": kt.oracles.HyperbandOracle,
}
FAILED = "failed.txt"  # the file of the reason, which KerasTuner's workers do not send to the chief
MANY = 10**9  # failed trials in sequence, so that no number of them ends a search


def search(spec: Spec, folder: RunFolder) -> None:
    """Run the trials of a search, and write their results.

    If this process is the chief, workers run the trials. A search that was stopped goes on from
    what it saved.

    Raises:
        UserError: If no trial ends, or none reaches `search.min_clean`.
    """
    splits(spec)  # raises the errors of the data here rather than in every trial
    tuner = _Tuner(spec, folder)
    with _unwrapped_errors():
        if search_cluster.role() == "chief":
            search_cluster.check_free()
            print(
                f"search: the chief at {search_cluster.address()}, waiting for workers", flush=True
            )
        tuner.search()
    trials = tuner.trials()
    min_clean = tuner.plan.min_clean
    best = best_trial(trials, min_clean)
    if not completed(trials):
        raise UserError(f"search: expected a trial that ends, all failed: {trials[0].reason}")
    if best is None:
        folder.best.unlink(missing_ok=True)  # the best under another min_clean
        highest = max(completed(trials), key=lambda trial: trial.clean)
        raise UserError(
            f"search.min_clean: expected at most the {highest.clean:.4g} that trial "
            f"{highest.name} reached, received {min_clean}"
        )
    write_text(folder.best, configs.dump(_config_of_best(spec, best.values)))
    print(f"search: the best is trial {best.name}, {_summary(best)}: {folder.best}", flush=True)


def work(spec: Spec, folder: RunFolder) -> None:
    """Run trials for the chief until it has no more.

    The folder must be the chief's. If the chief is on another machine, the two need a shared file
    system.

    Raises:
        UserError: If another worker has the name of this one, or if this one has other settings
            than the chief.
    """
    tuner = _Tuner(spec, folder)
    name = tuner.tuner_id
    print(f"search: {name}, a worker of the chief at {search_cluster.address()}", flush=True)
    with _unwrapped_errors(), _named(name, folder):
        tuner.oracle.get_space()  # waits for the chief, which has marked the folder before
        tuner.check_chief()
        tuner.search()


@contextlib.contextmanager
def _named(name: str, folder: RunFolder) -> Iterator[None]:
    """Keep other workers of the search from having this name inside the context.

    KerasTuner gives a trial that is running again to the worker of that name.
    """
    try:
        held = lock(folder.search / f".{quote(name, safe='')}.lock")
    except BlockingIOError:
        expected = "another name for each worker"
        raise UserError(f"{search_cluster.ID}: expected {expected}, received {name!r}") from None
    try:
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def _unwrapped_errors() -> Iterator[None]:
    """Raise the errors that KerasTuner wraps, or a UserError if the chief cannot be reached."""
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
    """Runs trials as training runs in RUN/search/trial_N.

    The chief, or the only process, owns the folder of the search and writes its tables. The oracle
    of a worker is a client of the chief's oracle.
    """

    def __init__(self, spec: Spec, folder: RunFolder):
        assert spec.search is not None and spec.train is not None
        self.spec, self.plan, self.folder = spec, spec.search, folder
        self.state = oracle = _oracle(self.plan, spec.seed, spec.train.epochs, self._on_end)
        super().__init__(oracle, directory=str(folder.path), project_name=folder.search.name)
        oracle.verbose = 0
        self.is_owner = search_cluster.role() != "worker"
        if self.is_owner and folder.oracle.is_file():
            _reload(oracle, folder.oracle)
            for trial in completed(self.trials()):  # min_clean may be new
                oracle.score_trial(oracle.trials[trial.name])
        if self.is_owner:
            shutil.rmtree(folder.tensorboard, ignore_errors=True)
            write_columns(folder.tensorboard, self.plan)
            self._write(self.trials())

    def save(self) -> None:
        if self.is_owner:
            self.state.save()

    def on_search_begin(self) -> None:
        self.save()

    def pre_create_trial(self) -> None:
        if not self.is_owner:
            time.sleep(1)  # KerasTuner asks again at once while it waits for trials of others

    @functools.cached_property
    def inputs(self) -> str:
        """The fingerprint of the settings of the search, which all its processes share."""
        return Train().inputs(self.spec, self.folder)

    def check_chief(self) -> None:
        """Raise a UserError if the chief, which has marked the folder, has other settings."""
        same = self.folder.begun("train") == self.inputs
        expected = "the settings of the chief (the same config and --set for all)"
        require(same, str(self.folder.path), expected, "others")

    def on_trial_begin(self, trial: Any) -> None:
        if not self.is_owner:
            self.check_chief()  # it may have been started again, with another config

    def on_trial_end(self, trial: Any) -> None:
        super().on_trial_end(trial)
        if not self.is_owner:
            print(f"search: trial {trial.trial_id} {trial.status.lower()}", flush=True)

    def run_trial(self, trial: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Return the accuracies and the number of epochs of a trial.

        A trial that cannot be trained fails. Any other error ends the search, because KerasTuner
        would count it as a failed trial.
        """
        try:
            return self._train(trial)
        except (Unfit, Diverged, OutOfMemory) as error:
            write_text(Path(self.get_trial_dir(trial.trial_id)) / FAILED, f"{error}\n")
            raise kt.errors.FailedTrialError(str(error)) from None
        except Exception as error:
            raise kt.errors.FatalError(str(error)) from error

    def _train(self, trial: Any) -> dict[str, float]:
        """Train a trial, or go on with it, and return its accuracies and number of epochs.

        If hyperband goes on with an earlier trial, the folder is that of the earlier trial.

        Raises:
            Unfit, Diverged, OutOfMemory: If a network cannot be trained with these values.
        """
        drawn = first = trial.hyperparameters.values
        name = trial.trial_id
        while "tuner/trial_id" in first:
            name = first["tuner/trial_id"]
            first = self.oracle.get_trial(name).hyperparameters.values
        folder, epochs = RunFolder(Path(self.get_trial_dir(name))), drawn.get("tuner/epochs")
        with fitting():
            spec = trial_spec(f"{self.spec.name}_{name}", self.spec.unresolved, self._values(drawn))
        keras.backend.clear_session()
        with folder.locked(wait=True):  # a worker that the chief has given up may still use it
            write_text(folder.config, configs.dump({"name": spec.name, **spec.config}))
            log = (folder.path / "train.log").open("a", encoding="utf-8", buffering=1)
            memory = in_memory("data.batch_size", spec.data.batch_size)
            with log, contextlib.redirect_stdout(log), memory:
                train(spec, folder, epochs)
            return _results(folder, spec, epochs)

    def _values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {key: values.value(drawn[key]) for key, values in self.plan.space.items()}

    def trials(self) -> list[SearchTrial]:
        """Return all trials so far, in the order in which they began."""
        return [self._trial(self.state.trials[name]) for name in self.state.start_order]

    def _trial(self, kt_trial: Any) -> SearchTrial:
        name, status = kt_trial.trial_id, kt_trial.status.lower()
        trial = SearchTrial(name, self._values(kt_trial.hyperparameters.values), status)
        if status == "completed":
            latest = kt_trial.metrics.get_last_value
            return dataclasses.replace(
                trial,
                epochs=int(latest("epochs")),
                clean=float(latest(CLEAN)),
                robust=float(latest(ROBUST)),
            )
        path = Path(self.get_trial_dir(name)) / FAILED
        if status == "failed" and path.is_file():
            return dataclasses.replace(trial, reason=path.read_text(encoding="utf-8").strip())
        return trial

    def _on_end(self, name: str) -> None:
        """Print the result of a trial that has just ended, and add it to the tables."""
        trials = self.trials()
        self._write(trials, name)
        trial = next(trial for trial in trials if trial.name == name)
        count = sum(trial.status in ("completed", "failed") for trial in trials)
        total = f" of {self.plan.trials}" if self.plan.trials else ""
        best = best_trial(trials, self.plan.min_clean)
        so_far = "none yet" if best is None else f"{percent(best.robust)} (trial {best.name})"
        print(f"search: {count}{total}: trial {name}, {_summary(trial)}; best {so_far}", flush=True)

    def _write(self, trials: Sequence[SearchTrial], name: str | None = None) -> None:
        """Write trials.csv, and TensorBoard's row of the trial `name`, or of all for None."""
        write_trials(self.folder.trials, list(self.plan.space), trials)
        for trial in completed(trials):
            if name in (None, trial.name):
                write_trial(self.folder.tensorboard / f"trial_{trial.name}", trial, self.plan.space)


def _score_of(clean: float, robust: float, min_clean: float | None) -> float:
    """Return the score of a trial, which is below 0 unless it reaches min_clean (Deb, 2000)."""
    least = min_clean or 0.0
    return clean - least if clean < least else robust


def _oracle(plan: Search, seed: int, epochs: int, ended: Callable[[str], None]) -> Any:
    """Return KerasTuner's oracle for the plan; it writes its files atomically.

    Args:
        plan: The section `search`.
        seed: The seed of the run.
        epochs: The largest number of epochs of a trial, for hyperband.
        ended: A function that is called with the name of each trial that ends.
    """
    kind: Any = with_whole_files(ORACLES[plan.tuner])

    class Oracle(kind):
        def score_trial(self, trial: Any) -> None:
            super().score_trial(trial)
            latest = trial.metrics.get_last_value
            trial.score = _score_of(latest(CLEAN), latest(ROBUST), plan.min_clean)

        def end_trial(self, trial: Any) -> None:
            super().end_trial(trial)
            self.save()  # KerasTuner saves before it takes the trial off the list of running ones
            ended(trial.trial_id)

    options = {"max_epochs": epochs} if plan.tuner == "hyperband" else {}
    oracle = Oracle(
        objective=kt.Objective(ROBUST, "max"),
        # KerasTuner draws from seed, seed + 1, ..., so neighbouring seeds are spread far apart, and
        # two searches share none. It takes the seed 0 for none.
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0]) or 1,
        hyperparameters=_declared(plan),
        max_consecutive_failed_trials=MANY,
        **options,
    )
    oracle.max_trials = plan.trials
    return oracle


def _declared(plan: Search) -> kt.HyperParameters:
    declared = kt.HyperParameters()
    for key, values in plan.space.items():
        if values.kind == "choice":
            declared.Choice(key, values.drawn)
        elif values.kind == "int":
            declared.Int(key, *values.values)
        else:
            declared.Float(key, *values.values, sampling=values.kind)
    return declared


def _reload(oracle: Any, path: Path) -> None:
    """Load the state of a stopped search, which first repeats the trials that were running."""
    try:
        oracle.reload()
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        raise UserError(
            f"{path}: expected KerasTuner's state, it or a trial.json beside it is damaged; remove "
            f"{path.parent}"
        ) from None
    if gone := [name for name in oracle.start_order if name not in oracle.trials]:
        raise UserError(
            f"{path.parent / f'trial_{gone[0]}'}: expected the folder of a trial with its "
            f"trial.json; put it back, or remove {path.parent} to begin anew"
        )
    # A kill may leave the trial.json of a trial that is not yet in the state of the oracle.
    oracle.trials = {name: oracle.trials[name] for name in oracle.start_order}
    count = sum(trial.status in ("COMPLETED", "FAILED") for trial in oracle.trials.values())
    print(f"search: going on after {count} trials", flush=True)


def _results(folder: RunFolder, spec: Spec, epochs: int | None) -> dict[str, float]:
    """Return the accuracies at the best of the first `epochs` epochs, and the number of epochs."""
    names = ("epoch", CLEAN, ROBUST)
    with folder.history.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(row[name]) for name in names} for row in csv.DictReader(file)]
    rows = rows[:epochs]
    best = best_epoch(rows, spec.config)
    row = next(row for row in rows if row["epoch"] == best)
    return {"epochs": float(len(rows)), CLEAN: row[CLEAN], ROBUST: row[ROBUST]}


def _config_of_best(spec: Spec, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run with the values of the best trial."""
    best = trial_spec(f"{spec.name}_best", spec.unresolved, values)
    return {"name": best.name, **best.config, "stages": list(RUN_STAGES)}


def _summary(trial: SearchTrial) -> str:
    values = ", ".join(f"{key}={value_text(value)}" for key, value in trial.values.items())
    if trial.status == "failed":
        return f"{values}: failed: {trial.reason}"
    accuracies = f"{percent(trial.clean)} clean, {percent(trial.robust)} robust"
    return f"{values}: {accuracies} after {trial.epochs} epochs"
