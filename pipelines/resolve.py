"""A config's name and overrides to its checked spec, and the command that says the same."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from pipelines import config as configs
from pipelines.smoke_runs import smoke as cut_down
from pipelines.spec import Spec, parse
from tfrobust.errors import UserError

FOLDER = re.compile(r"\w([\w .:-]*[\w.:-])?")


def load_spec(name: str, overrides: Sequence[str], smoke: bool) -> Spec:
    """The spec of a config, by name or path, with its overrides. Raises UserError, which names the
    override or else the file that is wrong."""
    path = configs.find(name)
    raw = configs.load(path, overrides)
    called = path.stem if raw.get("name") is None else raw["name"]
    if not isinstance(called, str):
        raise UserError(f"{path}: name: expected text (put it in quotes), received {called!r}")
    if not FOLDER.fullmatch(called):
        expected = "a folder's: letters, digits and _ - . : or blanks between them"
        raise UserError(f"{path}: name: expected {expected}, received {called!r}")
    try:
        spec = parse(called, raw)
        return cut_down(spec) if smoke else spec
    except UserError as error:
        key = str(error).partition(":")[0]
        set_keys = [override.partition("=")[0] for override in overrides]
        ours = [o for o, k in zip(overrides, set_keys, strict=True) if configs.related(key, k)]
        raise UserError(f"{'--set ' + ours[-1] if ours else path}: {error}") from error


def arguments_of(name: str, overrides: Sequence[str], smoke: bool) -> list[str]:
    """What follows `python` on the command line that runs the config."""
    parts = ["-m", "pipelines.run", name]
    for override in overrides:
        parts += ["--set", override]
    return parts + ["--smoke"] * smoke


def command(name: str, overrides: Sequence[str], smoke: bool) -> str:
    """The line of a shell that runs the config."""
    return shlex.join(["python", *arguments_of(name, overrides, smoke)])
