"""Stage report: a page of HTML about a run or a search, and the model card of a run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipelines.fingerprints import fingerprint
from pipelines.run_folder import RunFolder
from pipelines.spec import Spec
from pipelines.stages.attack_eval import AttackEval, require_evaluation
from pipelines.stages.stage import Stage
from tfrobust.errors import UserError
from tfrobust.report import write_report, write_search_report


class Report(Stage):
    """Writes `report/index.html` and `MODEL_CARD.md` from the files of the other stages."""

    name = "report"
    reads_network = True

    def inputs(self, spec: Spec, folder: RunFolder) -> str:
        files = [folder.trials]
        if spec.search is None:
            files = [
                folder.history,
                folder.evaluation,
                folder.flags,
                folder.probes,
                folder.extremes,
                folder.valley,
                folder.landscape,
                RunFolder(folder.before).evaluation,
                RunFolder(folder.before).flags,
                folder.exports,
            ]
        return fingerprint(spec.config, spec.config, files)

    def outputs(self, spec: Spec, folder: RunFolder) -> list[Path]:
        return [folder.report] if spec.search is not None else [folder.report, folder.card]

    def sizes(self, spec: Spec, folder: RunFolder) -> dict[str, int]:
        return {"report/index.html": folder.report.stat().st_size}

    def check(self, spec: Spec, folder: RunFolder, planned: Collection[str]) -> None:
        if spec.search is None and AttackEval.name not in planned:
            require_evaluation(spec, folder)

    def run(self, spec: Spec, folder: RunFolder) -> None:
        folder.write_config()
        if spec.search is None:
            require_evaluation(spec, folder)
            page = write_report(folder.path)
        else:
            if not folder.trials.is_file():
                raise UserError(f"{folder.trials}: expected trials; run the stage search first")
            page = write_search_report(folder.path)
        print(f"report: {page}")
