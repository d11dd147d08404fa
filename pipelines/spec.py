"""A config as checked objects. Every mistake is answered here, before any data is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import keras

from pipelines.config import changed
from pipelines.exports import Exports
from pipelines.network import named_output, network_maker
from pipelines.sections import (
    Card,
    Data,
    EvaluationOptions,
    ExtraData,
    Requirements,
    Search,
    TopLevel,
    Train,
)
from pipelines.space import ranges, searching
from pipelines.threats import make_threats, with_factors
from pipelines.trackers import TRACKERS, Tracker
from tfrobust.attacks import ATTACKS, Attack, SavedImages
from tfrobust.data import AUGMENTATIONS, DATASETS, Dataset, Split, hold_out
from tfrobust.errors import choose, number, require
from tfrobust.evaluation import Corruptions, ListedAttack, list_attacks
from tfrobust.evaluation.corruption_accuracy import require_images as require_uncorrupted
from tfrobust.gate import check_threat
from tfrobust.io import in_home
from tfrobust.methods import AVERAGINGS, METHODS, RobustModel
from tfrobust.models import PRECISIONS
from tfrobust.registry import arguments, build, convert, located, resolve
from tfrobust.threat import Threat
from tfrobust.training import OPTIMIZERS, SCHEDULES, Guided

Threats = tuple[Threat, ...]
# Arguments of a method that depend on the training data.
FACTS = ("num_examples", "batch_size", "steps_per_epoch")
RUN_STAGES = ("train", "attack_eval", "export", "report")
BEFORE = "before"  # a stage that runs only where a config names it
SEARCH_STAGES = ("search", "report")  # the stages of a config with a section `search`


@dataclasses.dataclass(frozen=True)
class Spec:
    """A run: its config and the objects that the config names.

    The spec of a search has the objects of a trial with the first value of each searched key.

    Attributes:
        name: The name of the run's folder.
        config: The resolved config.
        attack_list: The attacks of the evaluation, in the order in which they run.
        network: A function that returns the network to train, in float32.
        method: A function of a network and of FACTS that returns the method.
        optimizer: A function of a learning rate that returns the optimizer.
        exports: The section `export`; None without one, for a SavedModel that is not attacked.
        export_attacks: The attacks on each exported network.
        search: The section `search`.
        smoke: Whether the run is cut down, on images that are made up.
        unresolved: The config of a search before its references are resolved.
    """

    name: str
    config: dict[str, Any]
    seed: int
    precision: str
    threats: Threats
    data: Data
    attack_list: list[ListedAttack]
    evaluation: EvaluationOptions
    stages: list[str]
    train: Train | None
    network: Callable[[], keras.Model] | None
    method: Callable[..., RobustModel] | None
    optimizer: Callable[..., keras.optimizers.Optimizer] | None
    tracker: Tracker | None = None
    search: Search | None = None
    requirements: Requirements | None = None
    exports: Exports | None = None
    export_attacks: list[ListedAttack] = dataclasses.field(default_factory=list)
    smoke: bool = False
    unresolved: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def evaluated(self) -> Split:
        """The images of the evaluation. Raises a UserError if they cannot be read."""
        if self.evaluation.split == "test":
            return self.data.test
        return located("data", hold_out, self.data.train, self.data.validation, self.seed)[1]


def parse(name: str, config: dict[str, Any]) -> Spec:
    """Return the spec of a resolved config.

    Raises:
        UserError: If anything is wrong. The message has the key's path, what was expected and what
            was received, and the nearest valid name.
    """
    if config.get("search") is not None:
        return _search(name, config)
    config = with_factors(_long_form(config))
    top = TopLevel(**arguments(TopLevel, config, ""))
    stages = list(RUN_STAGES) if top.stages is None else top.stages
    require(stages, "stages", "at least one stage", stages)
    for stage in stages:
        require(stage != "search", "search", "a section (stages has search)", None)
        choose("stages", stage, (BEFORE, *RUN_STAGES))
    require(0 <= top.seed < 2**32, "seed", "an int from 0 to 2**32 - 1", top.seed)
    choose("precision", top.precision, PRECISIONS)
    threats = make_threats(top.threat)
    threat = threats[0]
    data = _data(top.data)
    image_shape = data.source.image_shape
    for each in threats:
        check_threat(each, image_shape)
    # A config with a method evaluates the network of its run, whichever stages run now.
    trains = "train" in stages or top.method is not None
    if trains:
        for section in ("method", "optimizer", "train"):
            present = getattr(top, section) is not None
            require(present, section, "a section (the config trains)", None)
    train = None if top.train is None else _train(top.train, threats, data, trains)
    training_threats = _training_threats(threats, train)
    method = None
    if top.method is not None:
        method = _method(top.method, training_threats, train, top.seed)
    for where, attack in training_attacks(method, train).items():
        makes_images = not isinstance(attack, SavedImages)
        require(makes_images, where, "an attack that makes its images", "saved_images")
        for each in training_threats:
            located(where, attack.check, each, image_shape)
    attack_files(training_attacks(method, train))
    optimizer = None if top.optimizer is None else _optimizer(top.optimizer)
    train = train if trains else None
    init_from = None if train is None else train.init_from
    expected = f"none of {BEFORE} (the training starts from no file, train.init_from)"
    require(BEFORE not in stages or init_from, "stages", expected, stages)
    network = network_maker(top.model, data.source, trains, init_from)
    if method is not None and network is not None:  # the constructors of both check their values
        checked = located("method", method, network(), ramp_steps=0, **dict.fromkeys(FACTS, 1))
        expected = f"none that mixes labels ({type(checked).__name__} needs one for each image)"
        mixes = any(augmentation.mixes for augmentation in data.augment)
        require(
            checked.mixed_labels or not mixes, "data.augment", expected, top.data.get("augment")
        )
    evaluation = _evaluation(top.evaluation or {})
    evaluation.check_conditions(top.model or {})
    on_test, expected = evaluation.split == "test", "test (data.validation holds no images out)"
    require(on_test or data.validation, "evaluation.split", expected, evaluation.split)
    located("evaluation", require_uncorrupted, evaluation.corruptions, image_shape)
    attack_list = list_attacks(top.attacks or [], threats)
    for listed in attack_list:
        located("attacks", listed.attack.check, listed.threat or threat, image_shape)
    attack_files(attacks_by_key(attack_list))
    exports, export_attacks = None, []
    if top.export is not None:
        exports = located("export", Exports, **arguments(Exports, top.export, "export"))
        export_attacks = exports.attack_list(threats, evaluation.save)
        for listed in export_attacks:
            located("export.attacks", listed.attack.check, threat, image_shape)
        located("export", attack_files, attacks_by_key(export_attacks))
    located("card", Card, **arguments(Card, top.card or {}, "card"))
    if top.paper is not None:
        config = {**config, "paper": _paper(top.paper)}
    allowed = trains or top.precision == "float32"
    require(allowed, "precision", "float32 (there is no method to train)", top.precision)
    if init_from is not None:  # the file has the network, whatever the section model says
        model = {"path": init_from, "output": named_output(top.model)}
        config = {**config, "model": {key: name for key, name in model.items() if name is not None}}
    return Spec(
        name=name,
        config=config,
        seed=top.seed,
        precision=top.precision,
        threats=threats,
        data=data,
        attack_list=attack_list,
        evaluation=evaluation,
        stages=stages,
        train=train,
        network=network,
        method=method,
        optimizer=optimizer,
        tracker=None if top.track is None else build(TRACKERS, top.track, "track"),
        requirements=Requirements.of(top.require, stages, bool(attack_list), trains),
        exports=exports,
        export_attacks=export_attacks,
    )


def _search(name: str, config: Mapping[str, Any]) -> Spec:
    """Return the spec of a search.

    Each end of a range and each item of a choice is checked as the config of a run in which the
    other keys have their first value.
    """
    unresolved, config = config, _long_form(changed(config, {}))
    section, stages = config["search"], config.get("stages")
    stages = list(SEARCH_STAGES) if stages is None else convert("stages", stages, list[str])
    require(isinstance(section, Mapping), "search", "a mapping with 'space'", section)
    options = {key: value for key, value in section.items() if key != "space"}
    options = arguments(Search, options, "search", ("space",), ("space",))
    search = located("search", Search, ranges(section.get("space")), **options)
    require("search" in stages, "stages", "search, and report or not (there is a search)", stages)
    for stage in stages:
        choose("stages", stage, SEARCH_STAGES)
    first = {key: values.values[0] for key, values in search.space.items()}
    with searching(first):
        spec = trial_spec(name, unresolved, first)
        for key, values in search.space.items():
            for value in values.values[1:]:
                trial_spec(name, unresolved, {**first, key: value})
    held = spec.data.validation
    require(held, "data.validation", "examples to hold out, on which trials are compared", held)
    plain = {key: values.plain for key, values in search.space.items()}
    config = {**config, "model": config.get("model") or spec.config["model"]}
    config["search"] = {**section, "space": plain}
    return dataclasses.replace(
        spec, config=config, stages=stages, search=search, unresolved=unresolved
    )


def trial_spec(name: str, config: Mapping[str, Any], values: Mapping[str, Any]) -> Spec:
    """Return the spec of a trial's training run: the config of a search with these values."""
    training = {key: value for key, value in config.items() if key != "search"}
    return parse(name, changed({**training, "stages": ["train"]}, values))


