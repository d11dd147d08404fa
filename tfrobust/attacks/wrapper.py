"""The base class of attacks that run another attack."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tfrobust.attacks.base import Attack, LogitsFn
from tfrobust.errors import require
from tfrobust.registry import build, located
from tfrobust.threat import Threat


class Wrapper(Attack):
    """An attack that runs another one, its field `attack`.

    The field takes an Attack, or its name and settings as in a config.
    """

    attack: Any

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            from tfrobust.attacks import ATTACKS  # not above, as the registry imports this file

            object.__setattr__(self, "attack", build(ATTACKS, self.attack, "attack"))

    @property
    def differentiates(self) -> bool:
        return bool(self.attack.differentiates)

    def settings(self, threat: Threat) -> dict[str, Any]:
        """Return the settings, with those of the attack in it."""
        return super().settings(threat) | {"attack": self.attack.settings(threat)}

    @property
    def files(self) -> list[Path]:
        """The files that the attack in it reads."""
        return list(self.attack.files)

    def check(self, threat: Threat, image_shape: tuple[int, ...] | None = None) -> None:
        """Check the attack in it."""
        located("attack", self.attack.check, threat, image_shape)

    def check_network(self, logits_fn: LogitsFn, images: np.ndarray) -> None:
        """Check the attack in it."""
        located("attack", self.attack.check_network, logits_fn, images)

    def fitted(self, classes: int) -> Any:
        """Return this attack with the one in it fitted."""
        changes: Any = {"attack": self.attack.fitted(classes)}
        return dataclasses.replace(self, **changes)


def check_relative(attack: Attack, where: str, expected: str) -> None:
    """Raise a UserError if an attack, or one in it, has a step size in image units.

    No such step size fits the different eps of several threats.

    Args:
        attack: The attack.
        where: Its place in a config.
        expected: What may be there instead.
    """
    while isinstance(attack, Wrapper):
        attack, where = attack.attack, f"{where}.attack"
    step = getattr(attack, "step_size", None)
    require(step is None, f"{where}.step_size", expected, step)
