"""An evaluation for TensorBoard: accuracies, images, margins, and what the run was made with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from tfrobust.report import Probes, RunRecord, accuracy_rows, amplification, method_name

WIDTH, GAP = 96, 8  # pixels: small images are enlarged


def write_board(folder: Path, record: RunRecord, margins: Mapping[str, np.ndarray]) -> None:
    """Writes the events of an evaluation to `folder`, in place of what was there.

    margins: name -> margins [n] of test images.
    """
    shutil.rmtree(folder, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=0):
        for row in accuracy_rows(record.config, record.evaluation):
            tf.summary.scalar(f"attack_eval/accuracy/{row.name}", row.accuracy)
        for name, values in margins.items():
            tf.summary.histogram(f"attack_eval/margin/{name}", values[np.isfinite(values)])
        if record.probes is not None:
            images = _images(record.probes)
            tf.summary.image(
                "attack_eval/clean, adversarial, difference", images, max_outputs=len(images)
            )
        hparams.hparams(hyper_parameters(record.config))
    writer.close()


def hyper_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Data, eps, seed, and the method with its scalars."""
    method = config.get("method") or {}
    found = {f"method.{key}": value for key, value in method.items() if key != "name"}
    found |= {"method": method_name(config), "data": config["data"]["name"]}
    found |= {"seed": config.get("seed"), "eps": (config.get("threat") or {}).get("eps")}
    found["train.eps"] = (config.get("train") or {}).get("eps")
    return {key: v for key, v in found.items() if isinstance(v, bool | int | float | str)}


def _images(probes: Probes) -> np.ndarray:
    """Side by side the clean image, the adversarial one and their difference around mid-grey,
    amplified; in grey or colour."""
    difference = 0.5 + amplification(probes) * (probes.adversarial - probes.image)
    times = max(1, WIDTH // probes.image.shape[2])
    shown = [_enlarged(part, times) for part in (probes.image, probes.adversarial, difference)]
    gap = np.ones_like(shown[0][:, :, :GAP])
    return np.concatenate([shown[0], gap, shown[1], gap, shown[2]], axis=2)


def _enlarged(images: np.ndarray, times: int) -> np.ndarray:
    grey = images if images.shape[-1] in (1, 3) else images.mean(axis=-1, keepdims=True)
    pixels = np.clip(grey, 0, 1).astype(np.float32)
    return pixels.repeat(times, axis=1).repeat(times, axis=2)