def _long_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config without short forms, and without the name and the command of its run.

    A name that stands for a section or an attack becomes a mapping, and a single attack a list.
    """

    def mapping(value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    long = {key: value for key, value in config.items() if key not in ("name", "command")}
    for key in ("data", "model", "method", "optimizer", "track"):
        if key in long:
            long[key] = mapping(long[key])
    attacks = long.get("attacks")
    if attacks is not None:
        attacks = attacks if isinstance(attacks, list) else [attacks]
        long["attacks"] = [mapping(attack) for attack in attacks]
    return long


def _data(section: Mapping[str, Any]) -> Data:
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


def _train(section: Mapping[str, Any], threats: Threats, data: Data, trains: bool) -> Train:
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
    for threat in _training_threats(threats, train):
        check_threat(threat, data.source.image_shape, "train.eps")
    if trains and isinstance(train.schedule, Guided):
        expected = "examples to hold out (train.schedule is guided)"
        require(data.validation, "data.validation", expected, data.validation)
    located("train.schedule", train.schedule.learning_rate, 0.1, 1, train.epochs)
    located("train.schedule", train.schedule.callbacks, 0)
    return train


def _evaluation(section: Mapping[str, Any]) -> EvaluationOptions:
    plain, where = dict(section), "evaluation.corruptions"
    if (corruptions := plain.pop("corruptions", None)) is not None:
        valid = isinstance(corruptions, bool | Mapping)
        require(valid, where, "true, false or a mapping", corruptions)
        if isinstance(corruptions, Mapping):
            corruptions = located(where, Corruptions, **arguments(Corruptions, corruptions, where))
        plain["corruptions"] = corruptions
    options = arguments(EvaluationOptions, plain, "evaluation")
    return located("evaluation", EvaluationOptions, **options)


def _optimizer(section: Mapping[str, Any]) -> partial[keras.optimizers.Optimizer]:
    optimizer = resolve(OPTIMIZERS, section, "optimizer")
    rate = float(located("optimizer", optimizer).learning_rate)
    require(rate > 0, "optimizer.learning_rate", "a number > 0", rate)
    return optimizer


def _training_threats(threats: Threats, train: Train | None) -> Threats:
    if train is None or train.eps is None:
        return threats
    return tuple(threat.at(train.eps) for threat in threats)


def _method(
    section: Mapping[str, Any], threats: Threats, train: Train | None, seed: int
) -> partial[RobustModel]:
    section = dict(section)
    attack = section.pop("attack", None)
    of_train = ("validation_attack", "warmup_steps", "ramp_steps", "averaging")
    filled_in = ("network", "threat", "attack", "seed", *of_train, *FACTS)
    maker = resolve(METHODS, section, "method", filled_in, also=("attack",))
    return partial(
        maker,
        threat=threats if len(threats) > 1 else threats[0],
        validation_attack=None if train is None else train.validation_attack,
        averaging=None if train is None else train.averaging,
        seed=seed,
        attack=None if attack is None else build(ATTACKS, attack, "method.attack"),
    )


def data_files(spec: Spec) -> list[Path]:
    """Return the files and folders of images that the config names."""
    section = spec.config["data"]
    sections = (section, section.get("extra") or {})
    return [in_home(part["path"]) for part in sections if "path" in part]


def attacks_by_key(attack_list: list[ListedAttack]) -> dict[str, Attack]:
    """Return the attacks of an evaluation by their places in the config, such as "attacks[0]"."""
    return {f"attacks[{place}]": listed.attack for place, listed in enumerate(attack_list)}


def training_attacks(method: Any, train: Train | None) -> dict[str, Attack]:
    """Return the attacks of a training by their places in the config."""
    attacks = {"method.attack": method.keywords["attack"]} if method is not None else {}
    if train is not None:
        attacks["train.validation_attack"] = train.validation_attack
    return {where: attack for where, attack in attacks.items() if attack is not None}


def attack_files(attacks: Mapping[str, Attack]) -> list[Path]:
    """Return the files that attacks read: surrogates and saved images.

    Raises UserError if a file does not exist.
    """
    files: list[Path] = []
    for where, attack in attacks.items():
        files += located(where, getattr, attack, "files")
    return files


def _paper(paper: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `paper` with its accuracies as floats; its source stays text."""
    section = dict(paper)
    for key in section.keys() - {"source"}:
        section[key] = number(f"paper.{key}", paper[key])
        require(0 <= section[key] <= 1, f"paper.{key}", "a fraction in [0, 1]", paper[key])
    return section
