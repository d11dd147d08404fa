"""What a number was made with: versions and commit."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tfrobust


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    modules = {"tfrobust": tfrobust, "tensorflow": tf, "keras": keras, "numpy": np}
    found = {name: module.__version__ for name, module in modules.items()}
    return {**found, "python": platform.python_version()}


@functools.cache
def commit() -> str | None:
    """The git commit of the code when first asked, which is as a run starts, "-dirty" where files
    differ from it; None outside a checkout."""
    root = Path(tfrobust.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
