"""The export of a network as a SavedModel, which is loaded again and checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import tf32
from tfrobust._compat import layers_of
from tfrobust.errors import UserError
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.saved import open_saved_model
from tfrobust.models.signatures import alone, forward, signature

# The largest error of a logit by rounding, relative to the largest logit.
ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}


def export(network: keras.Model, folder: Path, images: np.ndarray) -> None:
    """Write a network as a SavedModel with the endpoints "serve" and "serving_default".

    They map images [None, H, W, C], float32 in [0, 1], to logits [None, C]. A once-for-all network
    takes a dict of "image", "strength" [None] and, if it has widths, "width" [None].

    Args:
        network: The network.
        folder: The folder of the SavedModel. Only a valid one replaces its former contents.
        images: A few images [N, H, W, C], at which the logits of both are compared.

    Raises:
        UserError: The SavedModel does not give the network's logits.
    """
    inputs: Any = tf.constant(images)
    names = signature(network).inputs
    if names != ("image",):
        inputs = dict.fromkeys(names, tf.linspace(0.0, 1.0, len(images))) | {"image": inputs}
    new = folder.with_name(f".{folder.name}")
    former = folder.with_name(f".{folder.name}.former")
    shutil.rmtree(new, ignore_errors=True)
    try:
        with neutral():
            alone(network).export(str(new), verbose=False)
        loaded = open_saved_model(new)
        with tf32.switched_off():  # it moves a logit by a thousandth
            served, expected = loaded.serve(inputs).numpy(), forward(network, inputs).numpy()
        _compare(served, expected, network, folder)
        shutil.rmtree(former, ignore_errors=True)
        if folder.exists():
            folder.rename(former)
        new.rename(folder)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _compare(served: np.ndarray, expected: np.ndarray, network: keras.Model, folder: Path) -> None:
    """Raise a UserError unless the logits [N, C] are equal within rounding."""
    computed = {layer.compute_dtype for layer in layers_of(network)}
    tolerance = max(ROUNDING.get(dtype, ROUNDING["float32"]) for dtype in computed)
    gap, scale = np.abs(served - expected).max(), np.abs(expected).max()
    if not gap <= tolerance * max(scale, 1.0):  # a gap of NaN is an error too
        raise UserError(
            f"{folder}: expected a SavedModel with the network's own logits, received one in which "
            f"a logit differs by {gap:.3g}, where the largest logit is {scale:.3g} and rounding in "
            f"{', '.join(sorted(computed))} explains {tolerance:g} of it"
        )
