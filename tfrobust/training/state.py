"""What a callback carries from one epoch to the next, as checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Kept:
    """A callback whose attributes of the names in `kept` are its state."""

    kept: Sequence[str] = ()

    def get_state(self) -> dict[str, Any]:
        """Return the state, of values that JSON has."""
        return {name: getattr(self, name) for name in self.kept}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `get_state` gave."""
        for name in self.kept:
            if name in state:
                setattr(self, name, state[name])
