"""A config as checked objects. Every mistake is answered here, before any data is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import keras

from pipelines.config import changed
from pipelines.exports import Exports
from pipelines.network import named_output, network_maker
from pipelines.objects import (
    FACTS,
    Threats,
    data_of,
    evaluation_of,
    method_of,
    optimizer_of,
    paper_of,
    train_of,
    training_threats,
)
from pipelines.sections import (
    Card,
    Data,
    EvaluationOptions,
    Requirements,
    Search,
    TopLevel,
    Train,
)
from pipelines.space import ranges, searching
from pipelines.threats import make_threats, with_factors
from pipelines.trackers import TRACKERS, Tracker
from tfrobust.attacks import Attack, SavedImages
from tfrobust.data import Split, hold_out
from tfrobust.errors import choose, require
from tfrobust.evaluation import ListedAttack, list_attacks
from tfrobust.evaluation.corruption_accuracy import require_images as require_uncorrupted
from tfrobust.gate import check_threat
from tfrobust.methods import RobustModel
from tfrobust.models import PRECISIONS
from tfrobust.registry import arguments, build, convert, located
from tfrobust.threat import Threat

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
    method: partial[RobustModel] | None
    optimizer: partial[keras.optimizers.Optimizer] | None
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
        train, held = self.data.train, self.data.validation
        expected = f"fewer than the {len(train)} training images"
        require(held < len(train), "data.validation", expected, held)
        return hold_out(train, held, self.seed)[1]


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
    stages = _stages(top.stages)
    require(0 <= top.seed < 2**32, "seed", "an int from 0 to 2**32 - 1", top.seed)
    choose("precision", top.precision, PRECISIONS)
    threats = make_threats(top.threat)
    data = data_of(top.data)
    image_shape = data.source.image_shape
    for threat in threats:
        check_threat(threat, image_shape)
    # A config with a method evaluates the network of its run, whichever stages run now.
    trains = "train" in stages or top.method is not None
    if trains:
        for section in ("method", "optimizer", "train"):
            present = getattr(top, section) is not None
            require(present, section, "a section (the config trains)", None)
    train = None if top.train is None else train_of(top.train, threats, data, trains)
    used = training_threats(threats, train)
    method = None if top.method is None else method_of(top.method, used, train, top.seed)
    _check_training_attacks(training_attacks(method, train), used, image_shape)
    optimizer = None if top.optimizer is None else optimizer_of(top.optimizer)
    train = train if trains else None
    init_from = None if train is None else train.init_from
    expected = f"none of {BEFORE} (the training starts from no file, train.init_from)"
    require(BEFORE not in stages or init_from, "stages", expected, stages)
    network = network_maker(top.model, data.source, trains, init_from)
    if method is not None and network is not None:
        _check_method(method, network, data, top.data.get("augment"))
    evaluation = evaluation_of(top.evaluation or {})
    evaluation.check_conditions(top.model or {})
    on_test, expected = evaluation.split == "test", "test (data.validation holds no images out)"
    require(on_test or data.validation, "evaluation.split", expected, evaluation.split)
    located("evaluation", require_uncorrupted, evaluation.corruptions, image_shape)
    attack_list = list_attacks(top.attacks or [], threats)
    _check_attacks(attack_list, threats[0], image_shape)
    exports, export_attacks = None, []
    if top.export is not None:
        exports = located("export", Exports, **arguments(Exports, top.export, "export"))
        export_attacks = exports.attack_list(threats, evaluation.save)
        located("export", _check_attacks, export_attacks, threats[0], image_shape)
    located("card", Card, **arguments(Card, top.card or {}, "card"))
    if top.paper is not None:
        config = {**config, "paper": paper_of(top.paper)}
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


def _stages(named: Sequence[str] | None) -> list[str]:
    """Return the stages of a run, by default all that need no file to start from."""
    stages = list(RUN_STAGES) if named is None else list(named)
    require(stages, "stages", "at least one stage", stages)
    for stage in stages:
        require(stage != "search", "search", "a section (stages has search)", None)
        choose("stages", stage, (BEFORE, *RUN_STAGES))
    return stages


def _check_training_attacks(
    attacks: Mapping[str, Attack], threats: Threats, image_shape: tuple[int, ...]
) -> None:
    """Raise a UserError unless attacks, by their places in the config, can attack in training."""
    for where, attack in attacks.items():
        makes_images = not isinstance(attack, SavedImages)
        require(makes_images, where, "an attack that makes its images", "saved_images")
        for threat in threats:
            located(where, attack.check, threat, image_shape)
    attack_files(attacks)


def _check_method(
    method: Callable[..., RobustModel], network: Callable[[], keras.Model], data: Data, named: Any
) -> None:
    """Raise a UserError unless the method and the network can be made and fit the augmentations.

    `named` is the section `data.augment`, for the error. The constructors check their values.
    """
    made = located("method", method, network(), ramp_steps=0, **dict.fromkeys(FACTS, 1))
    expected = f"none that mixes labels ({type(made).__name__} needs one for each image)"
    mixes = any(augmentation.mixes for augmentation in data.augment)
    require(made.mixed_labels or not mixes, "data.augment", expected, named)


def _check_attacks(
    attack_list: list[ListedAttack], threat: Threat, image_shape: tuple[int, ...]
) -> None:
    """Raise a UserError unless attacks fit the images, and their files exist.

    `threat` is that of attacks that name none.
    """
    for listed in attack_list:
        located("attacks", listed.attack.check, listed.threat or threat, image_shape)
    attack_files(attacks_by_key(attack_list))


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
    """Return the spec of the run that a trial begins: the config of a search with these values."""
    of_run = {key: value for key, value in config.items() if key not in ("search", "stages")}
    return parse(name, changed(of_run, values))


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


def data_files(spec: Spec) -> list[Path]:
    """Return the files and folders from which the images of a config are read."""
    extra = spec.data.extra
    files: list[Path] = located("data", getattr, spec.data.source, "files")
    return files + ([] if extra is None else located("data.extra", getattr, extra.source, "files"))


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
