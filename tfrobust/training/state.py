"""The state of callbacks, as checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Kept:
    """A callback whose state is the attributes that `kept` names."""

    kept: Sequence[str] = ()

    def get_state(self) -> dict[str, Any]:
        """Return the state, of values that JSON can hold."""
        return {name: getattr(self, name) for name in self.kept}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `get_state` returned."""
        for name in self.kept:
            if name in state:
                setattr(self, name, state[name])
