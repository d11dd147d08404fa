"""A config mapping to checked objects: every mistake is found here, before any data is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras

from pipelines.config import changed, related
from pipelines.network import made, named_output
from pipelines.sections import Data, EvaluationOptions, ExtraData, Search, Train
from pipelines.space import ranges
from tfrobust.attacks import ATTACKS, Attack, SavedImages
from tfrobust.data import DATASETS, Dataset
from tfrobust.errors import UserError, choose, number, require
from tfrobust.evaluation import ListedAttack, list_attacks
from tfrobust.gate import check_threat
from tfrobust.methods import METHODS, RobustModel
from tfrobust.models import MODELS, PRECISIONS
from tfrobust.registry import arguments, build, convert, located, resolve
from tfrobust.threat import Threat
from tfrobust.training import OPTIMIZERS, SCHEDULES, Guided

FACTS = ("num_examples", "batch_size", "steps_per_epoch")  # of the training data
STAGES = ("train", "attack_eval", "report", "export")
SEARCHING = ("search", "report")  # the stages of a config with a section search


@dataclasses.dataclass(frozen=True)
class Spec:
    """A run: its config and the objects that it names; of a search, those of its first trial that
    was checked."""

    name: str
    config: dict[str, Any]
    seed: int
    precision: str
    threat: Threat
    data: Data
    attack_list: list[ListedAttack]
    evaluation: EvaluationOptions
    stages: list[str]
    train: Train | None
    network: Callable[[], keras.Model] | None  # to train: float32, fresh or as its file has it
    method: Callable[..., RobustModel] | None
    optimizer: Callable[..., keras.optimizers.Optimizer] | None
    search: Search | None = None
    unresolved: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # config, of a search


def parse(name: str, config: dict[str, Any]) -> Spec:
    """The spec of a resolved config. Raises UserError: the key's path, what was expected, what
    came, the nearest valid name."""
    if config.get("search") is not None:
        return _search(name, config)
    config = _long_form(config)
    top = arguments(_schema, config, "")
    defaults: dict[str, Any] = {"seed": 0, "precision": "float32", "stages": list(STAGES)}
    top = defaults | {key: value for key, value in top.items() if value is not None}
    stages = top["stages"]
    for stage in stages:
        require(stage != "search", "search", "a section (stages has search)", None)
        choose("stages", stage, STAGES)
    require(0 <= top["seed"] < 2**32, "seed", "an int from 0 to 2**32 - 1", top["seed"])
    choose("precision", top["precision"], PRECISIONS)
    threat = located("threat", Threat, **arguments(Threat, top["threat"], "threat"))
    require(threat.box == (0.0, 1.0), "threat.box", "[0, 1], as the data have it", threat.box)
    data = _data(top["data"])
    check_threat(threat, data.source.image_shape)
    # Of a config with a method the run's own network is evaluated, whatever stages run now.
    trains = "train" in stages or "method" in top
    train = method = optimizer = None
    for section in ("method", "optimizer", "train") if trains else ():
        require(section in top, section, "a section (the config trains)", None)
    if "train" in top:
        train = _train(top["train"])
        check_threat(_training_threat(threat, train), data.source.image_shape, "train.eps")
        guided = trains and isinstance(train.schedule, Guided)
        require(
            not guided or data.validation,
            "data.validation",
            "examples to hold out (train.schedule is guided)",
            data.validation,
        )
        located("train.schedule", train.schedule.learning_rate, 0.1, 1, train.epochs)
        located("train.schedule", train.schedule.callbacks, 0)
    if "method" in top:
        method = _method(top["method"], _training_threat(threat, train), train, top["seed"])
    for where, attack in training_attacks(method, train).items():
        fits = not isinstance(attack, SavedImages)
        require(fits, where, "an attack that makes its images", "saved_images")
        located(where, attack.check, _training_threat(threat, train), data.source.image_shape)
    attack_files(training_attacks(method, train))
    if method is not None:  # the constructor checks its values: on a small stand-in, at once
        stand_in = _stand_in(top.get("model") or {}, method, train)
        located("method", method, stand_in, ramp_steps=0, **dict.fromkeys(FACTS, 1))
    if "optimizer" in top:
        optimizer = resolve(OPTIMIZERS, top["optimizer"], "optimizer")
        rate = float(located("optimizer", optimizer).learning_rate)
        require(rate > 0, "optimizer.learning_rate", "a number > 0", rate)
    train = train if trains else None
    init_from = train.init_from if train is not None else None
    network = made(top, data.source, trains, init_from)
    evaluation = located(
        "evaluation",
        EvaluationOptions,
        **arguments(EvaluationOptions, top.get("evaluation", {}), "evaluation"),
    )
    _check_inputs(evaluation, top.get("model") or {})
    attack_list = list_attacks(top.get("attacks", []), threat)
    for listed in attack_list:
        located("attacks", listed.attack.check, threat, data.source.image_shape)
    attack_files(attacks_by_key(attack_list))
    if "paper" in top:
        config = {**config, "paper": _paper(top["paper"])}
    half = trains or top["precision"] == "float32"
    require(half, "precision", "float32 (there is no method to train)", top["precision"])
    if init_from is not None:  # what is trained on, whatever the section model says
        named = {} if (output := named_output(top)) is None else {"output": output}
        config = {**config, "model": {"path": init_from, **named}}
    return Spec(
        name=name,
        config=config,
        seed=top["seed"],
        precision=top["precision"],
        threat=threat,
        data=data,
        attack_list=attack_list,
        evaluation=evaluation,
        stages=stages,
        train=train,
        network=network,
        method=method,
        optimizer=optimizer,
    )


def _search(name: str, config: Mapping[str, Any]) -> Spec:
    """The spec of a search. Every end of every range and every choice is checked as a run of its
    own, the other keys at their first value."""
    unresolved, config = config, _long_form(changed(config, {}))
    section, stages = config["search"], config.get("stages")
    stages = list(SEARCHING) if stages is None else convert("stages", stages, list[str])
    require(isinstance(section, Mapping), "search", "a mapping with 'space'", section)
    options = {key: value for key, value in section.items() if key != "space"}
    options = arguments(Search, options, "search", ("space",), ("space",))
    search = located("search", Search, ranges(section.get("space")), **options)
    require("search" in stages, "stages", "search, and report or not (there is a search)", stages)
    for stage in stages:
        choose("stages", stage, SEARCHING)
    first = {key: known.values[0] for key, known in search.space.items()}
    spec = _checked(name, unresolved, first)
    for key, known in search.space.items():
        for value in known.values[1:]:
            _checked(name, unresolved, {**first, key: value})
    held = spec.data.validation
    require(held, "data.validation", "examples to hold out, on which trials are compared", held)
    plain = {key: known.plain for key, known in search.space.items()}
    config = {**config, "model": config.get("model") or spec.config["model"]}
    config["search"] = {**section, "space": plain}
    return dataclasses.replace(
        spec, config=config, stages=stages, search=search, unresolved=unresolved
    )


def _checked(name: str, config: Mapping[str, Any], values: Mapping[str, Any]) -> Spec:
    try:
        return trial_spec(name, config, values)
    except UserError as error:
        key = str(error).partition(":")[0]
        ours = any(related(key, searched) for searched in values)
        raise UserError(f"{'search.space.' if ours else ''}{error}") from error


def trial_spec(name: str, config: Mapping[str, Any], values: Mapping[str, Any]) -> Spec:
    """The spec of the training run that a search's config becomes with these values."""
    kept = {key: value for key, value in config.items() if key != "search"}
    return parse(name, changed({**kept, "stages": ["train"]}, values))


