"""What a record says of an evaluation beside its numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfrobust.errors import UserError, require
from tfrobust.evaluation.crafting import LogitsFn


@dataclasses.dataclass(frozen=True)
class Details:
    """Descriptions that a record keeps beside its numbers.

    Args:
        data: The name of the data set.
        split: The name of the split.
        index: The places of the images in the split, int [N], 0 to N - 1 by default.
        class_names: The names of the classes.
        model: The evaluated network, as a config describes it.
        digest: A digest of the network's files.
        training_commit: The commit of the code that trained the network.
        training_hardware: The device and the CPU threads that trained it.
        training_settings: The settings of the training and of its parts, with their defaults.
        curve: A once-for-all network at each of its points, such as {"lambda": 0.5}; the first is
            the evaluated network itself.
        say: Called with each line about the progress.

    Raises:
        UserError: If one of them cannot stand in the record.
    """

    data: str = "arrays"
    split: str = "test"
    index: np.ndarray | None = None
    class_names: Sequence[str] = ()
    model: dict[str, Any] | None = None
    digest: str | None = None
    training_commit: str | None = None
    training_hardware: str | None = None
    training_settings: dict[str, dict[str, Any]] | None = None
    curve: Sequence[tuple[dict[str, float], LogitsFn]] = ()
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        if self.index is not None:
            index, expected = np.asarray(self.index), "places, int [N]"
            fits = index.ndim == 1 and index.dtype.kind in "iu"
            require(fits, "details.index", expected, f"{index.dtype.name} of shape {index.shape}")
            object.__setattr__(self, "index", index)
        for name in ("data", "split"):
            value = getattr(self, name)
            require(isinstance(value, str), f"details.{name}", "a name", value)
        names = self.class_names
        fits = not isinstance(names, str) and all(isinstance(name, str) for name in names)
        require(fits, "details.class_names", "a list of names", names)
        for name in ("model", "training_settings"):
            try:
                json.dumps(getattr(self, name))
            except (TypeError, ValueError) as error:
                raise UserError(f"details.{name}: expected what JSON can hold: {error}") from None
