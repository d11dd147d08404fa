"""Classes that Keras can save and load."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import keras

T = TypeVar("T")


def serializable(cls: type[T]) -> type[T]:
    """Register a class with Keras, which can then save and load its instances."""
    return keras.saving.register_keras_serializable("tfrobust")(cls)


class Configurable:
    """A base for dataclasses that Keras can save; their fields are the config."""

    def get_config(self) -> dict[str, Any]:
        return {
            field.name: keras.saving.serialize_keras_object(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})