def _long_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with each name that stands for a section or an attack as a mapping, and one
    attack as a list; without what a written config holds beside its settings."""

    def named(value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    sections = ("data", "model", "method", "optimizer")
    long = {key: named(value) if key in sections else value for key, value in config.items()}
    attacks = long.get("attacks")
    if attacks is not None:
        listed = attacks if isinstance(attacks, list) else [attacks]
        long["attacks"] = [named(attack) for attack in listed]
    return {key: value for key, value in long.items() if key not in ("name", "command")}


def _schema(
    *,
    threat: dict[str, Any],
    data: dict[str, Any],
    seed: int = 0,
    precision: str = "float32",
    model: dict[str, Any] | None = None,
    method: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    attacks: list[Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    stages: list[str] | None = None,
    paper: dict[str, Any] | None = None,
    note: str | None = None,
    search: None = None,
) -> None:
    """The top-level keys of a config and their types."""


def _data(section: Mapping[str, Any]) -> Data:
    own = dict(section)
    extra = own.pop("extra", None)
    source, options = _source(Data, own, "data", ("extra",))
    if extra is not None:
        where = "data.extra"
        other, given = _source(ExtraData, extra, where)
        extra = located(where, ExtraData, other, **given)
        received = (extra.source.image_shape, extra.source.num_classes)
        fits = received[0] == source.image_shape and received[1] <= source.num_classes
        expected = f"images {source.image_shape} of at most {source.num_classes} classes, as data"
        require(fits, where, expected, received)
    return located("data", Data, source, extra=extra, **options)


def _source(
    kind: type, section: Any, where: str, also: tuple[str, ...] = ()
) -> tuple[Dataset, dict[str, Any]]:
    """The data set that a section names, and those of its keys that are fields of `kind`."""
    require(isinstance(section, Mapping), where, "a mapping with 'name'", section)
    shared = {f.name for f in dataclasses.fields(kind)} - {"source", *also}
    known = {k: v for k, v in section.items() if k in shared}
    rest = {k: v for k, v in section.items() if k not in shared}
    source = build(DATASETS, rest, where, also=(*shared, *also))
    return source, arguments(kind, known, where, ("source", *also))


def _train(section: Mapping[str, Any]) -> Train:
    nested = {"schedule": (SCHEDULES, "guided"), "validation_attack": (ATTACKS, None)}
    plain = {k: v for k, v in section.items() if k not in nested}
    values = arguments(Train, plain, "train", tuple(nested), also=tuple(nested))
    for key, (registry, default) in nested.items():
        if key in section or default:
            spec = section.get(key, default)
            values[key] = build(registry, spec, f"train.{key}")  # type: ignore[arg-type]
    return located("train", Train, **values)


def _training_threat(threat: Threat, train: Train | None) -> Threat:
    return threat if train is None or train.eps is None else threat.at(train.eps)


def _method(
    section: Mapping[str, Any], threat: Threat, train: Train | None, seed: int
) -> partial[RobustModel]:
    section = dict(section)
    attack = section.pop("attack", None)
    given = ("network", "threat", "attack", "validation_attack", "ramp_steps", "seed", *FACTS)
    maker = resolve(METHODS, section, "method", given, also=("attack",))
    return partial(
        maker,
        threat=threat,
        validation_attack=None if train is None else train.validation_attack,
        seed=seed,
        attack=None if attack is None else build(ATTACKS, attack, "method.attack"),
    )


def attacks_by_key(attack_list: list[ListedAttack]) -> dict[str, Attack]:
    """Return the attacks of an evaluation by their place in the config, such as "attacks[0]"."""
    return {f"attacks[{place}]": listed.attack for place, listed in enumerate(attack_list)}


def training_attacks(method: Any, train: Train | None) -> dict[str, Attack]:
    """The attacks of a training by their place in the config."""
    found = {"method.attack": method.keywords["attack"]} if method is not None else {}
    if train is not None:
        found["train.validation_attack"] = train.validation_attack
    return {where: attack for where, attack in found.items() if attack is not None}


def attack_files(attacks: Mapping[str, Attack]) -> list[Path]:
    """The files that attacks read, surrogates and saved images. Raises UserError for none."""
    return [file for where, attack in attacks.items() for file in located(where, _files, attack)]


def _files(attack: Attack) -> list[Path]:
    return attack.files


def _paper(paper: Mapping[str, Any]) -> dict[str, Any]:
    """`paper`: a source and fractions, clean and an attack's label each, as numbers."""
    known = dict(paper)
    for key in known.keys() - {"source"}:
        known[key] = number(f"paper.{key}", paper[key])
        require(0 <= known[key] <= 1, f"paper.{key}", "a fraction in [0, 1]", paper[key])
    return known


