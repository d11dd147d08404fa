"""The network alone as a SavedModel, reloaded and checked before it is called done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.models.saved import open_saved_model


def export(network: keras.Model, folder: Path, images: np.ndarray) -> None:
    """Write a SavedModel: [None, H, W, C] float32 in [0, 1] -> logits [None, C]; of a once-for-all
    network {"image", "strength": [None]} -> logits, and of one with widths "width": [None] as well.

    Endpoints "serve" and "serving_default". images: a few [N, H, W, C]; the reloaded
    model must give the network's own logits on them, else RuntimeError and nothing is left.
    """
    inputs: Any = tf.constant(images)
    if isinstance(network.input, dict):
        inputs = dict.fromkeys(network.input, tf.linspace(0.0, 1.0, len(images)))
        inputs["image"] = tf.constant(images)
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    network.export(str(aside), verbose=False)
    loaded = open_saved_model(aside)
    expected = network(inputs, training=False).numpy()
    served = loaded.serve(inputs).numpy()
    if not np.allclose(served, expected, rtol=1e-5, atol=1e-5):
        shutil.rmtree(aside)
        gap = np.abs(served - expected).max()
        raise RuntimeError(f"{folder}: the reloaded SavedModel differs by up to {gap} in a logit")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
