"""Configs as plain mappings, read from YAML files with includes, references and overrides."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from tfrobust.errors import UserError, nearest, nearest_path
from tfrobust.io import in_home

PACKAGE = Path(__file__).resolve().parent
# The configs lie in an installed package, and beside it in a checkout.
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"

# The errors of OmegaConf and YAML for a value that does not fit its place.
MISFITS = (
    OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, IndexError, RecursionError,
)  # fmt: skip
REFERENCE = re.compile(r"\$\{[^{}:]*\}")
CALL = re.compile(r"\$\{[^{}]*:")  # ${oc.env:HOME}
BITS = 64  # every int in a config has fewer bits
# Numbers that YAML 1.1 reads in base 8, as 010, and in base 60, as 1:30.
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?)")
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# Last parts of the keys whose values are text, even if YAML would read them as a number.
TEXT_KEYS = {
    "budget", "dir", "folder", "init_from", "label", "name", "no_worse_than", "note", "path",
    "source", "text",
}  # fmt: skip
RANGE_KEYS = {"grid", "space"}  # sections in which a value is a list or a range of values
# Last parts of the keys whose value is a name and arguments, or the name alone.
NAMED = {
    "attack", "attacks", "augment", "averaging", "data", "extra", "method", "model", "optimizer",
    "schedule", "track", "validation_attack",
}  # fmt: skip


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes texts such as 1e5, numbers to OmegaConf but not to YAML 1.1."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.[\d_]+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def find(name: str) -> Path:
    """Return the file of a config or a suite: `name` is its path, or a name that comes with us."""
    path = in_home(name)
    if path.suffix.lower() in (".yaml", ".yml"):
        if not path.is_file():
            hint = nearest_path(path) or nearest(path.stem, [*available(), *suites()])
            raise UserError(f"{name}: expected a config file, found none there{hint}")
        return path
    for file in (CONFIGS / f"{name}.yaml", CONFIGS / "suites" / f"{name}.yaml"):
        if file.is_file() and path.name == name:
            return file
    names = [*available(), *suites()]
    candidates = (f"{name}.yaml", f"{name}.yml", str(path / "config.yaml"))  # of a run
    files = [f" (did you mean {file!r}?)" for file in candidates if Path(file).is_file()]
    hint = files[0] if files else nearest(name, names) or f"; there are {', '.join(names)}"
    raise UserError(f"{name}: expected a config's name or the path of a .yaml file{hint}")


def available() -> list[str]:
    """Return the names of the configs that come with the library."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def suites() -> list[str]:
    """Return the names of the suites that come with the library."""
    return sorted(path.stem for path in (CONFIGS / "suites").glob("*.yaml"))


