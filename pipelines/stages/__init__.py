"""The stages of a run. Each has a file of its own."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.run_folder import RunFolder
from pipelines.spec import Spec
from pipelines.stages.attack_eval import AttackEval
from pipelines.stages.export import Export
from pipelines.stages.report import Report
from pipelines.stages.search import Search, work
from pipelines.stages.stage import Stage
from pipelines.stages.train import Train, extends

__all__ = ["STAGES", "Stage", "check_stages", "extends", "work"]

STAGES: dict[str, Stage] = {  # by name, in the order in which they run
    stage.name: stage for stage in (Search(), Train(), AttackEval(), Report(), Export())
}


def check_stages(stages: Sequence[Stage], spec: Spec, folder: RunFolder) -> None:
    """Raise the UserError of the first of these stages that cannot run. Nothing is written.

    The network, the images and the labels of each stage that is not done pass the gate.
    """
    pending = [stage for stage in stages if _is_pending(stage, spec, folder)]
    for stage in pending:
        stage.check(spec, folder, planned=[each.name for each in pending])


def _is_pending(stage: Stage, spec: Spec, folder: RunFolder) -> bool:
    untrained = spec.search is None and spec.train is not None and not folder.model.is_file()
    if stage.reads_network and untrained:
        return True
    return not stage.done(spec, folder)
