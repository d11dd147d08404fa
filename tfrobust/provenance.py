"""The provenance of a number: versions, commit, device."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import __version__

NUMBERS = {"family": "cpu family", "model": "model"}  # of a CPU, in /proc/cpuinfo


def versions() -> dict[str, str]:
    """Return the version of each package that a result may depend on."""
    packages = {"tensorflow": tf, "keras": keras, "numpy": np}
    others = {name: package.__version__ for name, package in packages.items()}
    return {"tfrobust": __version__, **others, "python": platform.python_version()}


@functools.cache
def commit() -> str | None:
    """Return the git commit of the code; None outside a checkout.

    It ends in "-dirty" if files differ from the commit. Git is asked once in a process.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def circumstances() -> dict[str, Any]:
    """Return the circumstances of a measurement made now.

    They are the version, commit, device, threads, time (UTC) and the settings of Keras that differ
    from its defaults.
    """
    settings = {
        "floatx": (keras.config.floatx(), "float32"),
        "image_data_format": (keras.config.image_data_format(), "channels_last"),
        "dtype_policy": (keras.config.dtype_policy().name, keras.config.floatx()),
    }
    return {
        "version": __version__,
        "commit": commit(),
        "device": device(),
        "threads": _threads(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "keras": {key: value for key, (value, default) in settings.items() if value != default},
    }


def hardware() -> str:
    """Return the device and the CPU threads for one operation.

    An example is 'CPU AMD EPYC (family 26, model 2), 2 threads'.
    """
    return f"{device()}, {_threads()} threads"


def _threads() -> int:
    """Return the number of CPU threads for one operation, as TensorFlow chooses it."""
    chosen = tf.config.threading.get_intra_op_parallelism_threads()
    return chosen or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0) or os.cpu_count() or 1


@functools.cache
def device() -> str:
    """Return the name of the CPU or GPU; for several GPUs, their number and name."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU {_cpu() or platform.machine()}"
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return f"{len(gpus)} x {name}" if len(gpus) > 1 else str(name)


def _cpu() -> str | None:
    """Return the model of the CPU, its family and number included, from Linux's /proc/cpuinfo.

    On a virtual machine the name alone, such as "AMD EPYC", leaves the generation open.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    if "model name" not in fields:
        return None
    numbers = [f"{name} {fields[key]}" for name, key in NUMBERS.items() if key in fields]
    return fields["model name"] + (f" ({', '.join(numbers)})" if numbers else "")
