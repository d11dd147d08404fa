"""Runs that MLflow or Weights & Biases track."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import pytest

from pipelines import trackers
from pipelines.run_folder import RunFolder
from pipelines.runner import run
from tests.e2e.test_epochs import CONSTANT, SETTINGS
from tfrobust.errors import UserError


class Memory(trackers.Tracker):
    """A service that notes its calls."""

    package = "memory"

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def check(self) -> None:
        self.calls.append("check")

    def begin(self, name: str, config: Mapping[str, Any], folder: Path, token: str | None) -> str:
        self.calls.append(("begin", name, config["method"]["name"], token))
        return token or "token"

    def callback(self) -> keras.callbacks.Callback:
        log = self.calls.append
        return keras.callbacks.LambdaCallback(on_epoch_end=lambda k, _: log(("epoch", k)))

    def log(self, results: Mapping[str, float]) -> None:
        self.calls.append(dict(results))

    def end(self, failed: bool) -> None:
        self.calls.append("failed" if failed else "end")


@pytest.mark.slow
def test_one_tracked_run_has_the_epochs_and_the_accuracies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Memory()
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", lambda: service)  # type: ignore[arg-type]
    settings = [*SETTINGS, CONSTANT, "track=mlflow"]
    first = [*settings, "train.epochs=1"]
    folder = run("digits_adv", first, tmp_path, ["train"], smoke=False)
    begin = ("begin", "digits_adv", "adv")
    assert service.calls == ["check", (*begin, None), ("epoch", 0), "end"]
    service.calls.clear()
    stages = ["train", "attack_eval"]
    run("digits_adv", [*settings, "train.epochs=2"], tmp_path, stages, smoke=False)
    *trained, (results, _) = service.calls[:-2], service.calls[-2:]
    record = json.loads((folder / "eval.json").read_text())
    assert trained == [
        ["check", "check", (*begin, "token"), ("epoch", 1), "end", (*begin, "token")]
    ]
    assert results["accuracy, clean"] == record["clean_accuracy"]
    assert results["accuracy, worst case"] == record["robust_accuracy"]


def test_a_damaged_note_of_the_tracked_run_is_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for content in ("{", "[]"):
        folder.tracked.write_text(content)
        line = f"^{folder.tracked}: expected JSON, it is damaged; remove it"
        with pytest.raises(UserError, match=line), trackers.tracked(Memory(), "a", {}, folder):
            pass


def test_another_evaluation_in_a_folder_is_another_run(tmp_path: Path) -> None:
    """Its accuracies would stand beside the network and the threat of the first one."""
    service, folder = Memory(), RunFolder(tmp_path)

    def token(evaluation: str | None) -> Any:
        """Return the token of the run to which the results of an evaluation are added."""
        config = {"method": {"name": "adv"}}
        trackers.log_results(service, "run", config, folder, {"accuracy, clean": 1.0}, evaluation)
        return service.calls[-3][-1]

    assert [token(of) for of in ("one", "one", "other", "other")] == [None, "token", None, "token"]
    folder.tracked.write_text('{"wandb": "theirs", "memory": "mine"}')
    assert token(None) == "mine"  # of a training, which stays one run
    kept = json.loads(folder.tracked.read_text())
    assert kept == {"wandb": "theirs", "memory": "mine"}  # the run of another service too


def test_a_refused_or_failed_run_is_one_line_and_ends(tmp_path: Path) -> None:
    service, folder = Memory(), RunFolder(tmp_path / "run")
    config = {"method": {"name": "adv"}}
    with pytest.raises(ZeroDivisionError), trackers.tracked(service, "run", config, folder):
        raise ZeroDivisionError
    assert service.calls[-1] == "failed"
    service.begin = lambda *_: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with (
        pytest.raises(UserError, match="^track: expected memory to take the run: division by zero"),
        trackers.tracked(service, "run", config, folder),
    ):
        pass
    service = Memory()
    service.log = lambda _: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(UserError, match="^track: expected memory to take the run: division by"):
        trackers.log_results(service, "run", config, folder, {"accuracy, clean": 0.9})
    assert service.calls[-1] == "failed"


def test_a_service_that_is_lost_is_one_line(tmp_path: Path) -> None:
    """It may be lost in an epoch, at the end of a run, or where a run fails by itself."""
    lost = type("Lost", (Exception,), {"__module__": "memory.errors"})
    service, folder = Memory(), RunFolder(tmp_path / "run")
    tracked = functools.partial(trackers.tracked, service, "run", {"method": {"name": "adv"}})
    line = "^track: expected memory to take the run: "
    with pytest.raises(UserError, match=f"{line}no route"), tracked(folder):
        raise lost("no route")
    service.end = lambda failed: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(UserError, match=f"{line}division by"), tracked(folder):
        pass
    with pytest.raises(UserError, match="^a full disk$"), tracked(folder):
        raise UserError("a full disk")


def test_mlflow_takes_the_settings_of_every_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of attacks, which are keys of the section `paper`, may have signs that it refuses."""
    mlflow = Mock()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    config = {"paper": {"source": "x", "linf: AA (AutoAttack)": 0.5}}
    trackers.Mlflow().begin("run", config, tmp_path, None)
    (settings,) = mlflow.log_params.call_args.args
    assert settings == {"paper.source": "x", "paper.linf AA AutoAttack": "0.5"}
    mlflow.log_params.side_effect = ValueError
    with pytest.raises(ValueError):
        trackers.Mlflow().begin("run", config, tmp_path, None)
    mlflow.end_run.assert_called_once_with("FAILED")


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_missing_package_is_one_line_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"^{name}: expected it installed: pip install 'tfrobust"):
        run("digits_adv", [*SETTINGS, f"track={name}"], tmp_path / "runs", None, smoke=False)
    assert not (tmp_path / "runs").exists()


def trained(tmp_path: Path, track: str) -> Path:
    """Train one epoch, then a second one in another call, and evaluate. Return the run's folder."""
    settings = [*SETTINGS, CONSTANT, f"track={track}"]
    run("digits_adv", [*settings, "train.epochs=1"], tmp_path, ["train"], smoke=False)
    stages = ["train", "attack_eval"]
    return run("digits_adv", [*settings, "train.epochs=2"], tmp_path, stages, smoke=False)


@pytest.mark.slow
def test_mlflow_keeps_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs pip install '.[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    folder = trained(tmp_path / "runs", f"{{name: mlflow, uri: '{uri}'}}")
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'tfrobust'")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_name == "digits_adv" and kept.info.status == "FINISHED"
    assert kept.data.params["method.name"] == "adv" and kept.data.params["threat.eps"] == "0.15"
    epochs = client.get_metric_history(kept.info.run_id, "val_robust_accuracy")
    assert [metric.step for metric in epochs] == [0, 1]
    record = json.loads((folder / "eval.json").read_text())
    assert kept.data.metrics["accuracy clean"] == record["clean_accuracy"]


@pytest.mark.slow
def test_wandb_keeps_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs pip install '.[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = trained(tmp_path / "runs", "{name: wandb}")
    token = json.loads((folder / "tracked.json").read_text())["wandb"]
    parts = list((folder / "wandb").glob("offline-run-*"))
    assert len(parts) == 3 and all(part.name.endswith(token) for part in parts)
