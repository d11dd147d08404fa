"""The stages of a run. Each has a file of its own."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.run_folder import RunFolder
from pipelines.spec import Spec
from pipelines.stages.attack_eval import AttackEval
from pipelines.stages.before import Before
from pipelines.stages.export import Export
from pipelines.stages.report import Report
from pipelines.stages.search import Search, work
from pipelines.stages.stage import Stage
from pipelines.stages.train import Train, extends
from pipelines.stages.verdict import MISSED, Missed, Verdict, require_met

__all__ = [
    "MISSED",
    "STAGES",
    "Missed",
    "Stage",
    "check_stages",
    "extends",
    "in_order",
    "require_met",
    "work",
]

STAGES: dict[str, Stage] = {  # by name, in the order in which they run
    stage.name: stage
    for stage in (Search(), Before(), Train(), AttackEval(), Verdict(), Export(), Report())
}


def in_order(spec: Spec, names: Sequence[str] | None) -> list[Stage]:
    """Return the stages to run, in their order.

    With requirements, the verdict runs too whenever an evaluation or a report does.

    Args:
        spec: The run.
        names: The stages that are asked for; None for those of the config.
    """
    asked = set(spec.stages if names is None else names)
    if spec.requirements is not None and asked & {AttackEval.name, Report.name}:
        asked.add(Verdict.name)
    return [stage for name, stage in STAGES.items() if name in asked]


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
