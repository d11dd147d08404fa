"""Suites: many runs from one YAML file, one table: `python -m pipelines.run digits_table`."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import config as configs
from tfrobust.errors import UserError, choose, require
from tfrobust.registry import arguments

SURROGATE = "surrogate"  # the key, and the name of its run


@dataclasses.dataclass(frozen=True)
class Entry:
    """One or more runs of a suite's file.

    config: a config's name or path, or a list of them. label: of the row in the table, the method's
    name by default. set: keys and values as for `--set`. grid: key -> list of values; a run for
    each combination.
    """

    config: str | list[str]
    label: str | None = None
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: dict[str, list[Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SuiteFile:
    """A suite's file.

    runs: entries, or names of configs. set, grid: of every run, below the entry's own. budgets:
    name -> more such keys and values, of which `budget` names the ones that count. surrogate: an
    entry, trained first; `${surrogate.folder}` is its run. jobs: how many runs at a time.
    """

    runs: list[Any]
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    budget: str | None = None
    budgets: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    surrogate: dict[str, Any] | None = None
    jobs: int = 1
    note: str | None = None

    def __post_init__(self) -> None:
        require(self.runs, "runs", "a list of runs, at least one", self.runs)
        require(self.jobs >= 1, "jobs", "int >= 1", self.jobs)
        if self.budget is not None or self.budgets:
            choose("budget", self.budget, self.budgets)


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A run of a suite.

    name: of its folder. label: of its row; runs that differ in their seed alone share it. config,
    overrides: as on the command line. varied: the keys of its grid with their values.
    """

    name: str
    label: str
    config: str
    overrides: tuple[str, ...]
    varied: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Suite:
    """The runs of a suite, and the surrogate that is trained before them where there is one."""

    name: str
    file: SuiteFile
    members: list[Member]
    surrogate: Member | None


def is_suite(path: Path) -> bool:
    """Whether a file is a suite's and not a run's."""
    return "runs" in configs.keys(path)


def load_suite(path: Path, overrides: Sequence[str], workdir: Path) -> Suite:
    """The suite of a file. Of the overrides those of its own keys are for the suite, the others for
    every run. Raises UserError."""
    fields = {field.name for field in dataclasses.fields(SuiteFile)}
    own = [o for o in overrides if re.split(r"[.=\[]", o, maxsplit=1)[0] in fields]
    last = [o for o in overrides if o not in own]
    if SURROGATE in configs.keys(path):
        own.append(_override("surrogate.folder", str(workdir / path.stem / SURROGATE)))
    raw = configs.load(path, own)
    (raw.get(SURROGATE) or {}).pop("folder", None)
    raw[SURROGATE] = raw.get(SURROGATE) or None
    try:
        file = SuiteFile(**arguments(SuiteFile, raw, ""))
        shared = file.set | file.budgets.get(file.budget or "", {})
        members = [
            member
            for place, entry in enumerate(file.runs)
            for member in _members(f"runs[{place}]", entry, shared, file.grid, last)
        ]
        surrogate = None
        if file.surrogate is not None:
            (surrogate, *more) = _members(SURROGATE, file.surrogate, file.set, {}, last)
            require(not more, SURROGATE, "one run", file.surrogate)
            overrides = (*surrogate.overrides, "attacks=[]")  # it is trained and no more
            surrogate = dataclasses.replace(surrogate, name=SURROGATE, overrides=overrides)
        names = [member.name for member in members]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "runs", "runs that differ, or with labels of their own", twice)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Suite(path.stem, file, members, surrogate)


def _members(
    where: str,
    given: Any,
    shared: Mapping[str, Any],
    grid: Mapping[str, list[Any]],
    last: Sequence[str],
) -> Iterator[Member]:
    values = {"config": given} if isinstance(given, str) else given
    require(isinstance(values, Mapping), where, "a config's name or a mapping", given)
    entry = Entry(**arguments(Entry, values, where))
    grid = {**grid, **entry.grid}
    named = entry.label is None or _file_name([entry.label])
    require(named, f"{where}.label", "one with letters or digits", entry.label)
    empty = [key for key, listed in grid.items() if not listed]
    require(not empty, f"{where}.grid", "a list of values for each key", empty)
    for name in [entry.config] if isinstance(entry.config, str) else entry.config:
        for chosen in itertools.product(*grid.values()):
            varied = dict(zip(grid, chosen, strict=True))
            overrides = (
                *(_override(k, v) for k, v in ({**shared, **entry.set} | varied).items()),
                *last,
            )
            names = [override for override in overrides if override.startswith("name=")]
            expected = "none (the runs of a suite are named by their label and grid)"
            require(not names, "name", expected, names and names[-1].removeprefix("name="))
            label = entry.label or _method(name, overrides)
            shown = {key: value for key, value in varied.items() if key != "seed"}
            yield Member(
                _file_name([entry.label or Path(name).stem, *_told(varied)]),
                " ".join([label, *_told(shown)]),
                name,
                overrides,
                varied,
            )


def _told(varied: Mapping[str, Any]) -> list[str]:
    return [f"{key.rpartition('.')[2]}={value}" for key, value in varied.items()]


def _file_name(parts: list[str]) -> str:
    return re.sub(r"[^\w.-]+", "-", "_".join(parts)).strip("-.")


def _method(name: str, overrides: Sequence[str]) -> str:
    config = configs.load(configs.find(name), overrides)
    method = config.get("method") or name
    return str(method["name"]) if isinstance(method, Mapping) else str(method)


def _override(key: str, value: Any) -> str:
    return f"{key}={configs.flow(value)}"
