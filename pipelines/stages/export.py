"""Stage export: the network in the formats in which it is shipped, each compared and attacked."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.fingerprints import fingerprint
from pipelines.run_folder import RunFolder
from pipelines.spec import Spec, attack_files, attacks_by_key, data_files
from pipelines.stages.attack_eval import SECTIONS, AttackEval, require_evaluation
from pipelines.stages.evaluated_network import (
    load_evaluated,
    load_trainable,
    network_files,
    network_path,
)
from pipelines.stages.stage import Stage
from tfrobust import tf32
from tfrobust.attacks import SavedImages
from tfrobust.data.folder import drawn
from tfrobust.errors import in_memory
from tfrobust.evaluation import Details, Evaluation, ListedAttack, evaluate
from tfrobust.evaluation.api import check_samples
from tfrobust.exporting import FORMATS, export
from tfrobust.gate import outputs
from tfrobust.models import SavedNetwork, load_network
from tfrobust.record import ExportRow, ExportTable, Record
from tfrobust.registry import located
from tfrobust.report.compare import difference

IMAGES = 7  # random images on which the exported network must agree with the original
DEFAULT = ("saved_model",)  # the formats of a config without the section `export`
SAVED_MODEL = ("saved_model.pb", "variables/variables.index")  # files of every SavedModel
NETWORK = "network"  # the name of the row of the network itself
TRANSFER = "network's adversaries"  # the name of the attack by its adversarial images


class Export(Stage):
    """Writes a file for each format and, with a section `export`, exports.json."""

    name = "export"
    reads_network = True

    def inputs(self, spec: Spec, folder: RunFolder) -> str:
        files = network_files(spec, folder)
        if spec.exports is None:
            return fingerprint(spec.config, ("model",), files)
        files = [*files, *data_files(spec), folder.adversarial]
        files += attack_files(attacks_by_key(spec.export_attacks))
        return fingerprint(spec.config, (*SECTIONS, "export"), files)

    def outputs(self, spec: Spec, folder: RunFolder) -> list[Path]:
        files = [_file(folder, name) for name in _formats(spec)]
        # These files tell the most about a SavedModel from before the sizes of files were recorded.
        files += [file / part for file in files if not file.suffix for part in SAVED_MODEL]
        return files if spec.exports is None else [*files, folder.exports]

    def sizes(self, spec: Spec, folder: RunFolder) -> dict[str, int]:
        products = [_file(folder, name) for name in _formats(spec)]
        files = [file for each in products for file in (each, *each.rglob("*")) if file.is_file()]
        return {file.relative_to(folder.path).as_posix(): file.stat().st_size for file in files}

    def check(self, spec: Spec, folder: RunFolder, planned: Collection[str]) -> None:
        for name in _formats(spec):
            FORMATS[name].check()
        if "litert_int8" in _formats(spec):
            len(spec.data.train)  # the data set may have no training split
        if "train" not in planned:
            load_trainable(spec, folder)  # a SavedModel or a .onnx file is not exported again
        if spec.export_attacks:
            located(
                "export",
                check_samples,
                spec.evaluated.labels,
                spec.export_attacks,
                "cascade",
                corruptions=False,
            )
            if AttackEval.name not in planned:
                require_evaluation(spec, folder)

    def run(self, spec: Spec, folder: RunFolder) -> None:
        folder.write_config()
        network, rng = load_trainable(spec, folder), np.random.default_rng(0)
        images = rng.random((IMAGES, *spec.data.source.image_shape), np.float32)
        for name in _formats(spec):
            samples = None
            if name == "litert_int8" and spec.exports is not None:
                samples = drawn(spec.data.train, spec.exports.calibration).as_float()
            export(network, _file(folder, name), images, name, samples)
            print(f"export: {_file(folder, name)}", flush=True)
        if spec.exports is not None:
            with in_memory("evaluation.batch_size", spec.evaluation.batch_size):
                ExportTable(rows=_measured(spec, folder)).save(folder.exports)


def _formats(spec: Spec) -> tuple[str, ...]:
    return DEFAULT if spec.exports is None else spec.exports.formats


def _file(folder: RunFolder, name: str) -> Path:
    return folder.path / FORMATS[name].file


class Measured(NamedTuple):
    """The logits [n, classes] of a network at the test images, and its evaluation."""

    logits: np.ndarray
    evaluation: Evaluation


def _measured(spec: Spec, folder: RunFolder) -> list[ExportRow]:
    """Return a row for the network itself, and one for each of its exports."""
    network = load_evaluated(spec, folder)
    path = network_path(spec, folder)[0]
    original = _measure(spec, folder, network, NETWORK)
    rows = [_row(NETWORK, path.name, original, original)]
    for name in _formats(spec):
        file = _file(folder, name)
        exported = dataclasses.replace(
            load_network(file, network.outputs, str(file)),
            strength=network.strength,
            width=network.width,
        )
        measured = _measure(spec, folder, exported, name)
        rows.append(_row(name, file.name, measured, original))
    return rows


def _measure(spec: Spec, folder: RunFolder, network: SavedNetwork, name: str) -> Measured:
    """Attack a network on the images that attack_eval saw.

    The record is in exports/NAME, from which an interrupted stage goes on.
    """
    assert spec.exports is not None
    attacks, test = spec.export_attacks, spec.evaluated
    if attacks:
        attacks = [ListedAttack(SavedImages(str(folder.adversarial)), TRANSFER), *attacks]
        test = test.first(Record.load(folder.path).examples)
    x, size = test.as_float(), spec.evaluation.batch_size
    with tf32.switched_off():
        logits = outputs(network, x, size)
    # The digest is of the network's own files, as each export of a SavedModel has another random
    # number in it.
    made_by = {"calibration": spec.exports.calibration}
    digest = fingerprint(made_by, made_by, network_files(spec, folder))
    details = Details(
        data=spec.config["data"]["name"],
        index=test.index,
        split=spec.evaluation.split,
        digest=digest,
        say=functools.partial(_say, name),
    )
    evaluation = evaluate(
        network,
        x,
        test.labels,
        spec.threats,
        attacks,
        seed=spec.seed,
        batch_size=size,
        check=False,
        folder=folder.path / "exports" / name,
        details=details,
        layout="channels_last",
    )
    return Measured(logits, evaluation)


def _say(name: str, line: str) -> None:
    print(f"{name}: {line}", flush=True)


def _row(name: str, file: str, measured: Measured, original: Measured) -> ExportRow:
    """Return the row of a network whose file is `file`."""
    evaluation, same = measured.evaluation, measured.logits.argmax(1) == original.logits.argmax(1)
    differences = np.abs(measured.logits - original.logits)
    finite = differences[np.isfinite(differences).all(axis=1)]
    package = _package(name)
    row = ExportRow(
        name=name,
        file=file,
        runtime=f"{package} {_version(package)}",
        examples=len(evaluation.results[0].robust),
        largest_difference=float(finite.max()) if len(finite) else None,
        equal_predictions=float(same.mean()),
        clean_accuracy=evaluation.clean_accuracy,
    )
    if attacks := evaluation.results[1:]:
        row.attacks = {result.name: result.accuracy for result in attacks}
        row.robust_accuracy = evaluation.robust_accuracy
    if attacks and name != NETWORK:
        pair = difference(evaluation.robust, original.evaluation.robust)
        row.difference, row.p = pair.points, pair.p
    return row


def _package(name: str) -> str:
    """Return the package that computes a format, TensorFlow for those of no extra."""
    modules = [] if name == NETWORK else list(FORMATS[name].modules)
    return modules[-1].partition(".")[0] if modules else "tensorflow"


def _version(package: str) -> str:
    """Return the version of an imported package.

    Another distribution may have installed it, as onnxruntime-gpu installs onnxruntime.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules[package], "__version__", "of unknown version"))
