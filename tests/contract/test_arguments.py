"""The contract of constructors: an argument of a wrong type is refused in a line that names it."""

from __future__ import annotations

import inspect
import math
import re
import typing
from collections.abc import Mapping
from typing import Any

import keras
import pytest

from tests.errors import error_line
from tfrobust import PGD, Threat
from tfrobust.attacks import ATTACKS
from tfrobust.data import DATASETS
from tfrobust.methods import METHODS, RobustModel
from tfrobust.methods.averaging import AVERAGINGS
from tfrobust.registry import parameters
from tfrobust.training.schedules import SCHEDULES

WRONG: dict[type, list[Any]] = {
    float: ["much", None, [1.0], math.nan, True],
    int: ["3", None, 1.5, [1], True],
    bool: ["no", None, 1],
}
NEEDED: dict[str, dict[str, Any]] = {
    "bpda": {"attack": PGD(), "layers": ["last"]},
    "eot": {"attack": PGD()},
    "piecewise": {"epochs": [1]},
    "saved_images": {"path": "images.npz"},
    "transfer": {"source": "surrogate.keras"},
}


POSITIONAL = {**ATTACKS, **SCHEDULES, **AVERAGINGS, **DATASETS}


@pytest.mark.parametrize("name", POSITIONAL)
def test_positional_arguments_have_the_order_of_the_docstring(name: str) -> None:
    """Ema(5) was start_epoch=5, where the docstring begins with decay, and PGD(20) was a loss."""
    constructor: Any = POSITIONAL[name]
    described = re.findall(r"^    (\w+): ", inspect.getdoc(constructor) or "", re.MULTILINE)
    given = inspect.signature(constructor).parameters.values()
    order = [p.name for p in given if p.kind is p.POSITIONAL_OR_KEYWORD and p.name in described]
    assert order == [each for each in described if each in order]


def misfits(annotation: Any) -> list[Any]:
    """Return values of other types than an annotated one; none for a type not in `WRONG`."""
    accepted = {annotation, *typing.get_args(annotation)}
    kinds = {typing.get_origin(each) or each for each in accepted}
    wrong = next((WRONG[kind] for kind in WRONG if kind in kinds), [])
    return [value for value in wrong if type(value) not in kinds or value is math.nan]


def cases(registry: Mapping[str, Any], inherited: Any = ()) -> list[Any]:
    """Return (name, parameter, value) for each parameter that is not inherited."""
    return [
        (name, key, value)
        for name, constructor in registry.items()
        for key, parameter in parameters(constructor).items()
        if key not in inherited
        for value in misfits(parameter.annotation)
    ]


@pytest.mark.parametrize(
    ("registry", "name", "key", "value"),
    [
        (registry, *case)
        for registry in (ATTACKS, AVERAGINGS, SCHEDULES)
        for case in cases(registry)
    ],
)
def test_parts_refuse_values_of_a_wrong_type(
    registry: Mapping[str, Any], name: str, key: str, value: Any
) -> None:
    line = error_line(lambda: registry[name](**NEEDED.get(name, {}) | {key: value}))
    assert line.startswith(f"{key}: expected ")


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential(layers)


OF_ALL = {**parameters(RobustModel)}
OF_METHODS = [*cases({"adv": METHODS["adv"]}), *cases(METHODS, OF_ALL)]


@pytest.mark.parametrize(("name", "key", "value"), [c for c in OF_METHODS if c[0] != "oat"])
def test_methods_refuse_values_of_a_wrong_type(
    network: keras.Model, name: str, key: str, value: Any
) -> None:
    facts = {"num_examples": 8, "batch_size": 4, "steps_per_epoch": 2}
    arguments = {"threat": Threat("linf", 0.1), **facts, **METHODS[name].example, key: value}
    line = error_line(lambda: METHODS[name](network, **arguments))
    assert line.startswith(f"{key}: expected ")
