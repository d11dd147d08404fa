"""The check that Keras runs on TensorFlow, made before Keras itself fails with a traceback."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tfrobust.io import in_home

NEEDED = "tensorflow"


def chosen() -> tuple[str, str]:
    """Return the backend that Keras has, or will have when it is imported, and what set it."""
    if (keras := sys.modules.get("keras")) is not None:
        return keras.config.backend(), "the Keras that is imported already"
    if name := os.environ.get("KERAS_BACKEND"):
        return name, "KERAS_BACKEND"
    home = in_home("~")  # "~" itself if the user has no home
    home = home if os.access(home, os.W_OK) else Path("/tmp")
    file = in_home(os.environ.get("KERAS_HOME", home / ".keras")) / "keras.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("backend", NEEDED), str(file)
    except (OSError, ValueError):  # no file, or one that Keras cannot read either
        return NEEDED, str(file)


def check() -> None:
    """Raise an ImportError of one line unless Keras's backend is TensorFlow."""
    name, source = chosen()
    if name != NEEDED:
        raise ImportError(
            f"Keras's backend: expected {NEEDED}, received {name} from {source}; set "
            f"KERAS_BACKEND={NEEDED} before Keras is imported",
            name=__name__,
        )
