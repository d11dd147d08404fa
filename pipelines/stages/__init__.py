"""The stages of a run, in their order: what each reads and does."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipelines import config as configs
from pipelines.fingerprints import fingerprint
from pipelines.folder import Folder
from pipelines.network import check_fit
from pipelines.sections import TRAINED
from pipelines.spec import (
    FACTS,
    STAGES,
    Spec,
    attack_files,
    attacks_by_key,
    training_attacks,
)
from pipelines.stages import attack_eval, train
from tfrobust.attacks import SavedImages
from tfrobust.data import readable
from tfrobust.distribution import strategy
from tfrobust.errors import UserError, in_memory, require
from tfrobust.evaluation.cascade import check_files
from tfrobust.evaluation.crafting import predictor
from tfrobust.evaluation.image_file import ImageFile
from tfrobust.evaluation.record import SCHEMA, Record
from tfrobust.evaluation.recorder import of_other_code
from tfrobust.exporting import export
from tfrobust.gate import SOME, check_inputs
from tfrobust.models import (
    SavedNetwork,
    in_precision,
    keras_file,
    load_keras,
    load_network,
    model_files,
)
from tfrobust.provenance import commit
from tfrobust.report import write_report, write_search_report

ORDER = ("search", *STAGES)
FIRST = 500  # test images that are looked at before a run begins; of saved images all are


def inputs(stage: str, spec: Spec, folder: Folder) -> str:
    """The fingerprint of all that a stage's result depends on."""
    sections = (spec.config["data"], spec.config["data"].get("extra") or {})
    data = [Path(section["path"]).expanduser() for section in sections if "path" in section]
    if stage in ("train", "search"):
        start = spec.train.init_from if spec.train is not None else None
        base = [keras_file(start, "train.init_from")] if start else []
        attacks = attack_files(training_attacks(spec.method, spec.train))
        tested = {"test_examples"}  # nothing to training
        kept = {key: value for key, value in spec.config["data"].items() if key not in tested}
        config = {**spec.config, "data": kept}
        if spec.search is None:
            return fingerprint(config, TRAINED, [*data, *base, *attacks])
        if stage == "train":  # a search may go on with more trials
            config["search"] = {k: v for k, v in config["search"].items() if k != "trials"}
        return fingerprint(config, (*TRAINED, "search"), [*data, *base, *attacks])
    if stage == "attack_eval":
        files = [
            *data,
            *model_files(*_model(spec, folder)),
            *attack_files(attacks_by_key(spec.attack_list)),
        ]
        # How many images share a pass changes no attack, and how to treat finished ones no result.
        options = spec.config.get("evaluation") or {}
        kept = {k: v for k, v in options.items() if k not in ("batch_size", "rerun")}
        config = {**spec.config, "evaluation": kept}
        return fingerprint(config, attack_eval.SECTIONS, files)
    if stage == "export":
        return fingerprint(spec.config, ("model",), model_files(*_model(spec, folder)))
    if spec.search is not None:
        return fingerprint(spec.config, spec.config, [folder.trials])
    return fingerprint(
        spec.config,
        spec.config,
        [
            folder.history,
            folder.evaluation,
            folder.flags,
            folder.probes,
            folder.extremes,
            folder.valley,
            folder.landscape,
        ],
    )


