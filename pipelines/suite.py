"""Suites: many runs from one YAML file, compared in one table."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import config as configs
from tfrobust.errors import UserError, choose, require, require_at_least
from tfrobust.registry import arguments, located

LONGEST = 240  # bytes in the name of a run's folder, whose lock and log have a few more
SURROGATE = "surrogate"  # a key in the file of a suite, and the name of that run's folder
OWN = ("logs", "report", "table.csv")  # what a suite itself writes into its folder


@dataclasses.dataclass(frozen=True)
class Entry:
    """One or more runs in the file of a suite.

    Args:
        config: A config's name or path, or a list of them.
        label: The label of the row in the table; the method's name by default.
        set: Keys and their values, as for `--set`.
        grid: Keys and the list of values of each. There is a run for each combination.
    """

    config: str | list[str]
    label: str | None = None
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.config, "config", "a config's name, or a list of at least one", self.config)


@dataclasses.dataclass(frozen=True)
class SuiteFile:
    """The file of a suite.

    Args:
        runs: Entries, or names of configs.
        set: Keys and values for every run. Those of an entry replace them.
        grid: A grid for every run. The keys of an entry's grid replace its keys.
        budget: The name of the budget in use.
        budgets: The name of each budget, and the keys and values that it adds to every run.
        surrogate: An entry that is trained first; `${surrogate.folder}` is its run folder.
        jobs: The number of runs at a time.
        note: A line for the page of the suite.
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
        require_at_least(1, jobs=self.jobs)
        if self.budgets:
            choose("budget", self.budget, self.budgets)
        expected = "none (the suite has no budgets)"
        require(self.budgets or self.budget is None, "budget", expected, self.budget)


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A run of a suite.

    Attributes:
        name: The name of its folder.
        label: The label of its row. Runs that differ only in their seed share one.
        config: The config's name or path, as on the command line.
        overrides: The overrides, as on the command line.
        varied: The keys of its grid with their values.
        labelled: Whether its entry has a label.
    """

    name: str
    label: str
    config: str
    overrides: tuple[str, ...]
    varied: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labelled: bool = False

    @property
    def settings(self) -> dict[str, str]:
        """The overrides without the seed, key -> text."""
        settings = dict(override.split("=", 1) for override in self.overrides)
        return {key: text for key, text in settings.items() if key != "seed"}


@dataclasses.dataclass(frozen=True)
class Suite:
    """The runs of a suite, and the surrogate that is trained before them, if there is one."""

    name: str
    file: SuiteFile
    members: list[Member]
    surrogate: Member | None

    def first_of_labels(self) -> list[Member]:
        """Return one run for each label, as runs of one label differ only in their seed."""
        return list({member.label: member for member in reversed(self.members)}.values())


def is_suite(path: Path) -> bool:
    """Return whether a config file describes a suite rather than a run."""
    return "runs" in configs.keys(path)


def load_suite(path: Path, overrides: Sequence[str], workdir: Path) -> Suite:
    """Return the suite of a file.

    Args:
        path: The file.
        overrides: Overrides as on the command line. Those of keys of the suite change the suite;
            the others are added to the overrides of every run.
        workdir: The folder in which the suite's folder is made.

    Raises:
        UserError: If the file is wrong; the message names the file.
    """
    fields = {field.name for field in dataclasses.fields(SuiteFile)}
    of_suite: list[str] = []
    of_runs: list[str] = []
    for override in overrides:
        key = re.split(r"[.=\[]", override, maxsplit=1)[0]
        (of_suite if key in fields else of_runs).append(override)
    if SURROGATE in configs.keys(path):
        of_suite.append(_override("surrogate.folder", str(workdir / path.stem / SURROGATE)))
    raw, folder = configs.load(path, of_suite), path.parent
    (raw.get(SURROGATE) or {}).pop("folder", None)
    raw[SURROGATE] = raw.get(SURROGATE) or None
    try:
        file = SuiteFile(**arguments(SuiteFile, raw, ""))
        shared = file.set | file.budgets.get(file.budget or "", {})
        members = [
            member
            for place, entry in enumerate(file.runs)
            for member in _members(f"runs[{place}]", entry, shared, file.grid, of_runs, folder)
        ]
        surrogate = None
        if file.surrogate is not None:
            surrogates = list(_members(SURROGATE, file.surrogate, file.set, {}, of_runs, folder))
            require(len(surrogates) == 1, SURROGATE, "one run", file.surrogate)
            overrides = (*surrogates[0].overrides, "attacks=[]")  # it is only trained
            surrogate = dataclasses.replace(surrogates[0], name=SURROGATE, overrides=overrides)
        names = [member.name for member in members]
        repeated = sorted({name for name in names if names.count(name) > 1})
        require(not repeated, "runs", "runs that differ, or with labels of their own", repeated)
        taken = [name for name in names if name in OWN]
        require(not taken, "runs", f"labels other than {', '.join(OWN)}, its own files", taken)
        if surrogate is not None:
            expected = f"no run with the label {SURROGATE}, whose folder is that of the surrogate"
            require(SURROGATE not in names, "runs", expected, names)
        members = _told_apart(members)
        pooled = [member.name for member in members if not _may_share_a_row(member, members)]
        expected = "labels for entries that differ in more than the seed, else they are one row"
        require(not pooled, "runs", expected, pooled)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Suite(path.stem, file, members, surrogate)


def _told_apart(members: Sequence[Member]) -> list[Member]:
    """Return the runs, labelled by their config where one label would stand for several configs.

    Runs of one label count as seeds of each other.
    """
    of_label: dict[str, set[str]] = {}
    for member in members:
        of_label.setdefault(member.label, set()).add(member.config)
    return [
        dataclasses.replace(member, label=_label(Path(member.config).stem, member.varied))
        if len(of_label[member.label]) > 1
        else member
        for member in members
    ]


def _may_share_a_row(member: Member, members: Sequence[Member]) -> bool:
    """Return whether a run may stand in one row with the other runs of its label.

    It may if the file chose the label for all of them, or if they differ only in their seed.
    """
    family = [other for other in members if other.label == member.label]
    chosen = all(other.labelled for other in family)
    return chosen or all(other.settings == member.settings for other in family)


def _members(
    where: str,
    value: Any,
    shared: Mapping[str, Any],
    grid: Mapping[str, list[Any]],
    last: Sequence[str],
    folder: Path,
) -> Iterator[Member]:
    """Yield the runs of an entry.

    Args:
        where: The entry's place in the file, for error messages.
        value: The entry as it stands in the file: a config's name or a mapping.
        shared: Keys and values of every run. Those of the entry replace them.
        grid: The grid of every run. The keys of the entry's grid replace its keys.
        last: Overrides from the command line, which replace all others.
        folder: The folder of the suite's file, in which a path of a config is looked up first.
    """
    values = {"config": value} if isinstance(value, str) else value
    require(isinstance(values, Mapping), where, "a config's name or a mapping", value)
    entry = located(where, Entry, **arguments(Entry, values, where))
    if entry.label is not None:
        file_name = _file_name([entry.label])
        require(file_name, f"{where}.label", "one with letters or digits", entry.label)
    grid = {**grid, **entry.grid}
    empty = [key for key, options in grid.items() if not options]
    require(not empty, f"{where}.grid", "a list of values for each key", empty)
    names = [entry.config] if isinstance(entry.config, str) else entry.config
    names = [_path(name, folder) for name in names]
    for name, point in itertools.product(names, itertools.product(*grid.values())):
        varied = dict(zip(grid, point, strict=True))
        settings: dict[str, Any] = {}
        for source in (shared, entry.set, varied):  # what comes later replaces what is above it
            settings = {key: v for key, v in settings.items() if key not in source} | dict(source)
        overrides = (*itertools.starmap(_override, settings.items()), *last)
        for override in overrides:
            key, _, name_of_run = override.partition("=")
            expected = "none (the runs of a suite are named by their label and grid)"
            require(key != "name", "name", expected, name_of_run)
        _check_varied(where, varied, overrides)
        label = entry.label or _method_name(name, overrides)
        yield Member(
            name=_file_name([entry.label or Path(name).stem, *_texts(varied)]),
            label=_label(label, varied),
            config=name,
            overrides=overrides,
            varied=varied,
            labelled=entry.label is not None,
        )


def _check_varied(where: str, varied: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raise a UserError if a run has not the values of its grid, by which it is named."""
    keys = [re.sub(r"\[(\d+)\]", r".\1", each.partition("=")[0]) for each in overrides]
    for key, value in varied.items():
        own = _override(key, value)
        place = overrides.index(own)
        for later in range(place + 1, len(keys)):
            if f"{keys[place]}.".startswith(f"{keys[later]}."):
                expected = f"a key that no grid varies (the run is named by {own})"
                raise UserError(f"{where}: {overrides[later]}: expected {expected}")


