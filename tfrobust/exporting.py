"""The network alone as a SavedModel, reloaded and checked before it is called done."""

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

# How far two ways to compute the same network may be apart, of the greatest logit.
APART = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}


def export(network: keras.Model, folder: Path, images: np.ndarray) -> None:
    """Write a SavedModel: [None, H, W, C] float32 in [0, 1] -> logits [None, C]; of a once-for-all
    network {"image", "strength": [None]} -> logits, and of one with widths "width": [None] as well.

    Endpoints "serve" and "serving_default". images: a few [N, H, W, C]. Raises UserError where the
    reloaded model does not give the network's own logits on them; only a valid one replaces what
    was in the folder.
    """
    inputs: Any = tf.constant(images)
    names = signature(network).inputs
    if names != ("image",):
        inputs = dict.fromkeys(names, tf.linspace(0.0, 1.0, len(images)))
        inputs["image"] = tf.constant(images)
    new, former = (folder.with_name(f".{folder.name}{end}") for end in ("", ".former"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        with neutral():
            alone(network).export(str(new), verbose=False)
        loaded = open_saved_model(new)
        with tf32.switched_off():  # in which a GPU moves a logit by a thousandth
            served, own = loaded.serve(inputs).numpy(), forward(network, inputs).numpy()
        _compare(served, own, network, folder)
        shutil.rmtree(former, ignore_errors=True)
        if folder.exists():
            folder.rename(former)
        new.rename(folder)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _compare(served: np.ndarray, own: np.ndarray, network: keras.Model, folder: Path) -> None:
    """Raise a UserError unless the logits [N, C] are the same but for rounding."""
    computed = {layer.compute_dtype for layer in layers_of(network)}
    most = max(APART.get(dtype, APART["float32"]) for dtype in computed)
    gap, scale = np.abs(served - own).max(), np.abs(own).max()
    if not gap <= most * max(scale, 1.0):  # NaN is no agreement
        raise UserError(
            f"{folder}: expected a SavedModel with the network's own logits, received one that "
            f"differs by up to {gap:.3g} in a logit, of at most {scale:.3g}; {most:g} of that is "
            f"rounding in {', '.join(sorted(computed))}"
        )
