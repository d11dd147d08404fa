"""Stage export: the network as a SavedModel."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipelines.fingerprints import fingerprint
from pipelines.run_folder import RunFolder
from pipelines.spec import Spec
from pipelines.stages.evaluated_network import load_trainable, network_files, network_path
from pipelines.stages.stage import Stage
from tfrobust.exporting import export

IMAGES = 7  # random images on which the exported network must agree with the original


class Export(Stage):
    """Writes `saved_model/`."""

    name = "export"
    reads_network = True

    def inputs(self, spec: Spec, folder: RunFolder) -> str:
        return fingerprint(spec.config, ("model",), network_files(spec, folder))

    def outputs(self, spec: Spec, folder: RunFolder) -> list[Path]:
        return [folder.saved_model]

    def check(self, spec: Spec, folder: RunFolder, planned: Collection[str]) -> None:
        if "train" not in planned:
            network_path(spec, folder)

    def run(self, spec: Spec, folder: RunFolder) -> None:
        folder.write_config()
        shape = (IMAGES, *spec.data.source.image_shape)
        images = np.random.default_rng(0).random(shape, np.float32)
        export(load_trainable(spec, folder), folder.saved_model, images)
        print(f"export: {folder.saved_model}")
