"""The stages of a run, in their order: what each reads and does."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from pipelines.folder import Folder, fingerprint
from pipelines.spec import STAGES, Spec, load_network, network_file
from pipelines.stages import attack_eval, train
from tfrobust.export import export
from tfrobust.models import with_precision
from tfrobust.registry import UserError
from tfrobust.report import write_report

ORDER = STAGES


def inputs(stage: str, spec: Spec, folder: Folder) -> str:
    """The fingerprint of all that a stage's result depends on."""
    data = [Path(spec.config["data"]["path"])] if "path" in spec.config["data"] else []
    if stage == "train":
        start = spec.train.init_from if spec.train is not None else None
        base = [network_file("train.init_from", start)] if start else []
        return fingerprint(spec.config, train.SECTIONS, [*data, *base])
    if stage == "attack_eval":
        files = [*data, _model_file(spec, folder)]
        return fingerprint(spec.config, attack_eval.SECTIONS, files)
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
        if not folder.done("attack_eval", inputs("attack_eval", spec, folder)):
            raise UserError(
                f"{folder.evaluation}: expected the attacks of this config evaluated; run the "
                "stage attack_eval first"
            )
        print(f"report: {write_report(folder.path)}")
    else:
        shape = (7, *spec.data.source.image_shape)
        images = np.random.default_rng(0).random(shape, np.float32)
        export(_network(spec, folder), folder.saved_model, images)
        print(f"export: {folder.saved_model}")


def _model_file(spec: Spec, folder: Folder) -> Path:
    """The network that is evaluated: the trained one, or the one of a config without training."""
    path = (spec.config.get("model") or {}).get("path")
    if path is not None and "train" not in spec.stages:
        return network_file("model.path", path)
    if not folder.model.is_file():
        raise UserError(f"{folder.model}: expected a trained network; run the stage train first")
    return folder.model


def _network(spec: Spec, folder: Folder) -> keras.Model:
    file = _model_file(spec, folder)
    return with_precision(load_network(str(file), file, spec.data.source), "float32")
