"""The checked spec, and the command line, of a config's name and overrides."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pipelines.early_check import named_source, read_config
from pipelines.smoke_runs import smoke as cut_down
from pipelines.spec import Spec, parse


def load_spec(name: str, overrides: Sequence[str], smoke: bool) -> Spec:
    """Return the checked spec of a config.

    Args:
        name: The config's name or path.
        overrides: `key=value` each, as for `--set`.
        smoke: Whether to cut it down to a run of seconds.

    Raises:
        UserError: For a mistake in the config; it names the override or else the file.
    """
    run_name, config = read_config(name, overrides)
    with named_source(name, overrides):
        spec = parse(run_name, config)
        return cut_down(spec) if smoke else spec


def arguments_of(name: str, overrides: Sequence[str], smoke: bool) -> list[str]:
    """Return the arguments of `python` in the command line that runs the config."""
    parts = ["-m", "pipelines.run", name]
    for override in overrides:
        parts += ["--set", override]
    return parts + ["--smoke"] * smoke


def command(name: str, overrides: Sequence[str], smoke: bool) -> str:
    """Return the shell command that runs the config."""
    return shlex.join(["python", *arguments_of(name, overrides, smoke)])
