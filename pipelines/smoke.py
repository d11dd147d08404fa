"""A config cut down to seconds: every stage, a few steps, a tiny network, made-up images."""

from __future__ import annotations

from typing import Any

from pipelines.spec import Spec, entries
from tfrobust.evaluation import Trial

LIMITS = {"steps": 2, "restarts": 2, "examples": 32}


def smoke(spec: Spec) -> dict[str, Any]:
    """The config of the same run in small: its method, attacks and stages stay, all that costs
    time shrinks. Its numbers mean nothing."""
    source, config = spec.data.source, dict(spec.config)
    config["data"] = {
        "name": "synthetic",
        "image_shape": list(source.image_shape),
        "num_classes": source.num_classes,
        "train": 64,
        "test": 32,
        "batch_size": 16,
        "validation": 16,
        "augment": spec.data.augment,
    }
    config["model"] = {"name": "small_cnn", "filters": [4, 4], "kernel": 3, "units": 16}
    if spec.train is not None:
        ramp = min(1, spec.train.epsilon_ramp_epochs)
        small = {"epochs": 2, "steps_per_epoch": 2, "epsilon_ramp_epochs": ramp, "init_from": None}
        config["train"] = {**config["train"], **small}
    config["attacks"] = [_named(*pair) for pair in zip(entries(config), spec.trials, strict=True)]
    for section in ("method", "train", "attacks"):
        config[section] = _limited(config.get(section))
    config["note"] = "Smoke run on synthetic images: its numbers mean nothing."
    config.pop("paper", None)
    return {key: value for key, value in config.items() if value is not None}


def _named(entry: str | dict[str, Any], trial: Trial) -> dict[str, Any]:
    """The entry of an attack under its full-size name: two attacks cut down may look the same."""
    return {**({"name": entry} if isinstance(entry, str) else entry), "label": trial.name}


def _limited(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: min(v, LIMITS[k]) if k in LIMITS and v else _limited(v) for k, v in value.items()
        }
    return [_limited(v) for v in value] if isinstance(value, list) else value