def load(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a config file as a resolved mapping.

    `include: base/file.yaml` names a file whose keys this one completes and replaces. Its path is
    relative to this file or else to the configs of the library. `${threat.eps}` refers to another
    key. References in a search stay unresolved, because its trials change the keys behind them. The
    figures of a paper are left out where an including file or an override sets other data, another
    threat or another method than those that they are about.

    Args:
        path: The file.
        overrides: `key.path=value` each, as for `--set`.

    Raises:
        UserError: If a file cannot be read, or an override or a reference does not fit.
    """
    try:
        config = _merged(path)
        claim = _claim(config)
        for override in overrides:
            _override(config, override)
        if not any(re.match(r"paper\b", override) for override in overrides):
            _drop_paper(config, claim)
        resolved = _resolved(config)
    except (OmegaConfBaseException, RecursionError) as error:
        unknown = isinstance(error, InterpolationKeyError)
        hint = r" (for the characters themselves write \${)" if unknown else ""
        raise UserError(f"{path}: {_first_line(error)}{hint}") from None
    searches = config.get("search") is not None
    return OmegaConf.to_container(config) if searches else resolved  # type: ignore[return-value]


def keys(path: Path) -> set[str]:
    """Return the top-level keys of a config file and of the files that it includes."""
    return {str(key) for key in _merged(path)}


def changed(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resolved config in which some keys have new values, as `--set` gives them."""
    new = OmegaConf.create(dict(config))
    for key, value in values.items():
        try:
            _put(new, key, value)
        except MISFITS as error:
            raise UserError(f"{key}: expected a key of the config: {_first_line(error)}") from None
    try:
        return _resolved(new)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from None


def _resolved(config: DictConfig) -> dict[str, Any]:
    """Return the mapping with its references to keys resolved.

    A config is data: it may not call OmegaConf's resolvers, which can read the environment.
    """
    _check(OmegaConf.to_container(config))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _check(node: Any, key: str = "") -> None:
    """Raise a UserError for the first value that calls a resolver or is an int of too many bits."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            _check(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, str):
        text = node
        while REFERENCE.search(text):  # the innermost of nested references goes first
            text = REFERENCE.sub("", text)
        if CALL.search(text):
            expected = "references to keys, such as ${threat.eps}"
            raise UserError(f"{key}: expected {expected}, received {node!r}")
    elif isinstance(node, int) and node.bit_length() >= BITS:
        raise UserError(f"{key}: expected an int of at most {BITS} bits, received a longer one")


def related(key: str, other: str) -> bool:
    """Return whether one of two keys is the other or lies below it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def dump(config: dict[str, Any]) -> str:
    """Return a mapping as YAML; its keys keep their order."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flow(value: Any) -> str:
    """Return a value as the text that sets it in an override; None gives the empty text."""
    if value is None:
        return ""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=math.inf
    )
    return text.removesuffix("...\n").strip()


def read(path: Path) -> dict[str, Any]:
    """Return the config in the file of a run folder. Raises a UserError if it is damaged."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, *MISFITS) as error:
        raise UserError(f"{path}: {_first_line(error)}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a mapping, received {type(config).__name__}")
    return config


def _merged(path: Path, above: tuple[Path, ...] = ()) -> DictConfig:
    """Return a file merged with those that it includes; the files `above` include it."""
    path = path.resolve()
    if path in above:
        raise UserError(f"{path}: include: expected a file that does not include itself")
    try:
        text = path.read_text(encoding="utf-8")
        _check_nodes(text)
        # References stay as they are written until all files are merged.
        config = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except (OSError, *MISFITS) as error:
        raise UserError(f"{path}: expected YAML in UTF-8: {_first_line(error)}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a mapping at the top, received a list")
    base = config.pop("include", None)
    if base is None:
        return OmegaConf.create(config)
    if not isinstance(base, str):
        raise UserError(f"{path}: include: expected a path, received {base!r}")
    beside = path.parent / in_home(base)
    file = beside if beside.is_file() else CONFIGS / base
    if not file.is_file():
        shipped = [str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml")]
        expected = "a file beside this one, or one that comes with the library"
        hint = nearest_path(beside) or nearest(base, shipped)
        raise UserError(f"{path}: include: expected {expected}, received {base}{hint}")
    included = _merged(file, (*above, path))
    below = OmegaConf.to_container(included, resolve=False)
    _drop_replaced(below, config)
    try:
        merged = OmegaConf.merge(below, config)
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from None
    if "paper" not in config:
        _drop_paper(merged, _claim(included))
    return merged  # type: ignore[return-value]


def _claim(config: DictConfig) -> tuple[Any, ...]:
    """Return what the figures of a paper are about: the data, the threat and the method."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    sections = [plain.get(key) for key in ("data", "method")]
    names = (each.get("name") if isinstance(each, dict) else each for each in sections)
    return (*names, plain.get("threat"))


def _drop_paper(config: Any, claim: tuple[Any, ...]) -> None:
    """Drop the figures of a paper unless they are about this config; `claim` is theirs."""
    if _claim(config) != claim:
        config.pop("paper", None)


def _drop_replaced(below: Any, above: dict[Any, Any]) -> None:
    """Drop the sections of `below` that `above` replaces by another constructor or a list.

    A name alone becomes a section with this name where the other file has a section.
    """
    for key in above:
        if key in NAMED and {type(above[key]), type(below.get(key))} == {str, dict}:
            for config in (above, below):
                value = config[key]
                config[key] = {"name": value} if isinstance(value, str) else value
        new, old = above[key], below.get(key)
        if {type(new), type(old)} == {list, dict}:  # such as a list of threats for one threat
            del below[key]
        elif isinstance(new, dict) and isinstance(old, dict):
            named = "name" in new and "name" in old
            if named and new["name"] != old["name"]:
                del below[key]
            else:
                _drop_replaced(old, new)


def _override(config: DictConfig, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set: expected key=value, received {override!r}")
    try:
        _put(config, key, _parse(key, text))
    except MISFITS as error:
        raise UserError(f"--set {override}: {_first_line(error)}") from None


def _put(config: DictConfig, key: str, value: Any) -> None:
    """Set a key; a name alone above it becomes the section with this name, as between files.

    One section is the first item where the key is one of its list, as in attacks[0].steps.
    """
    parts = key.split(".")
    for place, part in enumerate(parts):
        above, name = ".".join(parts[:place]), part.removesuffix("[0]")
        node = OmegaConf.select(config, above) if above else config
        if isinstance(node, str) and re.sub(r"\[\d+\]$", "", parts[place - 1]) in NAMED:
            OmegaConf.update(config, above, {"name": node}, merge=False)
        elif isinstance(node, ListConfig) and not part.isdecimal():
            raise ValueError(f"{above} is a list, of which {above}[0].{part} is in the first item")
        single = ".".join(filter(None, (above, name)))
        item = OmegaConf.select(config, single) if name != part else None
        if isinstance(item, str | DictConfig):
            OmegaConf.update(config, single, [item], merge=False)
    OmegaConf.update(config, key, value, merge=False, force_add=True)


def _parse(key: str, text: str) -> Any:
    """Return the value of an override.

    An empty text is None. The value of a key in TEXT_KEYS is the text as it was typed, without
    quotes around it. Any other text is read as YAML, in which 1e-3 is a number, as in the files.
    """
    if not text:
        return None
    *above, last = re.split(r"[.\[\]]+", key.rstrip("]"))
    is_text = last in TEXT_KEYS and not RANGE_KEYS & set(above)
    if is_text and text[0] not in "'\"":
        return text
    try:
        _check_nodes(f"value: {text}")
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"]  # type: ignore[index, call-overload]
    except MISFITS:
        if not is_text:
            raise
        return text
    return text if is_text and not isinstance(value, str) else value


def _check_nodes(text: str) -> None:
    """Raise a YAMLError for a number in a text that YAML 1.1 reads in base 8 or 60, and for a key
    that comes twice; OmegaConf lets numbers come twice."""
    loader = yaml.SafeLoader(text)
    try:
        nodes, seen = [loader.get_single_node()], set()
    finally:
        loader.dispose()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            numbers: set[str] = set()
            for key, _ in node.value:
                if key.tag in NUMBERS and key.value in numbers:
                    line = f"found duplicate key {key.value}"
                    raise yaml.MarkedYAMLError(problem=line, problem_mark=key.start_mark)
                numbers |= {key.value} if key.tag in NUMBERS else set()
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif node is not None and node.tag in NUMBERS and OTHER_BASE.fullmatch(node.value):
            hint = f"YAML 1.1 reads it as {yaml.safe_load(node.value)}; put a text in quotes"
            line = f"expected a number in base 10, received {node.value} ({hint})"
            raise yaml.MarkedYAMLError(problem=line, problem_mark=node.start_mark)


def _first_line(error: BaseException) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        line = error.problem_mark.line if error.problem_mark else 0
        context = f"{error.context} " if error.problem.startswith("but ") else ""
        return (f"line {line + 1}: " if line else "") + context + error.problem
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
