"""The objects that the sections of a config describe. Each function checks one section."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras

from pipelines.sections import Data, EvaluationOptions, ExtraData, Train
from tfrobust.attacks import ATTACKS
from tfrobust.data import AUGMENTATIONS, DATASETS, Dataset
from tfrobust.errors import number, require
from tfrobust.evaluation import Corruptions
from tfrobust.gate import check_threat
from tfrobust.methods import AVERAGINGS, METHODS, RobustModel
from tfrobust.registry import arguments, build, located, parameters, resolve
from tfrobust.threat import Threat
from tfrobust.training import OPTIMIZERS, SCHEDULES, Guided

Threats = tuple[Threat, ...]
# Arguments of a method that depend on the training data.
FACTS = ("num_examples", "batch_size", "steps_per_epoch")
# Arguments of a method that its section does not set. `attack` is a section of its own.
FILLED_IN = (
    "network",
    "threat",
    "attack",
    "seed",
    "validation_attack",
    "warmup_steps",
    "ramp_steps",
    "averaging",
    *FACTS,
)


def data_of(section: Mapping[str, Any]) -> Data:
    """Return the data that the section `data` names."""
    section = dict(section)
    extra = section.pop("extra", None)
    augment = section.pop("augment", None) or []
    source, options = _source(Data, section, "data", ("extra", "augment"))
    several = isinstance(augment, list)
    options["augment"] = tuple(
        build(AUGMENTATIONS, item, f"data.augment[{place}]" if several else "data.augment")
        for place, item in enumerate(augment if several else [augment])
    )
    if extra is not None:
        where = "data.extra"
        extra_source, extra_options = _source(ExtraData, extra, where)
        extra = located(where, ExtraData, extra_source, **extra_options)
        received = (extra.source.image_shape, extra.source.num_classes)
        fits = received[0] == source.image_shape and received[1] <= source.num_classes
        expected = f"images {source.image_shape} of at most {source.num_classes} classes, as data"
        require(fits, where, expected, received)
    return located("data", Data, source, extra=extra, **options)


def _source(
    kind: type, section: Any, where: str, also: tuple[str, ...] = ()
) -> tuple[Dataset, dict[str, Any]]:
    """Return the data set that a section names, and the section's values of the fields of `kind`.

    Args:
        kind: `Data` or `ExtraData`.
        section: The section, whose other keys are arguments of the data set.
        where: The place of the section, for error messages.
        also: Fields of `kind` that are checked elsewhere.
    """
    require(isinstance(section, Mapping), where, "a mapping with 'name'", section)
    fields = {field.name for field in dataclasses.fields(kind)} - {"source", *also}
    options = {key: value for key, value in section.items() if key in fields}
    of_source = {key: value for key, value in section.items() if key not in fields}
    source = build(DATASETS, of_source, where, also=(*fields, *also))
    return source, arguments(kind, options, where, ("source", *also))


def train_of(section: Mapping[str, Any], threats: Threats, data: Data, trains: bool) -> Train:
    """Return the section `train`; `trains` is whether the config trains by it."""
    nested: dict[str, Mapping[str, Callable[..., Any]]] = {
        "schedule": SCHEDULES,
        "validation_attack": ATTACKS,
        "averaging": AVERAGINGS,
    }
    plain = {key: value for key, value in section.items() if key not in nested}
    values = arguments(Train, plain, "train", tuple(nested), also=tuple(nested))
    for key, registry in nested.items():
        if section.get(key) is not None:
            values[key] = build(registry, section[key], f"train.{key}")
    train = located("train", Train, **values)
    alone = train.eps is None or len(threats) == 1
    require(alone, "train.eps", "none (threat is a list, each with its eps)", train.eps)
    for threat in training_threats(threats, train):
        check_threat(threat, data.source.image_shape, "train.eps")
    if trains and isinstance(train.schedule, Guided):
        expected = "examples to hold out (train.schedule is guided)"
        require(data.validation, "data.validation", expected, data.validation)
    located("train.schedule", train.schedule.learning_rate, 0.1, 1, train.epochs)
    located("train.schedule", train.schedule.callbacks, 0)
    return train


def evaluation_of(section: Mapping[str, Any]) -> EvaluationOptions:
    """Return the section `evaluation`."""
    plain, where = dict(section), "evaluation.corruptions"
    if (corruptions := plain.pop("corruptions", None)) is not None:
        valid = isinstance(corruptions, bool | Mapping)
        require(valid, where, "true, false or a mapping", corruptions)
        if isinstance(corruptions, Mapping):
            corruptions = located(where, Corruptions, **arguments(Corruptions, corruptions, where))
        plain["corruptions"] = corruptions
    options = arguments(EvaluationOptions, plain, "evaluation")
    return located("evaluation", EvaluationOptions, **options)


def optimizer_of(section: Mapping[str, Any]) -> partial[keras.optimizers.Optimizer]:
    """Return a function of a learning rate that returns the optimizer."""
    optimizer = resolve(OPTIMIZERS, section, "optimizer")
    rate = float(located("optimizer", optimizer).learning_rate)
    number("optimizer.learning_rate", rate, above=0)
    return optimizer


def training_threats(threats: Threats, train: Train | None) -> Threats:
    """Return the threats of the training, which `train.eps` may change."""
    if train is None or train.eps is None:
        return threats
    return tuple(threat.at(train.eps) for threat in threats)


def method_of(
    section: Mapping[str, Any], threats: Threats, train: Train | None, seed: int
) -> partial[RobustModel]:
    """Return a function of a network and of FACTS that returns the method."""
    section = dict(section)
    attack = section.pop("attack", None)
    maker = resolve(METHODS, section, "method", FILLED_IN, also=("attack",))
    return partial(
        maker,
        threat=threats if len(threats) > 1 else threats[0],
        validation_attack=None if train is None else train.validation_attack,
        averaging=None if train is None else train.averaging,
        seed=seed,
        attack=None if attack is None else build(ATTACKS, attack, "method.attack"),
    )


def settings_of(maker: partial[Any]) -> dict[str, Any]:
    """Return what a section can set of a method or an optimizer, with the defaults of the rest."""
    values = {key: p.default for key, p in parameters(maker.func).items()} | maker.keywords
    return {key: value for key, value in values.items() if key not in (*FILLED_IN, "name")}


def paper_of(paper: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `paper` with its accuracies as floats; its source stays text."""
    section = dict(paper)
    for key in section.keys() - {"source"}:
        section[key] = number(f"paper.{key}", paper[key], at_least=0, at_most=1)
    return section
