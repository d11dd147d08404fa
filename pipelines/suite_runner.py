"""Runs the members of a suite, each in a process of its own, and writes their table."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from pipelines import config as configs
from pipelines import stages as stage_runners
from pipelines.children import Children
from pipelines.folder import Folder
from pipelines.resolve import arguments_of, command, load_spec
from pipelines.suite import SURROGATE, Member, Suite, load_suite
from tfrobust.errors import UserError, require
from tfrobust.report import Row, duration, headline, load_run, write_comparison

REFUSED = 2  # the exit status of a run that is refused


def run_suite(
    name: str, overrides: Sequence[str], workdir: Path, smoke: bool
) -> tuple[Path, list[Row]]:
    """Trains, attacks and reports all runs of a suite that are not done; its folder, and a row for
    each run, with a reason for those that failed. Raises UserError for a mistake in the file,
    before anything is run, and where every run is refused, which then leaves nothing."""
    suite = load_suite(configs.find(name), overrides, workdir)
    folder = Folder(workdir / suite.name)
    for member in {member.label: member for member in reversed(suite.members)}.values():
        check(member, suite, folder.path, smoke)
    new = not folder.path.exists()
    reasons: dict[str, str | None] = {}
    refused: set[str] = set()
    with folder.locked():
        if suite.surrogate is not None:
            reasons |= _run_all(suite, [suite.surrogate], folder.path, smoke, refused, ["train"])
        reasons |= _run_all(suite, suite.members, folder.path, smoke, refused)
        if new and refused >= reasons.keys():
            shutil.rmtree(folder.path)  # logs, which hold what the terminal was told
            folder.lock.unlink()
            with contextlib.suppress(OSError):  # others' runs are in it
                workdir.rmdir()
            first = next(iter(reasons))
            raise UserError(f"{suite.name}: every run is refused; {first}: {reasons[first]}")
        rows = [
            Row(member.label, folder.path / member.name, member.varied, reasons[member.name])
            for member in suite.members
        ]
        facts = {
            "command": command(name, overrides, smoke),
            "budget": suite.file.budget,
            "note": suite.file.note,
        }
        write_comparison(folder.path, suite.name, rows, {k: v for k, v in facts.items() if v})
    return folder.path, rows


def check(member: Member, suite: Suite, folder: Path, smoke: bool) -> None:
    """Raise the UserError of a run's config."""
    overrides = list(member.overrides)
    if suite.surrogate is not None:  # what attacks with it has to wait until it is trained
        attacks = configs.load(configs.find(member.config), overrides).get("attacks")
        waits = {"source": str(folder / SURROGATE)}.items()
        if isinstance(attacks, list):
            others = [a for a in attacks if not (isinstance(a, dict) and waits <= a.items())]
            overrides.append(f"attacks={configs.flow(others)}")
    try:
        stages = load_spec(member.config, overrides, smoke).stages
        require("attack_eval" in stages, "stages", "attack_eval among them, to compare", stages)
    except UserError as error:
        raise UserError(f"{member.label}: {error}") from None


def _run_all(
    suite: Suite,
    members: Sequence[Member],
    folder: Path,
    smoke: bool,
    refused: set[str],
    stages: Sequence[str] | None = None,
) -> dict[str, str | None]:
    """Runs the members that are not done, `jobs` of them at a time: name -> None, or why it
    failed. refused: takes the names of those that were refused."""
    reasons: dict[str, str | None] = {}
    todo: dict[str, list[str]] = {}
    for member in members:
        try:
            line = _line(member, folder, smoke, stages)
        except UserError as error:  # such as a surrogate that was not trained
            reasons[member.name] = str(error)
            refused.add(member.name)
            print(f"{member.name}: failed: {error}", flush=True)
            continue
        if line:
            todo[member.name] = line
        else:
            reasons[member.name] = None
            print(f"{member.name}: done before", flush=True)

    own = {}
    if suite.file.jobs > 1:  # they share the cores, and the memory of a GPU
        threads = max(1, (os.cpu_count() or 1) // suite.file.jobs)
        own = {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    children = Children()
    with children.waited_for(), ThreadPoolExecutor(suite.file.jobs) as pool:
        try:
            waiting = {
                pool.submit(_run, line, folder, name, os.environ | own, children): name
                for name, line in todo.items()
            }
            with tqdm(total=len(todo), desc=suite.name, unit="run", disable=None) as bar:
                for finished in as_completed(waiting):
                    name = waiting[finished]
                    reasons[name], told, status = finished.result()
                    if status == REFUSED:
                        refused.add(name)
                    bar.write(f"{name}: {told}")
                    bar.update()
        except BaseException:
            children.stop()
            raise
    return reasons


def _line(
    member: Member, folder: Path, smoke: bool, stages: Sequence[str] | None
) -> list[str] | None:
    """The command of a run, None where it is done."""
    overrides = [f"name={member.name}", *member.overrides]
    spec, made = load_spec(member.config, overrides, smoke), Folder(folder / member.name)
    if all(stage_runners.done(stage, spec, made) for stage in stages or spec.stages):
        return None
    line = [sys.executable, *arguments_of(member.config, overrides, smoke)]
    return [*line, "--workdir", str(folder), *(["--stages", ",".join(stages)] if stages else [])]


def _run(
    line: list[str], folder: Path, name: str, environment: Mapping[str, str], children: Children
) -> tuple[str | None, str, int | None]:
    """None, or why the run failed; what to tell; the exit status."""
    begun, log = time.perf_counter(), folder / "logs" / f"{name}.log"
    status = children.run(line, log, environment)
    if status is None:
        return "not begun", "not begun", None
    took = duration(time.perf_counter() - begun)
    if status:
        reason = _reason(log, status)
        return reason, f"failed after {took}: {reason} ({log})", status
    if not (folder / name / "eval.json").is_file():  # the surrogate has none
        return None, f"done in {took}", status
    record = load_run(folder / name)
    return None, f"{headline(record.config, record.evaluation)}; {took}", status


def _reason(log: Path, status: int) -> str:
    """The error's line, or else the last one of a run's log."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or [f"exit status {status}"])[-1]
