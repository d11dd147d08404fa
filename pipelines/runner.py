"""Run a config or a suite, and answer every mistake in one line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import tensorflow as tf

from pipelines import config as configs
from pipelines.command_line import fail, fail_at
from pipelines.comparison import show
from pipelines.harden import CONFIG, filled_in
from pipelines.resolve import command, load_spec
from pipelines.run_folder import RunFolder
from pipelines.search_cluster import ID, role
from pipelines.spec import Spec
from pipelines.stages import (
    MISSED,
    STAGES,
    Missed,
    Stage,
    check_stages,
    extends,
    in_order,
    require_met,
    work,
)
from pipelines.stopping import GO_ON
from pipelines.suite import is_suite, load_suite
from pipelines.suite_runner import commands, run_suite
from tfrobust.distribution import on_all_workers, strategy, worker
from tfrobust.errors import UserError, choose, one_line, require
from tfrobust.io import in_home, unwritable
from tfrobust.models.keras_defaults import neutral
from tfrobust.provenance import commit
from tfrobust.report import comparison, read_runs
from tfrobust.training import Interrupted


@neutral()  # a user's keras.json changes nothing
def run(
    name: str, overrides: list[str], workdir: Path, stages: list[str] | None, smoke: bool
) -> Path:
    """Run those stages of a config that are not done yet.

    Args:
        name: The config's name or path.
        overrides: `key=value` each, as for `--set`.
        workdir: The folder in which the run's folder is made.
        stages: The stages to run now, of those that the config has; None for all.
        smoke: Whether to cut the config down to a run of seconds.

    Returns:
        The run's folder.

    Raises:
        UserError: For a mistake in the config or its data; nothing is written then.
        Missed: After the last stage, if a requirement of the config is missed.
    """
    commit()  # now: the checkout may change during the run
    strategy()  # several workers have to meet before TensorFlow computes anything
    spec = load_spec(name, overrides, smoke)
    for stage_name in stages or []:
        choose("--stages", stage_name, spec.stages)
    number, workers = worker()
    alone = spec.search is None or workers == 1
    require(alone, "TF_CONFIG", f"one worker (those of a search have {ID} instead)", workers)
    folder = RunFolder(workdir / (f"{spec.name}.worker{number}" if number else spec.name))
    _set_up_tensorflow(spec)
    if spec.search is not None and role() == "worker":  # the chief writes the folder
        work(spec, folder)
        return folder.path
    chosen = in_order(spec, stages)
    made_by, own = command(name, overrides, smoke), _is_own(name, folder)
    if own and not overrides:  # the command that made the run, not one that needs the run
        made_by = str(configs.read(folder.config).get("command", made_by))
    folder.config_text = configs.dump({"name": spec.name, **spec.config, "command": made_by})
    # These checks come before the folder is made, so that a refused run leaves nothing behind.
    if folder.is_new() and own:
        raise UserError(
            f"{folder.config}: expected a config outside the folder of its run, which would "
            "replace it; --set name=NAME gives another folder"
        )
    if folder.lock.exists():  # else the checks would speak of what another run has yet to make
        with folder.locked():
            pass
    trains = any(stage.name in ("train", "search") for stage in chosen)
    _check_folder(folder, spec, smoke, trains)
    check_stages(chosen, spec, folder)
    with folder.locked():
        # Results of two configs are never mixed in one folder.
        if _of_another_config(folder, spec) and not extends(spec, folder):
            _check_start(folder, spec)
            print(f"The config has changed; the former run is kept in {folder.move_aside()}")
        print(f"{spec.name}: {', '.join(stage.name for stage in chosen)}", flush=True)
        for place, stage in enumerate(chosen, 1):
            print(f"== {spec.name}: {stage.name} ({place} of {len(chosen)})", flush=True)
            _run_stage(stage, spec, folder)
        if STAGES["attack_eval"] in chosen:  # the results are those of this config, also if skipped
            folder.write_config()
            if spec.requirements is None:  # CI would show the verdict on former ones
                folder.junit.unlink(missing_ok=True)
    if STAGES["verdict"] in chosen:
        require_met(folder)
    return folder.path


def _set_up_tensorflow(spec: Spec) -> None:
    """Ask for deterministic operations, except on a GPU or if the config compiles with XLA."""
    # Keras compiles nothing with XLA while op determinism is on.
    compiled = {part.jit_compile for part in (spec.train, spec.evaluation) if part}
    if tf.config.list_physical_devices("GPU"):
        # This optimizer gives up on the loops of attacks and logs that each time. XLA chooses its
        # layout itself.
        tf.config.optimizer.set_experimental_options({"layout_optimizer": False})
    elif True not in compiled:
        tf.config.experimental.enable_op_determinism()  # in every stage: each may run alone


def _run_stage(stage: Stage, spec: Spec, folder: RunFolder) -> None:
    done = stage.done(spec, folder)
    if on_all_workers(done):  # several workers go through a stage together
        stage.skip(folder)
        return
    inputs = stage.inputs(spec, folder)
    folder.mark(stage.name, inputs, done=False)
    stage.run(spec, folder)
    folder.mark(stage.name, inputs, done=True, sizes=stage.sizes(spec, folder))


def _check_folder(folder: RunFolder, spec: Spec, smoke: bool, trains: bool) -> None:
    """Raise a UserError if another run's folder has this name and may not be moved aside."""
    if spec.train is None and folder.used() and not _holds_network(folder, spec):
        raise UserError(
            f"{folder.path}: expected a folder without a training, whose curves and times would "
            "stand beside the results of another network; --set name=NAME gives another"
        )
    if (folder.path / "table.csv").exists():
        raise UserError(
            f"{folder.path}: expected the folder of a run, received that of a suite or a "
            "comparison, whose page would be replaced; --set name=NAME gives another"
        )
    if not _of_another_config(folder, spec):
        untrained = spec.train is not None and spec.search is None and not trains
        if untrained and folder.begun("train") and not folder.finished("train"):
            raise UserError(
                f"{folder.path}: expected a finished training, received one that was stopped, and "
                "at most the network of an earlier one; run the stage train first"
            )
        return
    if not trains:
        raise UserError(
            f"{folder.path}: expected a run with this config, received one that was trained with "
            "another; add the stage train or give another --workdir"
        )
    if smoke and not _smoked(folder):
        raise UserError(
            f"{folder.path}: expected a folder for the smoke run, received one with a real run; "
            "give another --workdir"
        )


