"""Stage train: a method trains a network on a data set."""

from __future__ import annotations

import csv
import dataclasses
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import config as configs
from pipelines.fingerprints import fingerprint
from pipelines.objects import FACTS, settings_of
from pipelines.run_folder import RunFolder
from pipelines.sections import TRAINED
from pipelines.spec import Spec, attack_files, data_files, training_attacks
from pipelines.stages import training
from pipelines.stages.former import keep_aside
from pipelines.stages.stage import Stage
from pipelines.trackers import tracked
from tfrobust.attacks import ATTACKS
from tfrobust.data import readable
from tfrobust.errors import UserError, in_memory
from tfrobust.gate import FEWEST
from tfrobust.methods import AVERAGINGS, RobustModel
from tfrobust.models import application_file, keras_file
from tfrobust.training import SCHEDULES

# The names of parts of a training in a config.
PARTS: dict[str, type] = {**ATTACKS, **SCHEDULES, **AVERAGINGS}
NAMES = {kind: name for name, kind in PARTS.items()}


class Train(Stage):
    """Writes `model.keras`, the network at its best epoch, and `history.csv`."""

    name = "train"

    def inputs(self, spec: Spec, folder: RunFolder) -> str:
        if spec.search is None:
            return training_fingerprint(spec, spec.config, TRAINED)
        # These continue a search: they do not begin another one.
        kept = ("trials", "min_clean")
        search = {key: v for key, v in spec.config["search"].items() if key not in kept}
        return training_fingerprint(spec, {**spec.config, "search": search}, (*TRAINED, "search"))

    def outputs(self, spec: Spec, folder: RunFolder) -> list[Path]:
        return [folder.model, folder.history]

    def done(self, spec: Spec, folder: RunFolder) -> bool:
        """Return whether the network and the history are whole: a copy may have been cut off."""
        if not super().done(spec, folder):
            return False
        return zipfile.is_zipfile(folder.model) and _is_whole(folder.history)

    def check(self, spec: Spec, folder: RunFolder, planned: Collection[str]) -> None:
        if spec.tracker is not None:
            spec.tracker.check()
        check_training(spec)

    def run(self, spec: Spec, folder: RunFolder) -> None:
        keep_aside(self.name, folder)
        folder.write_config()
        with (
            in_memory("data.batch_size", spec.data.batch_size),
            readable(),
            tracked(spec.tracker, spec.name, spec.config, folder) as tracker,
        ):
            callbacks = [tracker.callback()] if tracker else []
            model = training.train(spec, folder, callbacks=callbacks)
        folder.keep_settings(self.name, _settings(spec, model))


def _settings(spec: Spec, model: RobustModel) -> dict[str, dict[str, Any]]:
    """Return the settings of the training and of its parts, defaults included.

    Settings that are worked out in training are None, such as a step size that depends on eps, and
    the loss of an attack in a method with an objective of its own.
    """
    assert spec.method is not None and spec.optimizer is not None and spec.train is not None
    train = _fields(spec.train)
    parts: dict[str, dict[str, Any]] = {
        "method": {"name": spec.config["method"]["name"], **settings_of(spec.method)}
        | {"craft": model.craft},  # `awp` has that of the other method
        "optimizer": {"name": spec.config["optimizer"]["name"], **settings_of(spec.optimizer)},
        "train": {key: value for key, value in train.items() if not isinstance(value, dict)},
    }
    if model.attack is not None:
        parts["attack"] = _described(model.attack)
    return parts | {key: value for key, value in train.items() if isinstance(value, dict)}


def _fields(part: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, such as an attack; parts in it have their names too."""
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {
        key: _described(value) if dataclasses.is_dataclass(value) else value
        for key, value in values.items()
    }


def _described(part: Any) -> dict[str, Any]:
    return {"name": NAMES[type(part)], **_fields(part)}


def _is_whole(history: Path) -> bool:
    """Return whether history.csv has a row, and the last one has all cells."""
    lines = history.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    rows = list(csv.reader(lines))
    return len(rows) > 1 and len(rows[-1]) == len(rows[0])


def training_fingerprint(spec: Spec, config: Mapping[str, Any], sections: Iterable[str]) -> str:
    """Return the fingerprint of sections of the config and of the files that training reads.

    The number of test examples has no influence on it.
    """
    files = data_files(spec)
    if spec.train is not None and spec.train.init_from:
        files.append(keras_file(spec.train.init_from, "train.init_from"))
    if file := application_file(config["model"].get("weights", "none")):
        files.append(file)
    files += attack_files(training_attacks(spec.method, spec.train))
    data = {key: value for key, value in config["data"].items() if key != "test_examples"}
    return fingerprint({**config, "data": data}, sections, files)


def check_training(spec: Spec) -> None:
    """Raise a UserError if the data, or the network of `train.init_from`, cannot be trained."""
    split, *_ = training.splits(spec)
    if spec.train is None or spec.train.init_from is None:
        return
    assert spec.network is not None and spec.method is not None
    facts: dict[str, Any] = dict.fromkeys(FACTS, 1)
    model = spec.method(spec.network(), ramp_steps=0, **facts)
    # The examples of a folder are in the order of their classes, so the first ones would not do.
    places = np.linspace(0, len(split) - 1, min(FEWEST, len(split))).astype(int)
    some = split.take(places)
    model.check_network(some.as_float(), "train.init_from", some.labels)


def extends(spec: Spec, folder: RunFolder) -> bool:
    """Return whether this config only adds epochs to the training in the folder.

    The two configs must differ in `train.epochs` alone, and going on must lead to the weights that
    training from the start would give. The training is then marked as begun with this config. If
    only the epochs differ but the training cannot go on, a printed line says why.
    """
    stage, begun = Train(), folder.begun("train")
    if spec.train is None or spec.search is not None or begun is None:
        return False
    try:
        epochs = configs.read(folder.config)["train"]["epochs"]
    except (UserError, KeyError, TypeError):  # the file is damaged or has no such key
        return False
    section = {**spec.config["train"], "epochs": epochs}
    former = dataclasses.replace(spec, config={**spec.config, "train": section})
    if begun != stage.inputs(former, folder):
        return False
    trained, stopped = training.progress(folder)
    if reason := _why_not_extended(spec, trained):
        print(f"train.epochs: {reason}: {spec.train.epochs} begin anew", flush=True)
        return False
    if stopped:
        print(
            f"train.epochs: train.schedule ended the run after {trained:g}, more change nothing",
            flush=True,
        )
    finished = stopped and folder.done(stage.name, begun, stage.outputs(spec, folder))
    folder.mark(stage.name, stage.inputs(spec, folder), done=finished)
    return True


def _why_not_extended(spec: Spec, trained: float) -> str:
    """Return why training cannot go on after `trained` epochs; "" if it can."""
    assert spec.train is not None
    if not spec.train.schedule.extends:
        name = type(spec.train.schedule).__name__.lower()
        return f"the rates of {name} depend on how many epochs there are in all"
    if trained > spec.train.epochs:
        return f"more than {spec.train.epochs} are trained"
    if not trained:
        return "there is no checkpoint to go on from"
    return ""