def goes_on(spec: Spec, folder: Folder) -> bool:
    """Whether the training in the folder, of another number of epochs, goes on to those of this
    config and to the weights that it would have come to from the start; it is then marked as begun
    with this config. Where no more than the epochs differ, a line says why it does not."""
    stage, begun = "train", folder.begun("train")
    if spec.train is None or spec.search is not None or begun is None:
        return False
    try:
        epochs = configs.read(folder.config)["train"]["epochs"]
    except (UserError, KeyError, TypeError):  # it is damaged or lacks them
        return False
    section = {**spec.config["train"], "epochs": epochs}
    before = dataclasses.replace(spec, config={**spec.config, "train": section})
    if begun != inputs(stage, before, folder):
        return False
    (done, stopped), asked = train.progress(folder), spec.train.epochs
    if not spec.train.schedule.extends:
        name = type(spec.train.schedule).__name__.lower()
        reason = f"the rates of {name} depend on how many epochs there are in all"
    elif done > asked:
        reason = f"more than {asked} are trained"
    elif not done:
        reason = "there is no checkpoint to go on from"
    else:
        finished = stopped and folder.done(stage, begun, outputs(stage, spec, folder))
        if stopped:
            told = f"train.schedule ended the run after {done:g}, more change nothing"
            print(f"train.epochs: {told}", flush=True)
        folder.mark(stage, inputs(stage, spec, folder), done=finished, commit=commit())
        return True
    print(f"train.epochs: {reason}: {asked} begin anew", flush=True)
    return False


def outputs(stage: str, spec: Spec, folder: Folder) -> list[Path]:
    """What a stage leaves behind: it is done only while these are there."""
    images = [folder.adversarial] if spec.evaluation.save is not None else []
    return {
        "search": [folder.trials, folder.best],
        "train": [folder.model, folder.history],
        "attack_eval": [folder.evaluation, folder.flags, *images],
        "report": [folder.report],
        "export": [folder.saved_model],
    }[stage]


def done(stage: str, spec: Spec, folder: Folder) -> bool:
    """Return whether a stage is finished with these inputs and has nothing more to do."""
    if stage == "attack_eval" and (spec.evaluation.rerun or not _of_this_schema(folder)):
        return False
    return folder.done(stage, inputs(stage, spec, folder), outputs(stage, spec, folder))


def _of_this_schema(folder: Folder) -> bool:
    try:
        return Record.load(folder.path).schema_version == SCHEMA
    except UserError:
        return False


def check(stages: Sequence[str], spec: Spec, folder: Folder) -> None:
    """Raise the UserError of the first of these stages that cannot run, before anything is
    written: its network, its images and labels pass the gate."""
    todo = [s for s in stages if not (_ready(s, spec, folder) and done(s, spec, folder))]
    trains = "train" in todo
    for stage in todo:
        if stage in ("train", "search"):
            split, *_ = train.splits(spec)
            if spec.train is not None and spec.train.init_from is not None:
                assert spec.network is not None and spec.method is not None
                facts: dict[str, Any] = dict.fromkeys(FACTS, 1)
                model = spec.method(spec.network(), ramp_steps=0, **facts)
                images = split.first(min(SOME, len(split))).as_float()
                model.check_network(images, "train.init_from")
        elif stage == "attack_eval":
            test = spec.data.test
            saved = any(isinstance(listed.attack, SavedImages) for listed in spec.attack_list)
            few = test if saved else test.first(min(FIRST, len(test)))
            if not trains:
                network, size = _network(spec, folder), spec.evaluation.batch_size
                if (precision := spec.evaluation.craft_precision) != "float32":
                    in_precision(network, precision, "evaluation.craft_precision")
                with in_memory("evaluation.batch_size", size):
                    images, labels = few.as_float(), few.labels
                    check_inputs(network, images, labels, spec.threat, size, "channels_last")
                    right = predictor(network, size)(images) == labels
                    whole = spec.attack_list[: 1 if spec.evaluation.mode == "cascade" else None]
                    limits = (spec.threat, network.classes, size, whole)
                    check_files(spec.attack_list, images, right, *limits)
                    if spec.evaluation.save is not None:
                        ImageFile(folder.path, spec.evaluation.save, images)
        elif stage == "report" and spec.search is None and "attack_eval" not in todo:
            _evaluated(spec, folder)
        elif stage == "export" and not trains:
            _model(spec, folder)


def _ready(stage: str, spec: Spec, folder: Folder) -> bool:
    """Whether what a stage starts from is there already."""
    needs_model = stage in ("attack_eval", "export", "report") and spec.search is None
    return not needs_model or spec.train is None or folder.model.is_file()


