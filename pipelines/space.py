"""The space of a search: the range of values of each searched key."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipelines.config import related
from tfrobust.errors import UserError, choose, is_int, number, require
from tfrobust.registry import located

KINDS = ("choice", "int", "linear", "log")
SUCH = "a range such as {log: [1e-6, 1e-3]}, {linear: [0, 10]}, {int: [1, 4]} or {choice: [a, b]}"


@dataclasses.dataclass(frozen=True)
class Range:
    """The values of one searched key.

    These are the items of a choice, or the numbers from one end to the other, both included, drawn
    uniformly (int, linear) or with a uniform logarithm (log).
    """

    kind: str
    values: list[Any]

    def __post_init__(self) -> None:
        received, ends = self.values, self.values
        is_list = isinstance(received, list)
        if self.kind == "choice":
            distinct = is_list and received and len(set(self.drawn)) == len(received)
            require(distinct, self.kind, "a list of values that differ", received)
            return
        expected = "two rising ints" if self.kind == "int" else "two rising numbers"
        expected += " > 0" if self.kind == "log" else ""
        require(is_list and len(received) == 2, self.kind, expected, received)
        if self.kind == "int":
            require(all(map(is_int, ends)), self.kind, expected, received)
        else:
            ends = [number(self.kind, end) for end in ends]
            object.__setattr__(self, "values", ends)
        rising = ends[0] < ends[1] and (self.kind != "log" or ends[0] > 0)
        require(rising, self.kind, expected, received)

    @property
    def plain(self) -> dict[str, list[Any]]:
        """The range as it stands in a config."""
        return {self.kind: self.values}

    @property
    def drawn(self) -> list[str]:
        """The values of a choice as JSON, because KerasTuner draws text and numbers only."""
        return [json.dumps(value, default=str) for value in self.values]

    def value(self, drawn: Any) -> Any:
        """Return a drawn value for the config; floats get four digits, which YAML keeps exactly."""
        if self.kind == "choice":
            return json.loads(drawn)
        if self.kind == "int":
            return int(drawn)
        low, high = self.values
        return min(max(float(f"{drawn:.4g}"), low), high)


def ranges(space: Any) -> dict[str, Range]:
    """Return the path of each searched key, and its range.

    Args:
        space: `{method.alpha: {log: [...]}}`, or nested as from `--set`: `{method: {alpha: {log:
            [...]}}}`. A later range of a key replaces an earlier one, and null removes the key.
    """
    by_key: dict[str, Range] = {}
    if isinstance(space, Mapping):
        for path, leaf in _leaves(space, ""):
            if leaf is None:
                by_key.pop(path, None)
            else:
                by_key[path] = located(f"search.space.{path}", Range, *leaf)
    require(by_key, "search.space", f"a mapping of keys of the config, each {SUCH}", space)
    return by_key


@contextlib.contextmanager
def searching(keys: Collection[str]) -> Iterator[None]:
    """Prefix a UserError about one of the searched keys with "search.space."."""
    try:
        yield
    except UserError as error:
        key = str(error).partition(":")[0]
        searched = any(related(key, other) for other in keys)
        raise UserError(f"{'search.space.' if searched else ''}{error}") from error


def _leaves(
    node: Mapping[str, Any], above: str
) -> Iterator[tuple[str, tuple[str, list[Any]] | None]]:
    """Yield the path of every key below `node`, with its (kind, values) or None."""
    for key, value in node.items():
        path = f"{above}.{key}" if above else str(key)
        nested = isinstance(value, Mapping) and bool(value)
        if value is None:
            yield path, None
        elif nested and len(value) == 1 and next(iter(value)) in KINDS:
            yield path, next(iter(value.items()))
        elif nested:
            yield from _leaves(value, path)
        else:
            if isinstance(value, list) and above:  # the key is a misspelt kind
                choose(f"search.space.{above}", str(key), KINDS)
            require(False, f"search.space.{path}", SUCH, value)
