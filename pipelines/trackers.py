"""Trackers of runs, MLflow and Weights & Biases, each by its own callback for Keras."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from pipelines.run_folder import RunFolder
from tfrobust.distribution import worker
from tfrobust.errors import UserError, one_line, optional
from tfrobust.io import write_text

EVALUATION = "evaluation"  # the key in tracked.json of what was evaluated
FLAT = 500  # the longest value of a parameter in MLflow, in characters


class Tracker(ABC):
    """A service that keeps the settings, curves and results of runs.

    Attributes:
        package: The package of the service.
        callbacks: The module of the package that has its callback for Keras.
    """

    package: str
    callbacks: str

    def check(self) -> None:
        """Raise a UserError if the package of the service is not installed."""
        self._imported(self.callbacks)

    @abstractmethod
    def begin(self, name: str, config: Mapping[str, Any], folder: Path, token: str | None) -> str:
        """Begin a run with a name and a config, or go on with the run of a token.

        Returns:
            The token of the run.
        """

    @abstractmethod
    def callback(self) -> keras.callbacks.Callback:
        """Return the service's callback for `fit`, which logs each epoch of the run."""

    @abstractmethod
    def log(self, results: Mapping[str, float]) -> None:
        """Log the results of the run, by their names."""

    @abstractmethod
    def end(self, failed: bool) -> None:
        """End the work on the run in this process, which has failed or been stopped, or not."""

    def _imported(self, module: str) -> Any:
        return optional(module, self.package)


@dataclasses.dataclass(frozen=True)
class Mlflow(Tracker):
    """MLflow: settings, the metrics of each epoch, and the accuracies of the evaluation.

    Args:
        experiment: The experiment that the run belongs to.
        uri: The server, a database such as sqlite:///runs.db, or a folder. None is MLflow's own
            choice, by MLFLOW_TRACKING_URI.
    """

    experiment: str = "tfrobust"
    uri: str | None = None
    package, callbacks = "mlflow", "mlflow.tensorflow"

    def begin(self, name: str, config: Mapping[str, Any], folder: Path, token: str | None) -> str:
        mlflow = self._imported(self.package)
        if self.uri is not None:
            mlflow.set_tracking_uri(self.uri)
        mlflow.set_experiment(self.experiment)
        if token is not None:
            return mlflow.start_run(run_id=token).info.run_id
        run = mlflow.start_run(run_name=name)
        try:
            settings = {key: str(value)[:FLAT] for key, value in flat(config).items()}
            mlflow.log_params(_named(settings))
        except Exception:
            self.end(failed=True)
            raise
        return run.info.run_id

    def callback(self) -> keras.callbacks.Callback:
        return self._imported(self.callbacks).MlflowCallback()

    def log(self, results: Mapping[str, float]) -> None:
        self._imported(self.package).log_metrics(_named(results))

    def end(self, failed: bool) -> None:
        self._imported(self.package).end_run("FAILED" if failed else "FINISHED")


@dataclasses.dataclass(frozen=True)
class Wandb(Tracker):
    """Weights & Biases: settings, the metrics of each epoch, and the accuracies of the evaluation.

    Args:
        project: The project that the run belongs to.
        entity: The user or the team. None is that of the login.
    """

    project: str = "tfrobust"
    entity: str | None = None
    package, callbacks = "wandb", "wandb.integration.keras"

    def begin(self, name: str, config: Mapping[str, Any], folder: Path, token: str | None) -> str:
        run = self._imported(self.package).init(
            project=self.project,
            entity=self.entity,
            name=name,
            config=dict(config),
            dir=folder,
            id=token,
            resume="allow",
        )
        return run.id

    def callback(self) -> keras.callbacks.Callback:
        return self._imported(self.callbacks).WandbMetricsLogger()

    def log(self, results: Mapping[str, float]) -> None:
        self._imported(self.package).run.summary.update(dict(results))

    def end(self, failed: bool) -> None:
        self._imported(self.package).finish(exit_code=int(failed))


TRACKERS: dict[str, type[Tracker]] = {"mlflow": Mlflow, "wandb": Wandb}


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by names that MLflow takes: it takes few signs in a name."""
    return {re.sub(r"[^\w./ -]", "", name): value for name, value in values.items()}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their paths, such as `method.alpha`."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


@contextlib.contextmanager
def tracked(
    tracker: Tracker | None,
    name: str,
    config: Mapping[str, Any],
    folder: RunFolder,
    evaluation: str | None = None,
) -> Iterator[Tracker | None]:
    """Return a context in which a run is tracked: the same run at each call for its folder.

    Only another `evaluation`, the fingerprint of a run that trains nothing, is another run, because
    the service keeps the settings with which a run begins. Of several workers the first one tracks.
    Without a tracker nothing is.

    Raises:
        UserError: The service refuses the run, or is lost while the run goes on.
    """
    if tracker is None or worker()[0] > 0:
        yield None
        return
    tokens: dict[str, str] = {}
    if folder.tracked.is_file():
        try:
            tokens = dict(json.loads(folder.tracked.read_text(encoding="utf-8-sig")).items())
        except (ValueError, AttributeError):
            line = "expected JSON, it is damaged; remove it to track a run anew"
            raise UserError(f"{folder.tracked}: {line}") from None
    if evaluation is not None:
        tokens = tokens if tokens.get(EVALUATION, evaluation) == evaluation else {}
        tokens[EVALUATION] = evaluation
    folder.path.mkdir(parents=True, exist_ok=True)
    with _in_one_line(tracker):
        begun = tracker.begin(name, config, folder.path, tokens.get(tracker.package))
    write_text(folder.tracked, json.dumps(tokens | {tracker.package: begun}) + "\n")
    try:
        yield tracker
    except BaseException as error:
        with contextlib.suppress(Exception):  # the service may be out of reach, too
            tracker.end(failed=True)
        if type(error).__module__.partition(".")[0] == tracker.package:
            with _in_one_line(tracker):
                raise
        raise
    with _in_one_line(tracker):
        tracker.end(failed=False)


def log_results(
    tracker: Tracker | None,
    name: str,
    config: Mapping[str, Any],
    folder: RunFolder,
    results: Mapping[str, float],
    evaluation: str | None = None,
) -> None:
    """Log the results of a run by their names, in the run of `tracked`.

    Raises:
        UserError: The service refuses the run or its results.
    """
    with tracked(tracker, name, config, folder, evaluation) as service:
        if service is not None:
            with _in_one_line(service):
                service.log(results)


@contextlib.contextmanager
def _in_one_line(tracker: Tracker) -> Iterator[None]:
    """Return a context in which an error of the service is a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each service has errors of its own
        line = f"track: expected {tracker.package} to take the run: {one_line(error)}"
        raise UserError(line) from error
