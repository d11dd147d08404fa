"""Objects are built from names and mappings, and every mistake is an error of one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import errors, serialization
from tfrobust.errors import UserError, number
from tfrobust.registry import build, located, parameters, resolve


@dataclasses.dataclass
class Walk:
    steps: int = 10
    size: float | None = None
    sizes: list[int] | None = None
    box: tuple[float, float] = (0.0, 1.0)
    loss: str = "ce"

    def __post_init__(self) -> None:
        errors.require(self.steps >= 1, "steps", "int >= 1", self.steps)


class Base:
    def __init__(self, network: str, *, seed: int = 0, ramp: int = 0):
        self.network, self.seed, self.ramp = network, seed, ramp


class Method(Base):
    def __init__(self, network: str, *, alpha: float, ramp: int = 5, **kwargs: Any):
        self.alpha = alpha
        super().__init__(network, ramp=ramp, **kwargs)


REGISTRY: dict[str, Any] = {"walk": Walk, "method": Method}


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("-1/2", -0.5), ("1.5/3", 0.5), (3, 3.0), (np.float32(0.5), 0.5)],
)
def test_a_number_may_be_a_fraction(text: object, value: float) -> None:
    assert number("eps", text) == value


@pytest.mark.parametrize("value", ["1/0", "a", "1/2/3", None, True, float("nan"), [1]])
def test_what_is_not_a_finite_number_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="^eps: expected "):
        number("eps", value)


def test_an_object_is_built_from_a_name_or_from_a_mapping() -> None:
    assert build(REGISTRY, "walk", "attack") == Walk()
    spec = {"name": "walk", "steps": 3, "size": "2/8", "box": [0, 2.0], "sizes": [1, 2]}
    assert build(REGISTRY, spec, "attack") == Walk(3, 0.25, [1, 2], (0, 2.0))


def test_resolve_leaves_the_arguments_of_the_caller_open() -> None:
    make = resolve(REGISTRY, {"name": "method", "alpha": 1, "seed": 7}, "method", ("network",))
    method = make("net")
    assert (method.network, method.alpha, method.seed, method.ramp) == ("net", 1, 7, 5)


def test_the_parameters_of_a_class_with_kwargs_include_those_of_its_bases() -> None:
    result = parameters(Method)
    assert list(result) == ["network", "alpha", "ramp", "seed"]
    assert result["ramp"].default == 5  # the default of the subclass


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wall", "attack.name: expected one of method, walk, received 'wall' (did you mean 'walk"),
        ({"steps": 3}, "attack: expected a mapping with 'name'"),
        (3, "attack: expected a name or a mapping"),
        ({"name": "walk", "step": 3}, "attack.step: unknown key"),
        ({"name": "walk", "step": 3}, "(did you mean 'steps'?)"),
        ({"name": "walk", "steps": "3"}, "attack.steps: expected a valid integer, received '3'"),
        ({"name": "walk", "steps": 3.0}, "attack.steps: expected a valid integer, received 3.0"),
        ({"name": "walk", "steps": True}, "attack.steps: expected a valid integer"),
        ({"name": "walk", "steps": "1/2"}, "attack.steps: expected a valid integer"),
        ({"name": "walk", "loss": 1}, "attack.loss: expected a valid string"),
        ({"name": "walk", "steps": 0}, "attack.steps: expected int >= 1, received 0"),
        ({"name": "method", "network": "n"}, "attack: expected a value for alpha"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(spec: Any, message: str) -> None:
    assert message in error_line(lambda: build(REGISTRY, spec, "attack"))


def test_a_key_for_an_argument_of_the_caller_is_refused() -> None:
    with pytest.raises(UserError, match=r"^method\.network: unknown key"):
        resolve(REGISTRY, {"name": "method", "network": "n", "alpha": 1.0}, "method", ("network",))


def test_choose_proposes_the_nearest_valid_name() -> None:
    line = error_line(lambda: errors.choose("norm", "linff", ("linf", "l2")))
    assert line == "norm: expected one of l2, linf, received 'linff' (did you mean 'linf'?)"
    assert errors.choose("norm", "l2", ("linf", "l2")) == "l2"


@serialization.serializable
@dataclasses.dataclass(frozen=True)
class Saved(serialization.Configurable):
    size: float = 1.0
    inner: Any = None


def test_keras_saves_and_loads_a_dataclass_in_a_dataclass() -> None:
    saved = Saved(2.0, Saved(3.0))
    config = keras.saving.serialize_keras_object(saved)
    assert keras.saving.deserialize_keras_object(config) == saved


def test_sizes_that_do_not_fit_into_memory_are_an_error_of_one_line() -> None:
    def make(units: int) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    with pytest.raises(UserError, match="^model: expected sizes that fit into memory$"):
        located("model", make, 130_325_784_376)
