"""The stages of a run, in their order: what each reads and does."""

from __future__ import annotations

import keras
import numpy as np

from pipelines.folder import Folder, fingerprint
from pipelines.spec import STAGES, Spec, network_file
from pipelines.stages import attack_eval, train
from tfrobust.export import export
from tfrobust.registry import UserError
from tfrobust.report import write_report

ORDER = STAGES


def inputs(stage: str, spec: Spec, folder: Folder) -> str:
    """The fingerprint of all that a stage's result depends on."""
    if stage == "train":
        return fingerprint(spec.config, train.SECTIONS)
    if stage == "attack_eval":
        return fingerprint(spec.config, attack_eval.SECTIONS, [_model_file(spec, folder)])
    if stage == "export":
        return fingerprint(spec.config, (), [_model_file(spec, folder)])
    return fingerprint(spec.config, spec.config, [folder.history, folder.evaluation, folder.probes])


def run(stage: str, spec: Spec, folder: Folder) -> None:
    """Run one stage."""
    if stage == "train":
        train.train(spec, folder)
    elif stage == "attack_eval":
        attack_eval.attack_eval(spec, folder, _network(spec, folder))
    elif stage == "report":
        print(f"report: {write_report(folder.path)}")
    else:
        shape = (7, *spec.data.source.image_shape)
        images = np.random.default_rng(0).random(shape, np.float32)
        export(_network(spec, folder), folder.saved_model, images)
        print(f"export: {folder.saved_model}")


def _model_file(spec: Spec, folder: Folder):  # type: ignore[no-untyped-def]
    path = spec.config["model"].get("path") if isinstance(spec.config.get("model"), dict) else None
    if path is not None:
        return network_file("model.path", path)
    if not folder.model.is_file():
        raise UserError(f"{folder.model}: expected a trained network; run the stage train first")
    return folder.model


def _network(spec: Spec, folder: Folder) -> keras.Model:
    return keras.saving.load_model(_model_file(spec, folder), compile=False)
