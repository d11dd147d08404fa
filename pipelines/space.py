"""The space of a search: the values that each key of a config may take."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tfrobust.errors import choose, number, require
from tfrobust.registry import located

KINDS = ("choice", "int", "linear", "log")
SUCH = "a range such as {log: [1e-6, 1e-3]}, {linear: [0, 10]}, {int: [1, 4]} or {choice: [a, b]}"


@dataclasses.dataclass(frozen=True)
class Range:
    """The values of one key: one of a choice, or the numbers between two ends, both included,
    evenly (int, linear) or evenly in their logarithm (log)."""

    kind: str
    values: list[Any]

    def __post_init__(self) -> None:
        received, ends = self.values, self.values
        if self.kind == "choice":
            listed = isinstance(received, list) and bool(received)
            differ = listed and len(set(self.drawn)) == len(received)
            require(differ, self.kind, "a list of values that differ", received)
            return
        expected = "two rising ints" if self.kind == "int" else "two rising numbers"
        expected += " > 0" if self.kind == "log" else ""
        require(isinstance(received, list) and len(received) == 2, self.kind, expected, received)
        if self.kind == "int":
            whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
            require(whole, self.kind, expected, received)
        else:
            ends = [number(self.kind, end) for end in ends]
            object.__setattr__(self, "values", ends)
        rising = ends[0] < ends[1] and (self.kind != "log" or ends[0] > 0)
        require(rising, self.kind, expected, received)

    @property
    def plain(self) -> dict[str, list[Any]]:
        """As a config has it."""
        return {self.kind: self.values}

    @property
    def drawn(self) -> list[str]:
        """The values of a choice as KerasTuner draws them: as text, of whatever type they are."""
        return [json.dumps(value, default=str) for value in self.values]

    def value(self, drawn: Any) -> Any:
        """What a config gets: a number of four digits, which is read and written without loss."""
        if self.kind == "choice":
            return json.loads(drawn)
        if self.kind == "int":
            return int(drawn)
        low, high = self.values
        return min(max(float(f"{drawn:.4g}"), low), high)


def ranges(space: Any) -> dict[str, Range]:
    """The range of each key by its path, from `{method.alpha: {log: [...]}}` or the same nested,
    `{method: {alpha: {log: [...]}}}`, as `--set` gives it; the last of two for one key counts, and
    null takes the key out."""
    found: dict[str, Range] = {}
    mapping = isinstance(space, Mapping)
    for path, leaf in _leaves(space, "") if mapping else ():
        if leaf is None:
            found.pop(path, None)
        else:
            found[path] = located(f"search.space.{path}", Range, *leaf)
    require(found, "search.space", f"a mapping of keys of the config, each {SUCH}", space)
    return found


def _leaves(
    node: Mapping[str, Any], above: str
) -> Iterator[tuple[str, tuple[str, list[Any]] | None]]:
    """(path, (kind, values) or None) of every key below."""
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
            if isinstance(value, list) and above:  # what a kind has: it is misspelt
                choose(f"search.space.{above}", str(key), KINDS)
            require(False, f"search.space.{path}", SUCH, value)
