"""Stage before: the evaluation of the network from which the training starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipelines import config as configs
from pipelines.run_folder import RunFolder
from pipelines.spec import Spec
from pipelines.stages.attack_eval import SECTIONS, AttackEval, is_outdated
from pipelines.stages.evaluated_network import load_evaluated
from pipelines.stages.stage import Stage
from pipelines.stages.training import splits
from tfrobust.errors import UserError
from tfrobust.evaluation.crafting import predictor
from tfrobust.gate import check_class_order, check_trained

EVALUATION = AttackEval()
NETWORK = "train.init_from"
MOST = 500  # training images by which the order of the classes is checked


class Before(Stage):
    """Evaluates the network of `train.init_from` as attack_eval evaluates the trained one.

    Its results are in the folder `before` of the run, which is itself a run folder.
    """

    name = "before"

    def inputs(self, spec: Spec, folder: RunFolder) -> str:
        return EVALUATION.inputs(*_untrained(spec, folder))

    def outputs(self, spec: Spec, folder: RunFolder) -> list[Path]:
        return EVALUATION.outputs(*_untrained(spec, folder))

    def sizes(self, spec: Spec, folder: RunFolder) -> dict[str, int]:
        return EVALUATION.sizes(*_untrained(spec, folder))

    def done(self, spec: Spec, folder: RunFolder) -> bool:
        """Return whether the results are there, and are not to be computed again."""
        return not is_outdated(*_untrained(spec, folder)) and super().done(spec, folder)

    def check(self, spec: Spec, folder: RunFolder, planned: Collection[str]) -> None:
        """Raise a UserError also if the network does not know the training images."""
        untrained, (train, *_) = _untrained(spec, folder), splits(spec)
        chosen = np.random.default_rng(spec.seed).permutation(len(train))[:MOST]
        some = train.take(np.sort(chosen))
        images, network = some.as_float(), load_evaluated(*untrained)
        assert network.network is not None  # the file is one of Keras
        check_trained(network.network, network, images, where=NETWORK)  # advises on a softmax
        EVALUATION.check(*untrained, planned=[self.name])
        predicted = predictor(network, spec.evaluation.batch_size)(images)
        check_class_order(predicted, some.labels, spec.data.source.class_names, NETWORK)

    def run(self, spec: Spec, folder: RunFolder) -> None:
        EVALUATION.run(*_untrained(spec, folder))


def require_before(spec: Spec, folder: RunFolder) -> None:
    """Raise a UserError unless the folder has the stage before of this config."""
    stage = Before()
    # Not `stage.done`: results that are to be computed again can be compared.
    if not folder.done(stage.name, stage.inputs(spec, folder), stage.outputs(spec, folder)):
        raise UserError(
            f"{folder.before}: expected the network before training evaluated with this config; "
            "run the stage before first"
        )


def _untrained(spec: Spec, folder: RunFolder) -> tuple[Spec, RunFolder]:
    """Return the run that only evaluates the network of `train.init_from`, and its folder."""
    config = {key: spec.config[key] for key in SECTIONS if key in spec.config}
    text = configs.dump({"name": folder.path.name, **config, "stages": ["attack_eval"]})
    run = dataclasses.replace(spec, config=config, train=None, tracker=None)
    return run, RunFolder(folder.before, text)
