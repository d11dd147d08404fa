"""Stage search: training runs with other values of the config's keys, which are compared."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from pipelines import config as configs
from pipelines.run_folder import RunFolder
from pipelines.sections import TRAINED
from pipelines.spec import Spec
from pipelines.stages.stage import Stage
from pipelines.stages.train import Train, check_training, training_fingerprint
from tfrobust.errors import UserError
from tfrobust.report import read_trials


class Search(Stage):
    """Writes `search/trials.csv`, and `search/best.yaml`, the config of the best trial."""

    name = "search"

    def inputs(self, spec: Spec, folder: RunFolder) -> str:
        if spec.search is None:
            return training_fingerprint(spec, spec.config, TRAINED)
        # best.yaml has all of the config, also the attacks after training.
        data = spec.config["data"]
        config = {**spec.config, "test_examples": data.get("test_examples")}
        return training_fingerprint(spec, config, config)

    def outputs(self, spec: Spec, folder: RunFolder) -> list[Path]:
        return [folder.trials, folder.best]

    def done(self, spec: Spec, folder: RunFolder) -> bool:
        """Return whether the table of trials and the best config are there, and whole."""
        if not super().done(spec, folder):
            return False
        try:
            read_trials(folder.trials)
            configs.read(folder.best)
        except UserError:
            return False
        return True

    def check(self, spec: Spec, folder: RunFolder, planned: Collection[str]) -> None:
        check_training(spec)

    def run(self, spec: Spec, folder: RunFolder) -> None:
        folder.write_config()
        # The mark of training says which config trained in a folder, also for a search.
        folder.mark("train", Train().inputs(spec, folder), done=False)
        _tuner().search(spec, folder)


def work(spec: Spec, folder: RunFolder) -> None:
    """Run trials for the chief of a search until it has no more."""
    stage = Search()
    if stage.done(spec, folder):
        stage.skip(folder)
    else:
        _tuner().work(spec, folder)


def _tuner() -> ModuleType:
    """Import the module that needs KerasTuner; other stages should not wait for that import."""
    return importlib.import_module("pipelines.stages.tuner")