def _evaluated(spec: Spec, folder: Folder) -> None:
    before = "attack_eval"
    if not folder.done(before, inputs(before, spec, folder), outputs(before, spec, folder)):
        raise UserError(
            f"{folder.evaluation}: expected the attacks of this config evaluated; run the "
            "stage attack_eval first"
        )


def tell(stage: str, folder: Folder) -> None:
    """Print that a stage is skipped, and of which code its results are where it is another."""
    print(f"{stage}: done before, skipped")
    if stage == "attack_eval":
        record = Record.load(folder.path)
        if line := of_other_code([record, *record.attacks]):
            print(f"{stage}: {line}")


def run(stage: str, spec: Spec, folder: Folder) -> None:
    """Run one stage."""
    if stage != "attack_eval":  # which has to find the config of the results that are there
        folder.write_config()
    if stage == "search":
        # What was trained here is told by the mark of training, whatever trains.
        folder.mark("train", inputs("train", spec, folder), done=False, commit=commit())
        _search().search(spec, folder)
    elif stage == "train":
        with in_memory("data.batch_size", spec.data.batch_size), readable():
            train.train(spec, folder)
    elif stage == "attack_eval":
        with in_memory("evaluation.batch_size", spec.evaluation.batch_size):
            network = _network(spec, folder)
            digest = fingerprint({}, (), model_files(*_model(spec, folder)))
            attack_eval.attack_eval(spec, folder, network, digest)
    elif stage == "report" and spec.search is not None:
        if not folder.trials.is_file():
            raise UserError(f"{folder.trials}: expected trials; run the stage search first")
        print(f"report: {write_search_report(folder.path)}")
    elif stage == "report":
        _evaluated(spec, folder)
        print(f"report: {write_report(folder.path)}")
    else:
        shape = (7, *spec.data.source.image_shape)
        images = np.random.default_rng(0).random(shape, np.float32)
        output = _options(spec).get("output")
        network = load_keras(*_model(spec, folder), output=output)
        export(network, folder.saved_model, images)
        print(f"export: {folder.saved_model}")


def work(spec: Spec, folder: Folder) -> None:
    """Run trials of a search for its chief, until it has no more."""
    stage = "search"
    if folder.done(stage, inputs(stage, spec, folder), outputs(stage, spec, folder)):
        print(f"{stage}: done before, skipped")
    else:
        _search().work(spec, folder)


def _search() -> ModuleType:
    """Only a search waits for KerasTuner to be imported."""
    return importlib.import_module("pipelines.stages.search")


def _model(spec: Spec, folder: Folder) -> tuple[Path, str]:
    """The network that is evaluated, the trained one or that of a config without training; and
    the name of its place in errors."""
    if spec.train is None:
        return Path(spec.config["model"]["path"]), "model.path"
    if not folder.model.is_file():
        raise UserError(f"{folder.model}: expected a trained network; run the stage train first")
    return folder.model, str(folder.model)


def _options(spec: Spec) -> dict[str, str]:
    """Which outputs a network gives that was not trained here, and where."""
    model = spec.config["model"] if spec.train is None else {}
    return {key: model[key] for key in ("outputs", "output", "signature") if key in model}


def _network(spec: Spec, folder: Folder) -> SavedNetwork:
    path, where = _model(spec, folder)
    with strategy().scope():  # each device gets the weights
        network = load_network(path, where=where, **_options(spec))
    check_fit(where, spec.data.source, network.input_shape, network.classes)
    for name, taken in (("lambdas", "strength"), ("widths", "width")):
        values = getattr(spec.evaluation, name)
        fits = values is None or getattr(network, taken) is not None
        require(fits, f"evaluation.{name}", f"none (the network takes no {name})", values)
        network = dataclasses.replace(network, **{taken: values[0]}) if values else network
    return network
