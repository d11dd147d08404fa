"""TensorBoard events of an evaluation and of the trials of a search."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from pipelines.sections import CLEAN, ROBUST, Search
from pipelines.space import Range
from tfrobust.report import (
    Probes,
    RunRecord,
    SearchTrial,
    accuracy_rows,
    amplification,
    method_name,
    number,
)

WIDTH, GAP = 96, 8  # pixels: the width to which small images are enlarged, and the gap between them


def write_board(folder: Path, record: RunRecord, margins: Mapping[str, np.ndarray]) -> None:
    """Write the events of an evaluation to `folder`, replacing what is there.

    Args:
        folder: The folder of the events.
        record: The content of the run folder: config, evaluation and example images.
        margins: The margins of test images by name, each an array [n].
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
    """Return the data set, eps, the seed, and the method with its scalar arguments."""
    method = config.get("method") or {}
    values = {f"method.{key}": value for key, value in method.items() if key != "name"}
    values |= {"method": method_name(config), "data": config["data"]["name"]}
    values |= {"seed": config.get("seed"), "eps": _eps(config.get("threat"))}
    values["train.eps"] = (config.get("train") or {}).get("eps")
    return {key: v for key, v in values.items() if isinstance(v, bool | int | float | str)}


def _eps(threat: Any) -> Any:
    """Return the eps of a threat; None of several threats."""
    return threat.get("eps") if isinstance(threat, Mapping) else None


def write_columns(folder: Path, plan: Search) -> None:
    """Write the columns of TensorBoard's HParams view: the searched keys and both accuracies."""
    with tf.summary.create_file_writer(str(folder)).as_default():
        hparams.hparams_config(
            hparams=[hparams.HParam(key, _domain(values)) for key, values in plan.space.items()],
            metrics=[
                hparams.Metric(CLEAN, display_name="validation clean accuracy"),
                hparams.Metric(ROBUST, display_name="validation robust accuracy"),
            ],
        )


def value_text(value: Any) -> str:
    """Return a value of a searched key as text: a number in short, anything else as JSON."""
    return number(value) if isinstance(value, float | int | str) else json.dumps(value)


def _domain(values: Range) -> Any:
    if values.kind == "choice":
        return hparams.Discrete([value_text(value) for value in values.values])
    interval = hparams.IntInterval if values.kind == "int" else hparams.RealInterval
    return interval(*values.values)


def write_trial(folder: Path, trial: SearchTrial, space: Mapping[str, Range]) -> None:
    """Write the row of a completed trial in the HParams view, replacing what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    values = {
        key: value_text(value) if space[key].kind == "choice" else value
        for key, value in trial.values.items()
    }
    with tf.summary.create_file_writer(str(folder)).as_default():
        hparams.hparams(values, trial_id=trial.name)
        tf.summary.scalar(CLEAN, trial.clean, trial.epochs)
        tf.summary.scalar(ROBUST, trial.robust, trial.epochs)


def _images(probes: Probes) -> np.ndarray:
    """Return each probe as a row of three images: clean, adversarial, and difference around grey.

    The difference is amplified. Images of one or three channels keep their channels; of any other
    number of channels the mean is shown.
    """
    difference = 0.5 + amplification(probes) * (probes.adversarial - probes.image)
    times = max(1, WIDTH // probes.image.shape[2])
    panels = [_enlarged(part, times) for part in (probes.image, probes.adversarial, difference)]
    gap = np.ones_like(panels[0][:, :, :GAP])
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=2)


def _enlarged(images: np.ndarray, times: int) -> np.ndarray:
    if images.shape[-1] not in (1, 3):
        images = images.mean(axis=-1, keepdims=True)
    pixels = np.clip(images, 0, 1).astype(np.float32)
    return pixels.repeat(times, axis=1).repeat(times, axis=2)