def _is_own(name: str, folder: RunFolder) -> bool:
    """Return whether a config is the config.yaml in the folder of its run."""
    return configs.find(name).resolve() == folder.config.resolve()


def _holds_network(folder: RunFolder, spec: Spec) -> bool:
    """Return whether the network that a config only evaluates lies in the folder."""
    path = in_home(spec.config["model"]["path"]).resolve()
    return path.is_relative_to(folder.path.resolve())


def _check_start(folder: RunFolder, spec: Spec) -> None:
    """Raise a UserError if the network to start from is in the folder that is moved aside."""
    start = None if spec.train is None else spec.train.init_from
    if start is None:
        return
    path = in_home(start).resolve()
    inside = path.is_relative_to(folder.path.resolve())
    expected = f"a network outside {folder.path}, which is moved aside (or --set name=NAME)"
    require(not inside, "train.init_from", expected, start)


def _of_another_config(folder: RunFolder, spec: Spec) -> bool:
    """Return whether the training in the folder, if there is one, has another config."""
    if spec.train is None or not folder.used():
        return False
    return folder.begun("train") != STAGES["train"].inputs(spec, folder)


def _smoked(folder: RunFolder) -> bool:
    return str(configs.read(folder.config).get("command")).endswith(" --smoke")


def main(name: str, options: argparse.Namespace) -> None:
    """Run a config or a suite, and exit with one line if that fails.

    Args:
        name: The config's name or path.
        options: The options of `tfrobust run`: overrides, workdir, stages, smoke, print_config.
    """
    workdir = options.workdir
    try:
        if name == CONFIG:
            options.overrides = filled_in(options.overrides)
        if is_suite(configs.find(name)):
            _suite(name, options)
        elif options.print_config:
            spec = load_spec(name, options.overrides, options.smoke)
            print(configs.dump(spec.config), end="")
        else:
            folder = run(name, options.overrides, workdir, options.stages, options.smoke)
            print(f"Done: {folder}")
    except Missed as error:
        print(f"Done: {error.folder}", flush=True)
        for line in error.lines:
            print(f"missed: {line}", file=sys.stderr)
        sys.exit(MISSED)
    except UserError as error:
        fail(str(error))
    except Interrupted as error:
        fail(f"{error}; {GO_ON}", 128 + error.number)
    except tf.errors.OpError as error:
        if place := unwritable(error):
            fail_at(workdir, place)
        if worker()[1] == 1:
            raise
        reason = one_line(error, 150)
        fail(f"a worker has stopped or is out of reach ({reason}); start all again: {GO_ON}")
    except MemoryError as error:
        fail(f"expected a network and batches that fit into memory: {one_line(error, 150)}")
    except OSError as error:
        fail_at(workdir, error)


def _suite(name: str, options: argparse.Namespace) -> None:
    if options.print_config:
        suite = load_suite(configs.find(name), options.overrides, options.workdir)
        for line in commands(suite, options.workdir, options.smoke):
            print(line)
        return
    folder, rows = run_suite(name, options.overrides, options.workdir, options.smoke)
    if runs := read_runs(rows):
        show(comparison(runs))
    missed = [run.row.folder.name for run in runs if run.record.missed]
    failed = [f"{row.folder.name} ({row.reason})" for row in rows if row.reason is not None]
    print(f"Done: {folder}", flush=True)
    if missed:
        line = f"{len(missed)} of {len(rows)} runs miss a requirement: {', '.join(missed)}"
        print(f"missed: {line}", file=sys.stderr)
    if failed:
        fail(f"{len(failed)} of {len(rows)} runs failed: {'; '.join(failed)}; {GO_ON}", 1)
    if missed:
        sys.exit(MISSED)
