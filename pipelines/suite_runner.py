"""Run a suite: each run in a separate process, then a page with the table of all runs."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pipelines import config as configs
from pipelines.children import Children
from pipelines.resolve import arguments_of, command, load_spec
from pipelines.run_folder import RunFolder
from pipelines.stages import MISSED, in_order
from pipelines.suite import SURROGATE, Member, Suite, load_suite
from tfrobust.errors import UserError, require
from tfrobust.report import Row, duration, headline, load_run, require_own, write_comparison

REFUSED = 2  # the exit status of a run that stops at a user's mistake, or at a full disk, say


class _End(NamedTuple):
    """How a run ended: the reason if it failed or None, and whether it was refused."""

    reason: str | None
    refused: bool = False


def run_suite(
    name: str, overrides: Sequence[str], workdir: Path, smoke: bool
) -> tuple[Path, list[Row]]:
    """Train, attack and report the runs of a suite that are not done yet.

    Args:
        name: The suite's name or the path of its file.
        overrides: Overrides as on the command line.
        workdir: The folder in which the suite's folder is made.
        smoke: Whether every run is cut down to seconds.

    Returns:
        The suite's folder, and a row for each run, with the reason if the run failed.

    Raises:
        UserError: If there is a mistake in the file, before anything is run; or if every run is
            refused and has no folder, after which a newly made folder is removed again.
    """
    suite = load_suite(configs.find(name), overrides, workdir)
    folder = RunFolder(workdir / suite.name)
    for member in suite.first_of_labels():
        check(member, suite, folder.path, smoke)
    require_own(folder.path, suite.name, suite.name)
    is_new = not folder.path.exists()
    ends: dict[str, _End] = {}
    with folder.locked():
        if suite.surrogate is not None:
            ends |= _run_all(suite, [suite.surrogate], folder.path, smoke, ["train"])
        ends |= _run_all(suite, suite.members, folder.path, smoke)
        begun = any((folder.path / run).exists() for run in ends)  # it may hold a network
        if is_new and not begun and all(end.refused for end in ends.values()):
            shutil.rmtree(folder.path)  # it holds only logs, whose lines the terminal has shown
            folder.lock.unlink()
            with contextlib.suppress(OSError):  # other runs lie there
                workdir.rmdir()
            first = suite.members[0].name
            raise UserError(f"{suite.name}: every run is refused; {first}: {ends[first].reason}")
        rows = [
            Row(member.label, folder.path / member.name, member.varied, ends[member.name].reason)
            for member in suite.members
        ]
        facts = {
            "command": command(name, overrides, smoke),
            "budget": suite.file.budget,
            "note": suite.file.note,
        }
        facts = {key: fact for key, fact in facts.items() if fact}
        write_comparison(folder.path, suite.name, rows, facts)
    return folder.path, rows


def commands(suite: Suite, workdir: Path, smoke: bool) -> list[str]:
    """Return the shell command of the surrogate, if there is one, and of each run."""
    folder = workdir / suite.name
    lines = [_arguments(member, folder, smoke) for member in suite.members]
    if suite.surrogate is not None:
        lines.insert(0, [*_arguments(suite.surrogate, folder, smoke), "--stages", "train"])
    return [shlex.join(["python", *line]) for line in lines]


def check(member: Member, suite: Suite, folder: Path, smoke: bool) -> None:
    """Raise a UserError if the config of a run has a mistake.

    Attacks from the surrogate are left out, as it is trained only later.
    """
    overrides = list(member.overrides)
    if suite.surrogate is not None:
        attacks = configs.load(configs.find(member.config), overrides).get("attacks")
        if isinstance(attacks, list):
            source = str(folder / SURROGATE)
            others = [attack for attack in attacks if not _attacks_from(attack, source)]
            overrides.append(f"attacks={configs.flow(others)}")
    try:
        stages = load_spec(member.config, overrides, smoke).stages
        require("attack_eval" in stages, "stages", "attack_eval among them, to compare", stages)
    except UserError as error:
        raise UserError(f"{member.label}: {error}") from None


def _attacks_from(attack: Any, source: str) -> bool:
    """Return whether an attack uses the surrogate in the folder `source`."""
    return isinstance(attack, dict) and attack.get("source") == source


def _run_all(
    suite: Suite,
    members: Sequence[Member],
    folder: Path,
    smoke: bool,
    stages: Sequence[str] | None = None,
) -> dict[str, _End]:
    """Run the members that are not done, `jobs` of them at a time.

    Args:
        suite: The suite.
        members: The runs.
        folder: The folder of the suite.
        smoke: Whether the runs are cut down to seconds.
        stages: The stages to run; None runs those of each config.

    Returns:
        The name of each run, and how it ended.
    """
    ends: dict[str, _End] = {}
    lines: dict[str, list[str]] = {}
    for member in members:
        try:
            line = _command(member, folder, smoke, stages)
        except UserError as error:  # such as a surrogate that was not trained
            ends[member.name] = _End(str(error), refused=True)
            print(f"{member.name}: failed: {error}", flush=True)
            continue
        if line:
            lines[member.name] = line
        else:
            ends[member.name] = _End(None)
            print(f"{member.name}: done before", flush=True)

    if lines:
        count = f"{len(lines)} run{'s' * (len(lines) > 1)} to do"
        print(f"{suite.name}: {count}, with logs in {folder / 'logs'}", flush=True)
    settings = {}
    if suite.file.jobs > 1:  # the runs share the cores, and the memory of a GPU
        threads = max(1, (os.cpu_count() or 1) // suite.file.jobs)
        settings = {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    children = Children()
    with children.waited_for(), ThreadPoolExecutor(suite.file.jobs) as pool:
        try:
            futures = {
                pool.submit(_run, line, folder, name, os.environ | settings, children): name
                for name, line in lines.items()
            }
            with tqdm(total=len(lines), desc=suite.name, unit="run", disable=None) as bar:
                for future in as_completed(futures):
                    name = futures[future]
                    reason, summary, status = future.result()
                    ends[name] = _End(reason, status == REFUSED)
                    bar.write(f"{name}: {summary}")
                    sys.stdout.flush()  # for a file or a pipe
                    bar.update()
        except BaseException:
            children.stop()
            raise
    return ends


def _command(
    member: Member, folder: Path, smoke: bool, stages: Sequence[str] | None
) -> list[str] | None:
    """Return the command of a run, or None if the run is done."""
    spec = load_spec(member.config, _overrides(member), smoke)
    run_folder = RunFolder(folder / member.name)
    if all(stage.done(spec, run_folder) for stage in in_order(spec, stages)):
        return None
    line = [sys.executable, *_arguments(member, folder, smoke)]
    return line if stages is None else [*line, "--stages", ",".join(stages)]


def _overrides(member: Member) -> list[str]:
    return [f"name={member.name}", *member.overrides]


def _arguments(member: Member, folder: Path, smoke: bool) -> list[str]:
    """Return the arguments of `python` in the command of a run in the folder of its suite."""
    arguments = arguments_of(member.config, _overrides(member), smoke)
    return [*arguments, "--workdir", str(folder)]


def _run(
    line: list[str], folder: Path, name: str, environment: Mapping[str, str], children: Children
) -> tuple[str | None, str, int | None]:
    """Run a command.

    Returns:
        The reason if the run failed or None; a summary in one line; and the exit status.
    """
    begun, log = time.perf_counter(), folder / "logs" / f"{name}.log"
    status = children.run(line, log, environment)
    if status is None:
        return "not begun", "not begun", None
    elapsed = duration(time.perf_counter() - begun)
    if status not in (0, MISSED):
        reason = _reason(log, status)
        return reason, f"failed after {elapsed}: {reason} ({log})", status
    if not (folder / name / "eval.json").is_file():  # the surrogate is not evaluated
        return None, f"done in {elapsed}", status
    record = load_run(folder / name)
    missed = "".join(f"; missed: {line}" for line in record.missed)
    return None, f"{headline(record.config, record.evaluation)}; {elapsed}{missed}", status


def _reason(log: Path, status: int) -> str:
    """Return the signal that killed a run, the last error in its log, or else the last line."""
    if status < 0:
        killed = signal.Signals(-status)
        cause = ", as happens where memory runs out" if killed == signal.SIGKILL else ""
        return f"killed by {killed.name}{cause}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit status {status}"])[-1]