def _check_inputs(evaluation: EvaluationOptions, model: Mapping[str, Any]) -> None:
    """Lambdas and widths of an evaluation, against the network that the config makes."""
    for name in ("lambdas", "widths") if "name" in model else ():
        values, known, where = getattr(evaluation, name), model.get(name), f"evaluation.{name}"
        if values is None:
            continue
        require(known is not None, where, f"none (the network takes no {name})", values)
        free = name == "lambdas" and model.get("encoding") == "none"
        inside = free or set(values) <= set(known or ())
        require(inside, where, f"some of model.{name} {known}", values)


def _stand_in(
    model: Mapping[str, Any], method: partial[RobustModel], train: Train | None
) -> keras.Model:
    """A network with the inputs of the one that is trained."""
    given = {k: model[k] for k in ("lambdas", "encoding", "widths") if model.get(k) is not None}
    lambdas, widths = (
        convert(f"model.{key}", given.get(key), list[float] | None) for key in ("lambdas", "widths")
    )
    encoding = convert("model.encoding", given.get("encoding", "random"), str)
    conditional = "strength" in getattr(method.func, "network_inputs", ())
    if train is not None and train.init_from is not None and conditional:
        lambdas, encoding = [0.0, 1.0], "none"  # its file has those that count
    small: dict[str, Any] = {"filters": [2], "units": 2, "lambdas": lambdas, "encoding": encoding}
    small["widths"] = widths
    return located("model", MODELS["small_cnn"], (8, 8, 1), 4, **small)
