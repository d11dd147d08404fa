"""Objects from names and mappings, for which the constructor's signature is the schema.

`resolve({"PGD": PGD}, {"name": "PGD", "steps": 10}, "attack")` checks names and types against the
constructor and returns a `functools.partial`. Every error is one line with the place, what was
expected, what came, and the nearest valid name.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

import pydantic

from tfrobust.errors import FRACTION, UserError, choose, exhausted, number, one_line, require

T = TypeVar("T")
STRICT = pydantic.ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False)


def by_file(kind: type[T], names: Mapping[str, Any]) -> dict[str, type[T]]:
    """Return the registry of a package: its classes of a kind, each under the name of its file.

    Args:
        kind: The base class of the classes, which is not in the registry itself.
        names: The names that the package imports, such as `globals()`.
    """
    classes = [name for name in names.values() if inspect.isclass(name) and issubclass(name, kind)]
    return {cls.__module__.rpartition(".")[2]: cls for cls in classes if cls is not kind}


def parameters(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword parameters of a constructor by name.

    A class that takes **kwargs has the parameters of its base class too.
    """
    if not inspect.isclass(constructor):
        return dict(inspect.signature(constructor, eval_str=True).parameters)
    keywords: dict[str, inspect.Parameter] = {}
    for base in constructor.__mro__:
        if "__init__" not in vars(base):
            continue
        signature = inspect.signature(vars(base)["__init__"], eval_str=True)
        _, *parameters_of_base = signature.parameters.values()
        for p in parameters_of_base:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                keywords.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters_of_base):
            break
    return keywords


def arguments(
    constructor: Callable[..., Any],
    values: Mapping[str, Any],
    where: str,
    filled: Collection[str] = (),
    also: Collection[str] = (),
) -> dict[str, Any]:
    """Check values against the names and types of a constructor's parameters.

    Args:
        constructor: A class or a function.
        values: Parameter -> value.
        where: The place of the values in a config, for errors.
        filled: Parameters that the caller sets, so that `values` may not.
        also: Further keys that are valid in this place, for the error about an unknown key.

    Returns:
        Parameter -> converted value.

    Raises:
        UserError: A name is unknown, a type is wrong, or a value is missing.
    """
    dot = f"{where}." if where else ""
    accepted = {k: p for k, p in parameters(constructor).items() if k not in filled}
    checked = {}
    for key, value in values.items():
        if key not in accepted:
            choose(f"{dot}{key}: unknown key", key, [*accepted, *also])
        checked[key] = convert(f"{dot}{key}", value, accepted[key].annotation)
    missing = [k for k, p in accepted.items() if p.default is p.empty and k not in checked]
    require(not missing, where or "config", f"a value for {', '.join(missing)}", dict(values))
    return checked


def resolve(
    registry: Mapping[str, Callable[..., T]],
    spec: str | Mapping[str, Any],
    where: str,
    filled: Collection[str] = (),
    also: Collection[str] = (),
) -> partial[T]:
    """Return the constructor that a spec names, with its checked arguments bound.

    Args:
        registry: Name -> constructor.
        spec: A name, or a mapping with "name" and keyword arguments.
        where, filled, also: As for `arguments`.
    """
    spec = {"name": spec} if isinstance(spec, str) else spec
    require(isinstance(spec, Mapping), where, "a name or a mapping with 'name'", spec)
    require("name" in spec, where, "a mapping with 'name'", dict(spec))
    constructor = registry[choose(f"{where}.name", spec["name"], list(registry))]
    values = {key: value for key, value in spec.items() if key != "name"}
    return partial(constructor, **arguments(constructor, values, where, filled, ("name", *also)))


def build(
    registry: Mapping[str, Callable[..., T]],
    spec: str | Mapping[str, Any],
    where: str,
    also: Collection[str] = (),
) -> T:
    """Build the object that a spec names. Errors of the constructor begin with the place."""
    return located(where, resolve(registry, spec, where, also=also))


def located(where: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function; its ValueError becomes a UserError that begins with the place `where`."""
    try:
        return function(*args, **kwargs)
    except UserError as error:
        raise UserError(f"{where}.{error}") from error
    except ValueError as error:
        raise UserError(f"{where}: {one_line(error, 300)}") from error
    except Exception as error:
        if exhausted(error):
            raise UserError(f"{where}: expected sizes that fit into memory") from None
        raise


def convert(where: str, value: Any, annotation: Any) -> Any:
    """Return a value that is checked against a type annotation.

    A fraction such as "8/255" becomes a float, and a list a tuple, where the annotation asks for
    one. Nothing else is converted. Raises UserError for a value of another type.
    """
    if annotation is inspect.Parameter.empty or annotation is Any:
        return value
    accepts = {annotation, *typing.get_args(annotation)}
    if float in accepts and isinstance(value, str) and FRACTION.fullmatch(value):
        return number(where, value)
    try:
        adapter = pydantic.TypeAdapter(annotation, config=STRICT)
        if isinstance(value, list) and tuple in {typing.get_origin(a) for a in accepts}:
            value = tuple(value)
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        expected = re.sub(r"^Input should be ", "", error.errors()[0]["msg"])
        raise UserError(f"{where}: expected {expected}, received {value!r}") from None
