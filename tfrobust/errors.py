"""Errors for users, one line each, and the checks that raise them.

This module imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import math
import numbers
import os
import re
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from tfrobust.io import in_home

FRACTION = re.compile(r"\s*[+-]?\d{1,18}(\.\d{1,18})?\s*/\s*\d{1,18}(\.\d{1,18})?\s*")


class UserError(ValueError):
    """A mistake of the user. The message is one line: line breaks become spaces."""

    def __init__(self, text: str):
        super().__init__(" ".join(text.splitlines()))


class OutOfMemory(UserError):
    """A lack of memory in TensorFlow."""


def require(ok: Any, argument: str, expected: str, received: object) -> None:
    """Raise a UserError unless a condition holds.

    Args:
        ok: The condition.
        argument: The name of the argument that is checked, such as "eps".
        expected: The valid values, such as "a number >= 0".
        received: The value that came.
    """
    if not ok:
        raise UserError(f"{argument}: expected {expected}, received {received!r}")


def is_int(value: Any) -> bool:
    """Return whether a value is an integer of any kind, such as NumPy's, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def require_at_least(minimum: int, **integers: Any) -> None:
    """Raise a UserError for the first argument that is not an integer >= minimum."""
    for argument, value in integers.items():
        fits = is_int(value) and int(value) >= minimum
        require(fits, argument, f"int >= {minimum}", value)


def require_bool(**flags: Any) -> None:
    """Raise a UserError for the first argument that is neither True nor False."""
    for argument, value in flags.items():
        require(isinstance(value, bool), argument, "True or False", value)


def require_seed(seed: Any) -> int:
    """Return a seed as an int. Raises a UserError unless it is an integer of 64 bits."""
    fits = is_int(seed) and -(2**63) <= int(seed) < 2**63
    require(fits, "seed", "int of at most 64 bits", seed)
    return int(seed)


def path_text(argument: str, value: Any) -> str:
    """Return a path as text. Raises a UserError unless it is text or a pathlib.Path."""
    require(isinstance(value, str | Path), argument, "a path", value)
    return str(value)


def user_path(argument: str, value: Any) -> Path:
    """Return a path with the user's home in place of "~".

    Raises a UserError unless it is text or a pathlib.Path, and for the home of an unknown user.
    """
    path = in_home(path_text(argument, value))
    known = not str(path).startswith("~")
    require(known, argument, "a path in the home of a known user", str(value))
    return path


def one_line(error: object, length: int | None = 200) -> str:
    """Return an error's message in one line, cut to `length`; its type if it has no message."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def optional(module: str, extra: str) -> Any:
    """Import a module of a package that an extra of tfrobust installs.

    Raises UserError, with the command that installs it, if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package, line = module.partition(".")[0], one_line(error)
        raise UserError(
            f"{package}: expected it installed: pip install 'tfrobust[{extra}]' ({line})"
        ) from None


def exhausted(error: Exception) -> bool:
    """Return whether TensorFlow ran out of memory.

    The error is recognised by its name, as this module does not import TensorFlow.
    """
    return type(error).__name__ == "ResourceExhaustedError"


@contextlib.contextmanager
def in_memory(argument: str, batch_size: int) -> Iterator[None]:
    """Return a context in which running out of memory is an OutOfMemory with the batch size."""
    try:
        yield
    except Exception as error:
        if not exhausted(error):
            raise
        if "No space left" in str(error):  # TensorFlow raises the same error for a full disk
            raise OSError(errno.ENOSPC, "No space left on device") from None
        line = f"expected batches that fit into memory, received {batch_size}; lower it"
        raise OutOfMemory(f"{argument}: {line}") from None


def choose(argument: str, value: Any, options: Collection[str]) -> Any:
    """Return the value if it is one of the options, else raise a UserError with the nearest one."""
    if not isinstance(value, str) or value not in options:
        names = ", ".join(sorted(set(options)))
        hint = nearest(str(value), options)
        raise UserError(f"{argument}: expected one of {names}, received {value!r}{hint}")
    return value


def nearest(name: str, options: Collection[str]) -> str:
    """Return " (did you mean 'OPTION'?)" for the option nearest to a name; "" if none is near.

    Capitals count for little: 'PGD' is near to 'pgd'.
    """
    lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(name.lower(), list(lower), n=1)
    return f" (did you mean {lower[near[0]]!r}?)" if near else ""


def nearest_path(path: str | Path) -> str:
    """Return the hint of `nearest` for a path that does not exist, by the names beside it."""
    path = in_home(path)
    try:
        return nearest(path.name, set(os.listdir(path.parent)) - {path.name})
    except OSError:
        return ""


def number(
    argument: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return a finite number, or a fraction such as "8/255", as a float.

    Args:
        argument: The name of the argument, for errors.
        value: The number.
        at_least, above: The least number that is valid, or the greatest below all valid ones.
        at_most, below: Likewise at the other end.

    Raises:
        UserError: If the value is no such number.
    """
    received = value
    if isinstance(value, str) and FRACTION.fullmatch(value):
        numerator, denominator = (Fraction(part.strip()) for part in value.split("/"))
        require(denominator != 0, argument, "a fraction with a denominator other than 0", value)
        value = float(numerator / denominator)
    try:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        value = float(value) if is_number else math.nan
    except OverflowError:  # an int of more than 308 digits
        value = received = math.inf
    require(math.isfinite(value), argument, "a number or a fraction such as 8/255", received)
    inside = at_least <= value <= at_most and above < value < below
    low, high = max(at_least, above), min(at_most, below)
    if high == math.inf:
        expected = f"a number {'>' if low == above else '>='} {low:g}"
    else:
        expected = f"a number in {'(' if low == above else '['}{low:g}, {high:g}"
        expected += ")" if high == below else "]"
    require(inside, argument, expected, received)
    return value
