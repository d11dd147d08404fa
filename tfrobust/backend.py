"""Keras's backend, looked at before Keras is imported: one that is not installed ends its import in
a traceback."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

NEEDED = "tensorflow"


def chosen() -> tuple[str, str]:
    """The backend that Keras has, or takes when it is imported; and what chose it."""
    if (keras := sys.modules.get("keras")) is not None:
        return keras.config.backend(), "the Keras that is imported already"
    if named := os.environ.get("KERAS_BACKEND"):
        return named, "KERAS_BACKEND"
    home = Path.home() if os.access(Path.home(), os.W_OK) else Path("/tmp")
    file = Path(os.environ.get("KERAS_HOME", home / ".keras")).expanduser() / "keras.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("backend", NEEDED), str(file)
    except (OSError, ValueError):  # none, or not one that Keras reads either
        return NEEDED, str(file)


_name, _by = chosen()
if _name != NEEDED:
    raise ImportError(
        f"Keras's backend: expected {NEEDED}, received {_name} from {_by}; set KERAS_BACKEND="
        f"{NEEDED} before Keras is imported",
        name=__name__,
    )
