"""Typing mistakes in a config, answered before TensorFlow is imported.

`schema.json` has the keys of every section and the names of every registry. It is rendered from the
constructors by tools/render_configuration.py. `pipelines.spec` then makes the full check.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import config as configs
from pipelines.space import ranges, searching
from pipelines.suite import LONGEST, is_suite, load_suite
from tfrobust.errors import UserError, choose, require

SCHEMA = Path(__file__).with_name("schema.json")
FOLDER = re.compile(r"\w([\w .:-]*[\w.:-])?")
# Keys of `model` that belong to no constructor but to the file of train.init_from.
FILE_KEYS = {"architecture", "output", "outputs", "signature"}
UNSET = "???"  # a value that the user has to give


@functools.cache
def schema() -> dict[str, Any]:
    """Return the schema.

    keys: section -> its keys, for sections that choose no constructor; "" is the top level.
    names: section -> name -> the keys that the section may have with this name.
    stages: "run" -> the stages of a run, "search" -> those of a search.
    searched: the sections whose keys may be in the space of a search.
    """
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def check(
    name: str, overrides: Sequence[str], workdir: Path, stages: Sequence[str] | None = None
) -> None:
    """Raise a UserError if a name or a key of a config or a suite is unknown.

    Args:
        name: The config's name or path.
        overrides: `key=value` each, as for `--set`.
        workdir: The folder in which run folders are made.
        stages: The stages to run; None for those of the config.
    """
    require(stages is None or stages, "--stages", "at least one stage", stages)
    path = configs.find(name)
    if not is_suite(path):
        config = _check_config(name, overrides)
        kind = "run" if config.get("search") is None else "search"
        available = config.get("stages")
        if not available or not isinstance(available, list):
            available = schema()["stages"][kind]
        for stage in stages or []:
            choose("--stages", stage, [str(name) for name in available])
        return
    require(stages is None, "--stages", "none, for a suite", stages)
    suite = load_suite(path, overrides, workdir)
    # The attacks may refer to the surrogate, which is not trained yet.
    without_attacks = ["attacks=[]"] if suite.surrogate is not None else []
    for member in suite.first_of_labels():
        try:
            _check_config(member.config, [*member.overrides, *without_attacks])
        except UserError as error:
            raise UserError(f"{member.label}: {error}") from None


def read_config(name: str, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the name of a config's run, and the config with its overrides, resolved.

    Raises:
        UserError: If the config does not exist or is no YAML, or if no folder can have its name.
    """
    path = configs.find(name)
    config = configs.load(path, overrides)
    run_name = path.stem if config.get("name") is None else config["name"]
    if not isinstance(run_name, str):
        raise UserError(f"{path}: name: expected text (put it in quotes), received {run_name!r}")
    if not FOLDER.fullmatch(run_name) or len(run_name.encode()) > LONGEST:
        expected = "a folder's: letters, digits and _ - . : or blanks between them, of at most "
        expected += f"{LONGEST} bytes"
        raise UserError(f"{path}: name: expected {expected}, received {run_name!r}")
    return run_name, config


def _check_set(node: Any, key: str = "") -> None:
    """Raise a UserError for the first key of a config that still needs a value from the user."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            _check_set(value, f"{key}.{name}" if key else str(name))
    elif node == UNSET:
        raise UserError(f"{key}: expected a value, received none; --set {key}=VALUE gives one")


@contextlib.contextmanager
def named_source(name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Prefix a UserError about a key with the override that set the key, or else with the file."""
    try:
        yield
    except UserError as error:
        key = re.sub(r"\[(\d+)\]", r".\1", str(error).partition(":")[0])  # attacks[0] is in attacks
        # A single attack or threat may be given without a list: attacks.name is attacks.0.name.
        keys = (key, re.sub(r"\.0(?=\.|$)", "", key))
        source = str(configs.find(name))
        for override in overrides:
            if any(configs.related(each, override.partition("=")[0]) for each in keys):
                source = f"--set {override}"
        raise UserError(f"{source}: {error}") from error


def check_keys(config: Mapping[str, Any]) -> None:
    """Raise a UserError for the first key or name of a resolved config that is unknown."""
    if config.get("search") is not None:
        _check_search(config)
        return
    config = {key: value for key, value in config.items() if key not in ("name", "command")}
    if "attacks" in config and not isinstance(config["attacks"], list):
        config["attacks"] = [config["attacks"]]
    _check_section("", config)
    plain = ("threat", "train", "evaluation", "evaluation.corruptions", "card", "require", "export")
    for place in plain:
        for _, section in _sections(config, place):
            _check_section(place, section)
    for place in schema()["names"]:
        if place != "model":
            for where, section in _sections(config, place):
                _check_named(place, section, where)
    _check_model(config.get("model"), config.get("train"))


def _sections(config: Mapping[str, Any], place: str) -> list[tuple[str, Any]]:
    """Return the section at a place of the config, such as "train.schedule", under its place.

    A list has several sections, with places such as "attacks[0]". A missing section is None.
    """
    value: Any = config
    for key in place.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, list):
        return [(f"{place}[{number}]", section) for number, section in enumerate(value)]
    return [(place, value)]


def _check_config(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    config = read_config(name, overrides)[1]
    with named_source(name, overrides):
        check_keys(config)
    _check_set(config)
    if config.get("search") is not None:
        searched = ranges(configs.changed(config, {})["search"].get("space"))
        for override in overrides:
            if (key := override.partition("=")[0]) in searched:
                hint = f"--set search.space.{key}=null takes it out of the search"
                raise UserError(f"--set {override}: expected a key that is not searched; {hint}")
    return config


def _check_search(config: Mapping[str, Any]) -> None:
    """Check a search, and the config of a trial that has the first value of each searched key."""
    section = configs.changed(config, {})["search"]
    require(isinstance(section, Mapping), "search", "a mapping with 'space'", section)
    _check_section("search", section)
    first = {key: values.values[0] for key, values in ranges(section.get("space")).items()}
    for key in first:
        choose(f"search.space.{key}", key.partition(".")[0], schema()["searched"])
    trial = {key: value for key, value in config.items() if key != "search"}
    with searching(first):
        check_keys(configs.changed(trial, first))


def _check_model(section: Any, train: Any) -> None:
    if not isinstance(section, Mapping):
        _check_named("model", section, "model")
    elif section.get("path") is not None:
        if "name" not in section:
            _check_section("model", section)
    else:
        if isinstance(train, Mapping) and train.get("init_from") is not None:
            section = {key: section[key] for key in section if key not in FILE_KEYS}
        _check_named("model", section, "model")


def _check_section(where: str, section: Any) -> None:
    """Check the keys of a section, and leave anything but a mapping to the full check."""
    if isinstance(section, Mapping):
        _check_section_keys(where, section, schema()["keys"][where])


def _check_named(place: str, section: Any, where: str) -> None:
    """Check the name of a constructor in a section, and the keys that the name allows.

    Args:
        place: The section's key in the schema, such as "attacks".
        section: A name, or a mapping with one. Anything else is left to the full check.
        where: The section's place in messages, such as "attacks[0]".
    """
    section = {"name": section} if isinstance(section, str) else section
    name = section.get("name") if isinstance(section, Mapping) else None
    if not isinstance(name, str) or name == UNSET:
        return
    constructors = schema()["names"][place]
    choose(f"{where}.name", name, constructors)
    _check_section_keys(where, section, constructors[name])


def _check_section_keys(where: str, section: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in section:
        if key not in keys:
            place = f"{where}.{key}" if where else key
            choose(f"{place}: unknown key", key, keys)
