"""The state of callbacks that checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Stateful:
    """A base for callbacks whose state is the attributes in `state_names`."""

    state_names: Sequence[str] = ()

    def get_state(self) -> dict[str, Any]:
        """Return the state, of values that JSON can hold."""
        return {name: getattr(self, name) for name in self.state_names}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `get_state` returned."""
        for name in self.state_names:
            if name in state:
                setattr(self, name, state[name])
