"""A config cut down to seconds: every stage, a few steps, a tiny network, made-up images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipelines.space import Range
from pipelines.spec import Spec, parse
from tfrobust.attacks import Attack

LIMITS = {"steps": 2, "restarts": 2, "targets": 2, "draws": 2, "eot": 2, "queries": 20}


def smoke(spec: Spec) -> Spec:
    """The same run in small: its method, attacks and stages stay, all that costs time shrinks. Its
    numbers mean nothing."""
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
    if spec.data.extra is not None:
        shape = {key: config["data"][key] for key in ("name", "image_shape", "num_classes")}
        more = {"share": spec.data.extra.share, "weight": spec.data.extra.weight}
        config["data"]["extra"] = {**shape, **more}
    if spec.train is not None:
        conditional = ("lambdas", "encoding", "widths")
        kept = {k: config["model"][k] for k in conditional if k in config["model"]}
        config["model"] = {"name": "small_cnn", "filters": [4, 4], "kernel": 3, "units": 16}
        config["model"] |= kept if "lambdas" in kept else {}
        ramp = min(1, spec.train.epsilon_ramp_epochs)
        small = {"epochs": 2, "steps_per_epoch": 2, "epsilon_ramp_epochs": ramp, "init_from": None}
        config["train"] = {**config["train"], **small}
    if spec.search is not None:
        config["search"] = {**config["search"], "space": _few(spec.search.space), "trials": 2}
    for section in ("method", "train"):
        config[section] = _limited(config.get(section))
    config["note"] = "Smoke run on synthetic images: its numbers mean nothing."
    config.pop("paper", None)
    made = parse(spec.name, {key: value for key, value in config.items() if value is not None})
    # The attacks themselves, as a suite is one name in the config.
    attack_list = [dataclasses.replace(t, attack=_in_small(t.attack)) for t in made.attack_list]
    return dataclasses.replace(made, attack_list=attack_list)


def _few(space: Mapping[str, Range]) -> dict[str, Any]:
    """The space without the keys that are set here; two seeds where none is left."""

    def free(key: str) -> bool:
        first, *_, last = key.split(".") * 2
        return first not in ("data", "model", "train") and last not in LIMITS

    left = {key: known.plain for key, known in space.items() if free(key)}
    return left or {"seed": {"choice": [0, 1]}}


def _limited(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: min(v, LIMITS[k]) if k in LIMITS and v else _limited(v) for k, v in value.items()
        }
    return [_limited(v) for v in value] if isinstance(value, list) else value


def _in_small(attack: Attack) -> Attack:
    values = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}
    small = {k: min(v, LIMITS[k]) for k, v in values.items() if k in LIMITS and v}
    small |= {k: _in_small(v) for k, v in values.items() if isinstance(v, Attack)}
    return dataclasses.replace(attack, **small)
