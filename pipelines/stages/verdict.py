"""Stage verdict: the run against the section `require`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from pipelines.fingerprints import fingerprint
from pipelines.run_folder import RunFolder
from pipelines.sections import Requirements
from pipelines.spec import Spec
from pipelines.stages.attack_eval import FIRST, SECTIONS, AttackEval, require_evaluation
from pipelines.stages.before import Before, require_before
from pipelines.stages.stage import Stage
from tfrobust.attack_settings import digests_of, known_by
from tfrobust.errors import UserError, require
from tfrobust.evaluation.api import images_in_use
from tfrobust.evaluation.cascade import fitted
from tfrobust.evaluation.record_rows import threat_row
from tfrobust.evaluation.results import plain
from tfrobust.flags import digests, same_images
from tfrobust.io import in_home, write_text
from tfrobust.record import Record, RequirementRow
from tfrobust.report import (
    before_and_after,
    load_run,
    read_runs,
    rows_of,
    summarise_training,
    threat_text,
)
from tfrobust.report.compare import FinishedRun, paired, settings_of
from tfrobust.report.requirements import (
    above_before,
    at_least,
    at_most_minutes,
    highest_floor,
    highest_gain,
    junit,
    not_worse,
    under_all,
)

MISSED = 3  # the exit status of a command whose run misses a requirement
BASELINE = "require.no_worse_than"


class Missed(Exception):
    """Requirements that a finished run misses.

    Attributes:
        folder: The folder of the run.
        lines: A line for each of them.
    """

    def __init__(self, folder: Path, lines: list[str]):
        super().__init__("; ".join(lines))
        self.folder, self.lines = folder, lines


class Verdict(Stage):
    """Writes `requirements` of eval.json, and junit.xml. A smoke run has nothing to judge."""

    name = "verdict"
    reads_network = True

    def inputs(self, spec: Spec, folder: RunFolder) -> str:
        files = [folder.flags]
        if spec.requirements is not None and spec.requirements.training_minutes is not None:
            files.append(folder.history)
        if (baseline := _baseline(spec)) is not None:
            files += [RunFolder(baseline).evaluation, RunFolder(baseline).flags]
        if spec.requirements is not None and spec.requirements.changes:
            files.append(RunFolder(folder.before).flags)
        return fingerprint(spec.config, (*SECTIONS, "require"), files)

    def outputs(self, spec: Spec, folder: RunFolder) -> list[Path]:
        return [] if spec.smoke else [folder.evaluation, folder.junit]

    def done(self, spec: Spec, folder: RunFolder) -> bool:
        """Return whether eval.json has the verdict: one that is damaged or repeated has none."""
        if not super().done(spec, folder):
            return False
        try:
            return spec.smoke or bool(Record.load(folder.path).requirements)
        except UserError:
            return False

    def check(self, spec: Spec, folder: RunFolder, planned: Collection[str]) -> None:
        if AttackEval.name not in planned:
            require_evaluation(spec, folder)
        if spec.smoke or spec.requirements is None:
            return
        if spec.requirements.changes and Before.name not in planned:
            require_before(spec, folder)
        _check_floors(spec, spec.requirements)
        if (baseline := _baseline(spec)) is not None:
            expected = "the folder of another run"
            require(baseline.resolve() != folder.path.resolve(), BASELINE, expected, str(baseline))
            _check_baseline(spec, _read(baseline))

    def run(self, spec: Spec, folder: RunFolder) -> None:
        assert spec.requirements is not None
        if spec.smoke:
            print(f"{self.name}: not judged, as the images of a smoke run are made up")
            return
        folder.write_config()  # which has the requirements that eval.json will answer
        rows = _judged(_read(folder.path), spec.requirements)
        if spec.requirements.changes:
            require_before(spec, folder)  # a folder that was moved aside has taken it along
            rows += _changed(before_and_after(folder.path), spec.requirements)
        record = Record.load(folder.path)
        record.requirements = rows
        record.save(folder.path)
        warnings = [f"warning: {sign.name}: {sign.text}" for sign in record.checks if sign.warns]
        write_text(folder.junit, junit(spec.name, rows, warnings))
        # What is missed ends the command, one line each, after the last stage.
        for line in [*warnings, *(f"met: {row.name}: {row.text}" for row in rows if row.met)]:
            print(line, flush=True)


def require_met(folder: RunFolder) -> None:
    """Raise Missed if the verdict of a run is that it misses a requirement."""
    if lines := load_run(folder.path).missed:
        raise Missed(folder.path, lines)


def _judged(run: FinishedRun, required: Requirements) -> list[RequirementRow]:
    """Return the verdicts on the floors, the minutes and the baseline."""
    level = required.level
    right = {"clean_accuracy": run.flags.right["clean"], "robust_accuracy": under_all(run.flags)}
    rows = [at_least(name, right[name], least, level) for name, least in required.floors.items()]
    if required.training_minutes is not None:
        seconds = summarise_training(run.record.history, run.record.config).training_seconds
        if seconds is None:
            raise UserError(
                "require.training_minutes: expected a training whose history.csv has "
                "training_seconds, received one of before they were recorded"
            )
        rows.append(at_most_minutes(seconds, required.training_minutes))
    if required.no_worse_than is None:
        return rows
    baseline = _read(in_home(required.no_worse_than))
    clean, robust = paired(run, baseline)
    for kind, pair in (("clean", clean), ("robust", robust)):
        if pair is not None:
            name = f"no_worse_than, {kind}"
            rows.append(not_worse(name, pair, required.no_worse_than, level))
    return rows


def _changed(runs: Sequence[FinishedRun], required: Requirements) -> list[RequirementRow]:
    """Return the verdict on each requirement of the change from before training to after it."""
    before, after = runs
    clean, robust = paired(after, before)
    rows = []
    for name, pair, least in (
        ("robust_gain", robust, required.robust_gain),
        ("clean_loss", clean, None if required.clean_loss is None else -required.clean_loss),
    ):
        if least is not None:
            assert pair is not None  # both networks have had the same attacks
            rows.append(above_before(name, pair, least, required.level))
    return rows


def _check_floors(spec: Spec, required: Requirements) -> None:
    """Raise a UserError for a floor or a gain so high that the test images cannot show it."""
    n = images_in_use(len(spec.evaluated), spec.attack_list, spec.evaluation.corruptions)
    sizes = {
        "clean_accuracy": n,
        "robust_accuracy": min([n, *(a.examples for a in spec.attack_list if a.examples)]),
    }
    for name, least in required.floors.items():
        highest = highest_floor(sizes[name], required.level)
        expected = (
            f"at most {highest:.6g}, which {sizes[name]} images can show at level "
            f"{required.level:g} if all are right"
        )
        require(least <= highest, f"require.{name}", expected, least)
    gain, n = required.robust_gain, sizes["robust_accuracy"]
    if gain is not None:
        highest = highest_gain(n, required.level)
        expected = (
            f"less than {highest:.6g}, above which {n} images can show no gain at level "
            f"{required.level:g}, even if all are gained"
        )
        require(gain < highest, "require.robust_gain", expected, gain)


def _check_baseline(spec: Spec, baseline: FinishedRun) -> None:
    """Raise a UserError if the baseline is not the same evaluation of another network."""
    record = baseline.record.evaluation
    require(not record.pending, BASELINE, "a finished evaluation", record.pending)
    rows = [threat_row(threat) for threat in spec.threats]
    balls = [(row.norm, row.eps, row.per_feature) for row in rows]
    expected = f"a run under the threat {threat_text(balls)}"
    require(record.balls == balls, BASELINE, expected, threat_text(record.balls))
    theirs, ours = settings_of(baseline), {}
    for listed in spec.attack_list:
        attack = fitted(listed, spec.data.source.num_classes).attack
        settings = plain(attack.settings(listed.threat or spec.threats[0]))
        ours[listed.name] = known_by(settings, digests_of(attack.files))
    for name in [*ours, *theirs]:
        expected = f"a run with the same attacks, {name}: {ours.get(name)}"
        require(ours.get(name) == theirs.get(name), BASELINE, expected, theirs.get(name))
    test = spec.evaluated.first(min(FIRST, len(spec.evaluated)))
    same = same_images(digests(test.as_float(), test.labels), baseline.flags.digest)
    expected = "a run on the same test images in the same order"
    require(same, BASELINE, expected, str(baseline.row.folder))


def _baseline(spec: Spec) -> Path | None:
    """Return the folder of the run to compare with, if any."""
    if spec.requirements is None or spec.requirements.no_worse_than is None:
        return None
    return in_home(spec.requirements.no_worse_than)


def _read(folder: Path) -> FinishedRun:
    return read_runs(rows_of([folder]))[0]
