"""Measure how long an epoch of a config takes on this machine, and how many fit into a time.

    python tools/epoch_time.py cpu_hour_adv cpu_hour_trades --minutes 60
    python tools/epoch_time.py cpu_hour_adv --set data.validation=0 \\
        --vary 'model={name: wide_resnet, depth: 16, width: 2}' \\
        --vary 'model={name: small_resnet, groups: [64, 128, 256]}'

Each config, with each value of --vary, trains as by `python -m pipelines.run`, for two epochs of
--steps batches each, and with all of its validation. The second epoch is measured; the rest is the
start, in which TensorFlow traces the steps. `require.training_minutes` counts both. Nothing else
may run meanwhile. Methods with a warm-up (IAAT) are measured within it.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.resolve import arguments_of, load_spec
from pipelines.run_folder import RunFolder
from pipelines.spec import Spec
from tfrobust.data import Dataset
from tfrobust.errors import UserError, require
from tfrobust.report.text import duration, markdown_table, milliseconds

NAME = "measured"


class Cost(NamedTuple):
    """The times of a training, in seconds.

    Attributes:
        start: What the first epoch takes beyond its steps.
        batch: The median training step.
        validation: The validation after an epoch.
        rest: What an epoch takes beside its steps and its validation, such as a checkpoint.
    """

    start: float
    batch: float
    validation: float
    rest: float

    def epoch(self, steps: int) -> float:
        """Return the time of an epoch of a number of steps."""
        return steps * self.batch + self.validation + self.rest

    def epochs(self, steps: int, seconds: float) -> int:
        """Return the number of whole epochs of `steps` steps that fit into a time."""
        return max(0, math.floor((seconds - self.start) / self.epoch(steps)))


def cost_of(history: Sequence[Mapping[str, str]], steps: int) -> Cost:
    """Return the times of a training from the two rows of its history.csv.

    Args:
        history: The rows.
        steps: The number of steps in each of the two epochs.
    """
    first, second = (float(row["training_seconds"]) for row in history)
    epoch, batch = second - first, float(history[1]["seconds_per_batch"])
    validation = float(history[1]["validation_share"]) * epoch
    rest = max(0.0, epoch - steps * batch - validation)
    return Cost(max(0.0, first - epoch), batch, validation, rest)


def trained(config: str, overrides: Sequence[str], steps: int, averages: bool) -> Cost:
    """Train a config for two epochs in a process of its own, and return its times.

    Args:
        config: The config.
        overrides: Overrides as for `--set`.
        steps: The number of steps in each epoch.
        averages: Whether the config has a mapping train.averaging, which may start later.

    Raises:
        UserError: If the training fails.
    """
    short = ["train.epochs=2", f"train.steps_per_epoch={steps}", "train.epsilon_warmup_epochs=0"]
    short += ["train.epsilon_ramp_epochs=0", f"name={NAME}"]
    short += ["train.averaging.start_epoch=0"] * averages
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, *arguments_of(config, [*overrides, *short], smoke=False)]
        line += ["--stages", "train", "--workdir", folder]
        process = subprocess.run(line, capture_output=True, text=True)
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            raise UserError(f"{config}: {lines[-1]}")
        with RunFolder(Path(folder) / NAME).history.open(newline="") as rows:
            return cost_of(list(csv.DictReader(rows)), steps)


@functools.cache
def _images(source: Dataset) -> int:
    return len(source.load("train"))


def steps_of(spec: Spec) -> int:
    """Return the number of steps in an epoch of a config."""
    assert spec.train is not None
    images = _images(spec.data.source) - spec.data.validation
    return spec.train.steps_per_epoch or images // spec.data.batch_size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=20, help="training steps that are measured")
    parser.add_argument("--minutes", type=float, default=60.0, help="the time to fill with epochs")
    args = parser.parse_args()
    header = ["config", "batch", "ms per batch", "validation", "rest", "epoch", "start"]
    print(markdown_table([*header, f"epochs in {args.minutes:g} min"], []), flush=True)
    for config in args.configs:
        for varied in args.vary or [""]:
            overrides = [*args.overrides, *filter(None, [varied])]
            try:
                spec = load_spec(config, overrides, smoke=False)
                require(spec.train, config, "a config that trains", None)
                averages = isinstance(spec.config["train"].get("averaging"), Mapping)
                cost, steps = trained(config, overrides, args.steps, averages), steps_of(spec)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            cells = [f"{config} {varied}".strip(), str(spec.data.batch_size)]
            cells += [milliseconds(cost.batch), duration(cost.validation), duration(cost.rest)]
            cells += [duration(cost.epoch(steps)), duration(cost.start)]
            cells.append(str(cost.epochs(steps, 60 * args.minutes)))
            print(markdown_table(["", *[""] * 7], [cells]).splitlines()[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