def _path(name: str, folder: Path) -> str:
    """Return a config's path beside the file of a suite, if it is there; else the name itself."""
    beside = folder / name
    return str(beside) if beside.suffix in (".yaml", ".yml") and beside.is_file() else name


def _label(name: str, varied: Mapping[str, Any]) -> str:
    return " ".join([name, *_texts({key: v for key, v in varied.items() if key != "seed"})])


def _texts(varied: Mapping[str, Any]) -> list[str]:
    return [f"{key.rpartition('.')[2]}={configs.flow(value)}" for key, value in varied.items()]


def _file_name(parts: list[str]) -> str:
    """Return the parts as the name of a folder; of a long name the end is a digest of it."""
    name = re.sub(r"[^\w.-]+", "-", "_".join(parts)).strip("-.")
    content = name.encode()
    if len(content) <= LONGEST:
        return name
    digest = "-" + hashlib.sha256(content).hexdigest()[:8]
    return content[: LONGEST - len(digest)].decode(errors="ignore") + digest


def _method_name(name: str, overrides: Sequence[str]) -> str:
    config = configs.load(configs.find(name), overrides)
    method = config.get("method") or name
    return str(method["name"]) if isinstance(method, Mapping) else str(method)


def _override(key: str, value: Any) -> str:
    return f"{key}={configs.flow(value)}"
