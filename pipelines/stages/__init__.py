"""The stages of a run, in their order. Each has a file of its own."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.folder import Folder
from pipelines.spec import Spec
from pipelines.stages.attack_eval import AttackEval
from pipelines.stages.export import Export
from pipelines.stages.report import Report
from pipelines.stages.search import Search, work
from pipelines.stages.stage import Stage
from pipelines.stages.train import Train, goes_on

__all__ = ["ORDER", "STAGES", "Stage", "check", "done", "goes_on", "inputs", "run", "skip", "work"]

STAGES: dict[str, Stage] = {
    stage.name: stage for stage in (Search(), Train(), AttackEval(), Report(), Export())
}
ORDER = tuple(STAGES)


def inputs(name: str, spec: Spec, folder: Folder) -> str:
    """Return the fingerprint of everything that the result of the stage `name` depends on."""
    return STAGES[name].inputs(spec, folder)


def done(name: str, spec: Spec, folder: Folder) -> bool:
    """Return whether the stage `name` is finished with these inputs."""
    return STAGES[name].done(spec, folder)


def skip(name: str, folder: Folder) -> None:
    """Print that the stage `name` is skipped because it is done."""
    STAGES[name].skip(folder)


def run(name: str, spec: Spec, folder: Folder) -> None:
    """Run the stage `name`."""
    STAGES[name].run(spec, folder)


def check(names: Sequence[str], spec: Spec, folder: Folder) -> None:
    """Raise the UserError of the first of these stages that cannot run. Nothing is written.

    The network, the images and the labels of each stage that is not done pass the gate.
    """
    planned = [name for name in names if _is_pending(STAGES[name], spec, folder)]
    for name in planned:
        STAGES[name].check(spec, folder, planned)


def _is_pending(stage: Stage, spec: Spec, folder: Folder) -> bool:
    untrained = spec.search is None and spec.train is not None and not folder.model.is_file()
    if stage.reads_network and untrained:
        return True
    return not stage.done(spec, folder)
