"""Finds typing mistakes in a config before TensorFlow is imported.

`schema.json` has the keys of every section and the names of every registry, rendered from the
constructors by tools/render_configuration.py. The full check of `pipelines.spec` comes after it.
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
from pipelines.space import ranges
from pipelines.suite import is_suite, load_suite
from tfrobust.errors import UserError, choose, require

SCHEMA = Path(__file__).with_name("schema.json")
FOLDER = re.compile(r"\w([\w .:-]*[\w.:-])?")
# Keys of `model` beside those of its constructor when it is read from train.init_from.
OF_FILES = {"architecture", "output", "outputs", "signature"}
UNSET = "???"  # a value that the user has to give


@functools.cache
def schema() -> dict[str, Any]:
    """Return the schema.

    keys: section -> its keys, for sections without a constructor to choose; "" is the top level.
    names: section -> name -> the keys that the section may have with this name.
    stages: the stages of a run, and those of a search.
    searched: the sections whose keys a search may have in its space.
    """
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def check(
    name: str, overrides: Sequence[str], workdir: Path, stages: Sequence[str] | None = None
) -> None:
    """Raise the UserError of a config or a suite in which a name or a key is unknown.

    Args:
        name: The config's name or path.
        overrides: `key=value` each, as for `--set`.
        workdir: The folder in which run folders are made.
        stages: The stages that are asked for; None for those of the config.
    """
    path = configs.find(name)
    if not is_suite(path):
        config = _check_config(name, overrides)
        kind = "run" if config.get("search") is None else "search"
        listed = config.get("stages")
        available = listed if isinstance(listed, list) else schema()["stages"][kind]
        for stage in stages or []:
            choose("--stages", stage, [str(name) for name in available])
        return
    require(stages is None, "--stages", "none, for a suite", stages)
    suite = load_suite(path, overrides, workdir)
    # The attacks may refer to the surrogate, which is not trained yet.
    later = ["attacks=[]"] if suite.surrogate is not None else []
    for member in {member.label: member for member in reversed(suite.members)}.values():
        try:
            _check_config(member.config, [*member.overrides, *later])
        except UserError as error:
            raise UserError(f"{member.label}: {error}") from None


def read_config(name: str, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the name of a config's run, and the config with its overrides, resolved.

    Raises:
        UserError: For a config that is not there or is no YAML, and for a name that no folder has.
    """
    path = configs.find(name)
    config = configs.load(path, overrides)
    run_name = path.stem if config.get("name") is None else config["name"]
    if not isinstance(run_name, str):
        raise UserError(f"{path}: name: expected text (put it in quotes), received {run_name!r}")
    if not FOLDER.fullmatch(run_name):
        expected = "a folder's: letters, digits and _ - . : or blanks between them"
        raise UserError(f"{path}: name: expected {expected}, received {run_name!r}")
    return run_name, config


def _check_set(node: Any, key: str = "") -> None:
    """Raise a UserError for the first key of a config whose value the user still has to give."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            _check_set(value, f"{key}.{name}" if key else str(name))
    elif node == UNSET:
        raise UserError(f"{key}: expected a value, received none; --set {key}=VALUE gives one")


@contextlib.contextmanager
def named_source(name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Let a UserError about a key begin with the override that set the key, else with the file."""
    try:
        yield
    except UserError as error:
        key = re.sub(r"\[(\d+)\]", r".\1", str(error).partition(":")[0])  # attacks[0] is in attacks
        source = str(configs.find(name))
        for override in overrides:
            if configs.related(key, override.partition("=")[0]):
                source = f"--set {override}"
        raise UserError(f"{source}: {error}") from error


def check_keys(config: Mapping[str, Any]) -> None:
    """Raise the UserError of the first key or name of a resolved config that is unknown."""
    if config.get("search") is not None:
        _check_search(config)
        return
    config = {key: value for key, value in config.items() if key not in ("name", "command")}
    _check_section("", config)
    threat = config.get("threat")
    for each in threat if isinstance(threat, list) else [threat]:
        _check_section("threat", each)
    data = config.get("data")
    _check_named("data", data)
    if isinstance(data, Mapping):
        _check_named("data.extra", data.get("extra"))
        augment = data.get("augment")
        for place, item in enumerate(augment if isinstance(augment, list) else [augment]):
            where = f"data.augment[{place}]" if isinstance(augment, list) else None
            _check_named("data.augment", item, where)
    _check_train(config.get("train"))
    method = config.get("method")
    _check_named("method", method)
    if isinstance(method, Mapping):
        _check_named("method.attack", method.get("attack"))
    _check_named("optimizer", config.get("optimizer"))
    _check_model(config.get("model"), config.get("train"))
    evaluation = config.get("evaluation")
    _check_section("evaluation", evaluation)
    if isinstance(evaluation, Mapping):
        _check_section("evaluation.corruptions", evaluation.get("corruptions"))
    _check_section("card", config.get("card"))
    attacks = config.get("attacks")
    for place, attack in enumerate(attacks if isinstance(attacks, list) else [attacks]):
        _check_named("attacks", attack, f"attacks[{place}]")


def _check_config(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    config = read_config(name, overrides)[1]
    with named_source(name, overrides):
        check_keys(config)
    _check_set(config)
    return config


def _check_search(config: Mapping[str, Any]) -> None:
    """Check a search, and the config of its first trial, which has the first value of each key."""
    section = configs.changed(config, {})["search"]
    require(isinstance(section, Mapping), "search", "a mapping with 'space'", section)
    _check_section("search", section)
    first = {key: values.values[0] for key, values in ranges(section.get("space")).items()}
    for key in first:
        choose(f"search.space.{key}", key.partition(".")[0], schema()["searched"])
    trial = {key: value for key, value in config.items() if key != "search"}
    try:
        check_keys(configs.changed(trial, first))
    except UserError as error:
        key = str(error).partition(":")[0]
        searched = any(configs.related(key, path) for path in first)
        raise UserError(f"{'search.space.' if searched else ''}{error}") from error


def _check_train(section: Any) -> None:
    _check_section("train", section)
    if isinstance(section, Mapping):
        for key in ("schedule", "validation_attack", "averaging"):
            _check_named(f"train.{key}", section.get(key))


def _check_model(section: Any, train: Any) -> None:
    if not isinstance(section, Mapping):
        _check_named("model", section)
    elif section.get("path") is not None:
        if "name" not in section:
            _check_section("model", section)
    elif isinstance(train, Mapping) and train.get("init_from") is not None:
        _check_named("model", {key: section[key] for key in section if key not in OF_FILES})
    else:
        _check_named("model", section)


def _check_section(where: str, section: Any) -> None:
    """Check the keys of a section. One that is no mapping is left to the full check."""
    if isinstance(section, Mapping):
        _check_section_keys(where, section, schema()["keys"][where])


def _check_named(place: str, section: Any, where: str | None = None) -> None:
    """Check a section that names a constructor, and its keys, which depend on the name.

    Args:
        place: The section's key in the schema.
        section: A name, or a mapping with one. Anything else is left to the full check.
        where: The section in messages, where that is not `place`.
    """
    where = where or place
    section = {"name": section} if isinstance(section, str) else section
    if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
        return
    if section["name"] == UNSET:
        return
    constructors = schema()["names"][place]
    name = choose(f"{where}.name", section["name"], constructors)
    _check_section_keys(where, section, constructors[name])


def _check_section_keys(where: str, section: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in section:
        if key not in keys:
            place = f"{where}.{key}" if where else key
            choose(f"{place}: unknown key", key, keys)
