"""The check of the arguments by which networks are built."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import keras

from tfrobust.errors import is_int, number, require, require_at_least, require_bool
from tfrobust.registry import parameters

P = ParamSpec("P")


def checked(build: Callable[P, keras.Model]) -> Callable[P, keras.Model]:
    """Let a function that builds a network check its arguments by their annotations.

    Sizes, which are ints, are at least 1, flags True or False, and numbers finite. The function
    gets Python's own types in place of NumPy's, and lists in place of other sequences. It checks
    names, and all that is particular to an argument, itself.

    Raises:
        UserError: An argument is of another type.
    """
    annotations = {name: each.annotation for name, each in parameters(build).items()}
    signature = inspect.signature(build)

    @functools.wraps(build)
    def with_checked(*args: P.args, **kwargs: P.kwargs) -> keras.Model:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            bound.arguments[name] = _checked(name, value, annotations[name])
        return build(*bound.args, **bound.kwargs)

    return with_checked


def require_known(image_shape: tuple[int | None, ...]) -> None:
    """Raise a UserError if the shape of an input has sizes that are not known."""
    require(None not in image_shape, "image_shape", "a known size of the inputs", image_shape)


def _checked(name: str, value: Any, annotation: Any) -> Any:
    """Return the value of an argument in the type of its annotation."""
    if annotation is int:
        return _size(name, value)
    if annotation is bool:
        require_bool(**{name: value})
    elif annotation == tuple[int, ...]:
        return _shape(name, value)
    elif annotation == list[int] | None and value is not None:
        items = _items(name, value, "ints >= 1")
        require(items, name, "a list of ints >= 1", value)
        return [_size(f"{name}[{place}]", item) for place, item in enumerate(items)]
    elif annotation == list[float] | None and value is not None:
        items = _items(name, value, "numbers")
        return [number(f"{name}[{place}]", item) for place, item in enumerate(items)]
    return value


def _size(name: str, value: Any) -> int:
    require_at_least(1, **{name: value})
    return int(value)


def _items(name: str, value: Any, kind: str) -> list[Any]:
    """Return the items of a list, a tuple or an array with one axis."""
    fits = isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1
    require(fits, name, f"a list of {kind}", value)
    return list(value)


def _shape(name: str, value: Any) -> tuple[int | None, ...]:
    """Return the shape of an input, in which all sizes but the last may be None, for any size."""
    try:
        sizes = list(value)
    except (TypeError, ValueError):  # no sequence, or a TensorShape of unknown length
        sizes = []
    known = [is_int(size) and size >= 1 for size in sizes]
    fits = known and known[-1] and all(k or s is None for k, s in zip(known, sizes, strict=True))
    require(fits, name, "sizes >= 1, such as (H, W, C), (T, C) or (F,)", value)
    return tuple(None if size is None else int(size) for size in sizes)
