"""A config cut down to seconds: every stage, a few steps, a tiny network, made-up images."""

from __future__ import annotations

from typing import Any

from pipelines.spec import Spec

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
    if spec.train is not None:
        config["model"] = {"name": "small_cnn", "filters": [4, 4], "kernel": 3, "units": 16}
        ramp = min(1, spec.train.epsilon_ramp_epochs)
        small = {"epochs": 2, "steps_per_epoch": 2, "epsilon_ramp_epochs": ramp, "init_from": None}
        config["train"] = {**config["train"], **small}
    if not any(trial.suite for trial in spec.trials):
        # Under their full-size names: two attacks cut down may look the same.
        config["attacks"] = [
            {**entry, "label": trial.name}
            for entry, trial in zip(config.get("attacks", []), spec.trials, strict=True)
        ]
    for section in ("method", "train", "attacks"):
        config[section] = _limited(config.get(section))
    config["note"] = "Smoke run on synthetic images: its numbers mean nothing."
    config.pop("paper", None)
    return {key: value for key, value in config.items() if value is not None}


def _limited(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: min(v, LIMITS[k]) if k in LIMITS and v else _limited(v) for k, v in value.items()
        }
    return [_limited(v) for v in value] if isinstance(value, list) else value
