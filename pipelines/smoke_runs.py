"""Smoke runs: every stage of a config within seconds, on a tiny network and random images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipelines.space import Range
from pipelines.spec import BEFORE, Spec, parse
from tfrobust.attacks import Attack
from tfrobust.evaluation import ListedAttack

LIMITS = {"steps": 2, "restarts": 2, "targets": 2, "draws": 2, "samples": 2, "queries": 20}


def smoke(spec: Spec) -> Spec:
    """Return a run with the same method, attacks and stages, but little data and few steps.

    Its results mean nothing.
    """
    source, config = spec.data.source, dict(spec.config)
    config["data"] = {
        "name": "synthetic",
        "image_shape": list(source.image_shape),
        "num_classes": source.num_classes,
        "train": 64,
        "test": 32,
        "batch_size": 16,
        "validation": 16,
        "augment": spec.config["data"].get("augment"),
    }
    if spec.data.extra is not None:
        shape = {key: config["data"][key] for key in ("name", "image_shape", "num_classes")}
        mixing = {"share": spec.data.extra.share, "weight": spec.data.extra.weight}
        config["data"]["extra"] = {**shape, **mixing}
    if spec.train is not None:
        model = config["model"]
        config["model"] = {"name": "small_cnn", "filters": [4, 4], "kernel": 3, "units": 16}
        if len(source.image_shape) != 3:
            config["model"] = {"name": "mlp", "units": [16]}
        if "lambdas" in model:
            conditional = ("lambdas", "encoding", "widths")
            config["model"] |= {key: model[key] for key in conditional if key in model}
        small: dict[str, Any] = {"epochs": 2, "steps_per_epoch": 2, "init_from": None}
        for name in ("epsilon_warmup_epochs", "epsilon_ramp_epochs"):
            small[name] = min(1, getattr(spec.train, name))
        averaging = config["train"].get("averaging")
        if isinstance(averaging, dict):  # it starts within the two epochs
            small["averaging"] = averaging | {
                "start_epoch": min(1, averaging.get("start_epoch", 0))
            }
        config["train"] = {**config["train"], **small}
    if spec.search is not None:
        space = _small_space(spec.search.space)
        config["search"] = {**config["search"], "space": space, "trials": 2}
    for section in ("method", "train"):
        config[section] = _limited(config.get(section))
    config["note"] = "Smoke run on synthetic images: its numbers mean nothing."
    config.pop("paper", None)
    config.pop("track", None)
    if BEFORE in spec.stages:  # the network from which a smoke run starts is no file
        config["stages"] = [stage for stage in spec.stages if stage != BEFORE]
        config.pop("require", None)
    small_spec = parse(
        spec.name, {key: value for key, value in config.items() if value is not None}
    )
    # The attacks are cut down as objects, because a suite of attacks is one name in the config.
    return dataclasses.replace(
        small_spec,
        attack_list=_small_attacks(small_spec.attack_list),
        export_attacks=_small_attacks(small_spec.export_attacks),
        smoke=True,
    )


def _small_space(space: Mapping[str, Range]) -> dict[str, Any]:
    """Return the space without the keys that a smoke run sets; two seeds if no key is left."""
    left = {}
    for key, values in space.items():
        path = key.split(".")
        if path[0] not in ("data", "model", "train") and path[-1] not in LIMITS:
            left[key] = values.plain
    return left or {"seed": {"choice": [0, 1]}}


def _limited(value: Any) -> Any:
    """Return a section with the numbers of LIMITS lowered, at any depth."""
    if isinstance(value, list):
        return [_limited(item) for item in value]
    if not isinstance(value, dict):
        return value
    limited = {}
    for key, item in value.items():
        limited[key] = min(item, LIMITS[key]) if key in LIMITS and item else _limited(item)
    return limited


def _small_attacks(attack_list: list[ListedAttack]) -> list[ListedAttack]:
    return [
        dataclasses.replace(listed, attack=_small_attack(listed.attack)) for listed in attack_list
    ]


def _small_attack(attack: Attack) -> Attack:
    """Return an attack, and the attacks in its fields, with the numbers of LIMITS lowered."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(attack):
        value = getattr(attack, field.name)
        if isinstance(value, Attack):
            changes[field.name] = _small_attack(value)
        elif field.name in LIMITS and value:
            changes[field.name] = min(value, LIMITS[field.name])
    return dataclasses.replace(attack, **changes)
