"""The checks of the arguments of Keras's `fit`, `evaluate` and `predict`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfrobust.errors import number, require_at_least
from tfrobust.gate import check_weights

# The least value of each number of Keras's `fit`, `evaluate` and `predict`.
COUNTS = {
    **dict.fromkeys(("epochs", "initial_epoch"), 0),
    **dict.fromkeys(("batch_size", "steps", "steps_per_epoch"), 1),
    **dict.fromkeys(("validation_batch_size", "validation_steps"), 1),
}


def check_numbers(arguments: dict[str, Any]) -> None:
    """Raise a UserError for a count or a share of Keras's arguments that is none.

    Keras trains on nothing with a `batch_size` of 0, and on a negative `validation_split` without
    validation.
    """
    for name, least in COUNTS.items():
        if arguments.get(name) is not None:
            require_at_least(least, **{name: arguments[name]})
    frequency = arguments.get("validation_freq", 1)
    if not isinstance(frequency, list | tuple | set):  # of the numbers of epochs
        require_at_least(1, validation_freq=frequency)
    number("validation_split", arguments.get("validation_split") or 0, at_least=0, below=1)


def check_sample_weight(arguments: dict[str, Any], images: np.ndarray | None) -> None:
    """Make an array of the argument `sample_weight`, if there is one beside images in memory."""
    weights = arguments.get("sample_weight")
    if weights is not None and images is not None:
        arguments["sample_weight"] = check_weights(weights, len(images))


def images_of(x: Any) -> np.ndarray | None:
    """Return the images of data that `check_data` returned; None for a stream."""
    images = x.get("image") if isinstance(x, Mapping) else x
    return images if isinstance(images, np.ndarray) else None
