"""Stage attack_eval: the evaluation of a network under a list of attacks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipelines.fingerprints import fingerprint
from pipelines.run_folder import RunFolder
from pipelines.sections import EvaluationOptions
from pipelines.spec import Spec, attack_files, attacks_by_key, data_files
from pipelines.stages.evaluated_network import load_evaluated, network_files
from pipelines.stages.former import has_exports, keep_aside
from pipelines.stages.stage import Stage
from pipelines.stages.tensorboard_logs import write_board
from pipelines.trackers import log_results
from tfrobust.attacks import SavedImages
from tfrobust.errors import UserError, in_memory
from tfrobust.evaluation import Details, evaluate, margins
from tfrobust.evaluation.api import check_samples
from tfrobust.evaluation.attack_list import check_gradients
from tfrobust.evaluation.cascade import check_attacks
from tfrobust.evaluation.crafting import predictor
from tfrobust.evaluation.image_file import ImageFile
from tfrobust.evaluation.pictures import VALLEY
from tfrobust.evaluation.recorder import of_other_code
from tfrobust.evaluation.searches import by_xla
from tfrobust.flags import Flags
from tfrobust.gate import check_inputs, representative
from tfrobust.models import SavedNetwork, in_precision
from tfrobust.record import SCHEMA, Record
from tfrobust.report import accuracy_rows, disagreement, load_run

SECTIONS = ("seed", "threat", "data", "model", "attacks", "evaluation")
IRRELEVANT = ("batch_size", "rerun")  # keys of `evaluation` after whose change results stay valid
FIRST = 500  # test images to check before a run begins; with saved images all are checked


class AttackEval(Stage):
    """Writes eval.json and flags.npz, and adversarial.npz if `evaluation.save` asks for it."""

    name = "attack_eval"
    reads_network = True

    def inputs(self, spec: Spec, folder: RunFolder) -> str:
        files = [*data_files(spec), *network_files(spec, folder)]
        files += attack_files(attacks_by_key(spec.attack_list))
        section = spec.config.get("evaluation") or {}
        options = {key: value for key, value in section.items() if key not in IRRELEVANT}
        return fingerprint({**spec.config, "evaluation": options}, SECTIONS, files)

    def outputs(self, spec: Spec, folder: RunFolder) -> list[Path]:
        images = [folder.adversarial] if spec.evaluation.save is not None else []
        return [folder.evaluation, folder.flags, *images]

    def sizes(self, spec: Spec, folder: RunFolder) -> dict[str, int]:
        images = folder.adversarial
        saved = spec.evaluation.save is not None and images.is_file()
        return {images.name: images.stat().st_size} if saved else {}

    def done(self, spec: Spec, folder: RunFolder) -> bool:
        return not is_outdated(spec, folder) and super().done(spec, folder)

    def check(self, spec: Spec, folder: RunFolder, planned: Collection[str]) -> None:
        if spec.tracker is not None:
            spec.tracker.check()
        test = spec.evaluated
        options = spec.evaluation
        check_samples(test.labels, spec.attack_list, options.mode, options.corruptions)
        if "train" in planned:
            return
        if not any(isinstance(listed.attack, SavedImages) for listed in spec.attack_list):
            places = representative(test.labels, FIRST)  # of a set that is sorted by class too
            test = test.take(np.arange(len(test))[places])
        network, size = load_evaluated(spec, folder), spec.evaluation.batch_size
        check_gradients(spec.attack_list, network.runtime)
        precision = spec.evaluation.craft_precision
        if precision != "float32":
            in_precision(network, precision, "evaluation.craft_precision")
        with in_memory("evaluation.batch_size", size):
            images, labels = test.as_float(), test.labels
            check_inputs(network, images, labels, spec.threats, size, "channels_last")
            correct = predictor(network, size)(images) == labels
            # In a cascade only the first attack sees all images.
            unfiltered = (
                spec.attack_list[:1] if spec.evaluation.mode == "cascade" else spec.attack_list
            )
            limits = (spec.threats[0], size, unfiltered, test.index)
            check_attacks(spec.attack_list, network, images, correct, *limits)
            if spec.evaluation.save is not None:
                ImageFile(folder.path, spec.evaluation.save, images)

    def run(self, spec: Spec, folder: RunFolder) -> None:
        with in_memory("evaluation.batch_size", spec.evaluation.batch_size):
            network = load_evaluated(spec, folder)
            if has_exports(folder) and _has_other_network(spec, folder):
                keep_aside(self.name, folder)
            _attack_eval(spec, folder, network)

    def skip(self, folder: RunFolder) -> None:
        """Print that the stage is skipped, and which other code made its results, if any did."""
        super().skip(folder)
        record = Record.load(folder.path)
        corrupted = record.corruptions.rows if record.corruptions else []
        if line := of_other_code([record, *record.attacks, *corrupted]):
            print(f"{self.name}: {line}")


def require_evaluation(spec: Spec, folder: RunFolder) -> None:
    """Raise a UserError unless the folder has the evaluation of this config."""
    stage = AttackEval()
    # Not `stage.done`: an evaluation of an older schema, or one to repeat, can be reported.
    done = folder.done(stage.name, stage.inputs(spec, folder), stage.outputs(spec, folder))
    if not done or _is_foreign(Record.load(folder.path), spec, folder):
        raise UserError(
            f"{folder.evaluation}: expected the attacks of this config evaluated; run the "
            "stage attack_eval first"
        )


def is_outdated(spec: Spec, folder: RunFolder) -> bool:
    """Return whether the results in a folder are to be made again.

    They are missing, damaged, of another schema, not of a run or asked for anew.
    """
    try:
        record, flags = Record.load(folder.path), Flags.load(folder.path)
        outdated = spec.evaluation.rerun or record.schema_version != SCHEMA
        outdated = outdated or _is_foreign(record, spec, folder)
        return outdated or disagreement(record, flags) is not None
    except UserError:
        return True


def _has_other_network(spec: Spec, folder: RunFolder) -> bool:
    """Return whether the results in a folder are not known to be of this network."""
    try:
        return folder.evaluation.exists() and _is_foreign(Record.load(folder.path), spec, folder)
    except UserError:
        return True


def _is_foreign(record: Record, spec: Spec, folder: RunFolder) -> bool:
    """Return whether a user's call of `evaluate` has replaced the record of the stage.

    Such a record has a digest of the weights or none, and not that of the network's file.
    """
    digest = None if record.network is None else record.network.sha256
    return record.schema_version == SCHEMA and digest != _digest(spec, folder)


def _digest(spec: Spec, folder: RunFolder) -> str:
    return fingerprint({}, (), network_files(spec, folder))


def _attack_eval(spec: Spec, folder: RunFolder, network: SavedNetwork) -> None:
    """Evaluate the network on its split; then write config.yaml and TensorBoard's events."""
    test, options = spec.evaluated, spec.evaluation
    x, y = test.as_float(), test.labels
    if options.split == "validation" and spec.train is None:
        print(
            f"attack_eval: the {len(test)} images are those that seed {spec.seed} holds out; a "
            "network that was trained with another seed or data.validation has seen most of them",
            flush=True,
        )
    details = Details(
        data=spec.config["data"]["name"],
        split=options.split,
        index=test.index,
        class_names=spec.data.source.class_names,
        model=spec.config.get("model"),
        digest=_digest(spec, folder),
        training_commit=folder.commit("train"),
        training_hardware=folder.hardware("train"),
        training_settings=folder.settings("train"),
        curve=[(point, _at(network, point)) for point in _points(options)],
        say=functools.partial(print, flush=True),
    )
    if by_xla(options.jit_compile):
        print("attack_eval: XLA compiles each attack first", flush=True)
    evaluate(
        network,
        x,
        y,
        spec.threats,
        spec.attack_list,
        mode=options.mode,
        seed=spec.seed,
        batch_size=options.batch_size,
        folder=folder.path,
        save=options.save,
        rerun=options.rerun,
        craft_precision=options.craft_precision,
        jit_compile=options.jit_compile,
        corruptions=options.corruptions,
        binarisation=options.binarisation,
        details=details,
        layout="channels_last",  # as the data set has checked
    )
    folder.write_config()  # only now, because config.yaml has to match the results in the folder
    folder.card.unlink(missing_ok=True)  # it has the former results, and could be published
    if spec.attack_list:
        few = slice(VALLEY)
        sizes = {"seed": spec.seed, "batch_size": options.batch_size}
        margins_of_few = {}
        if network.runtime is None:  # PGD makes them
            margins_of_few = margins(network, x[few], y[few], spec.threats[0], **sizes)
        write_board(folder.tensorboard / "attack_eval", load_run(folder.path), margins_of_few)
    rows = accuracy_rows(spec.config, Record.load(folder.path))
    results = {f"accuracy, {row.name}": row.accuracy for row in rows}
    evaluation = AttackEval().inputs(spec, folder) if spec.train is None else None
    log_results(spec.tracker, spec.name, spec.config, folder, results, evaluation)


def _at(network: SavedNetwork, point: dict[str, float]) -> SavedNetwork:
    """Return the once-for-all network at one of its points."""
    width = point.get("width", network.width)
    return dataclasses.replace(network, strength=point["lambda"], width=width)


def _points(options: EvaluationOptions) -> list[dict[str, float]]:
    """Return the points at which a once-for-all network is evaluated: each lambda at each width."""
    if options.lambdas is None and options.widths is None:
        return []
    lambdas = [{"lambda": value} for value in options.lambdas or [1.0]]
    if options.widths is None:
        return lambdas
    return [row | {"width": width} for width in options.widths for row in lambdas]
