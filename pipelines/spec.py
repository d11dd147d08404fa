"""A config mapping to checked objects: every mistake is found here, before any data is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras

from tfrobust.attacks import ATTACKS, PGD, Attack
from tfrobust.data import AUGMENTATIONS, DATASETS, Dataset
from tfrobust.evaluation import Trial
from tfrobust.methods import METHODS, RobustModel
from tfrobust.models import MODELS, PRECISIONS
from tfrobust.registry import UserError, arguments, build, choose, require, resolve
from tfrobust.threat import Threat
from tfrobust.training import OPTIMIZERS, SCHEDULES, Guided, Schedule

STAGES = ("train", "attack_eval", "report", "export")


@dataclasses.dataclass(frozen=True)
class Data:
    """The `data` section: a data set and how it is cut into batches.

    validation: examples held out of the training split, at random. augment: crop or crop_flip.
    """

    source: Dataset
    batch_size: int = 128
    validation: int = 0
    augment: str | None = None

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", "int >= 1", self.batch_size)
        require(self.validation >= 0, "validation", "int >= 0", self.validation)
        if self.augment is not None:
            choose("augment", self.augment, AUGMENTATIONS)


@dataclasses.dataclass(frozen=True)
class Train:
    """The `train` section.

    epsilon_ramp_epochs: eps grows linearly from 0 over so many epochs. steps_per_epoch: None is
    the whole training split. init_from: a run folder or .keras file whose network is trained on.
    """

    epochs: int
    schedule: Schedule
    epsilon_ramp_epochs: float = 0
    validation_attack: Attack = PGD(steps=10)
    steps_per_epoch: int | None = None
    init_from: str | None = None

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "int >= 1", self.epochs)
        require(
            self.epsilon_ramp_epochs >= 0,
            "epsilon_ramp_epochs",
            "a number >= 0",
            self.epsilon_ramp_epochs,
        )
        steps = self.steps_per_epoch
        require(steps is None or steps >= 1, "steps_per_epoch", "int >= 1", steps)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A run: its config and the objects that it names."""

    name: str
    config: dict[str, Any]
    seed: int
    precision: str
    threat: Threat
    data: Data
    trials: list[Trial]
    stages: list[str]
    train: Train | None
    network: Callable[[], keras.Model]  # float32, fresh or as its file has it
    method: Callable[..., RobustModel] | None
    optimizer: Callable[..., keras.optimizers.Optimizer] | None


def parse(name: str, config: dict[str, Any]) -> Spec:
    """The spec of a resolved config. Raises UserError: the key's path, what was expected, what
    came, the nearest valid name."""
    top = arguments(_schema, {k: v for k, v in config.items() if k not in ("name", "command")}, "")
    defaults: dict[str, Any] = {"seed": 0, "precision": "float32", "stages": list(STAGES)}
    top = defaults | top
    stages = top["stages"]
    for stage in stages:
        choose("stages", stage, STAGES)
    require(top["seed"] >= 0, "seed", "int >= 0", top["seed"])
    choose("precision", top["precision"], PRECISIONS)
    threat = _call(Threat, arguments(Threat, top["threat"], "threat"), "threat")
    data = _data(top["data"])
    trains = "train" in stages
    init_from = (top.get("train") or {}).get("init_from") if trains else None
    network = _network(top, data.source, trains, init_from)
    train = method = optimizer = None
    if trains:
        for section in ("method", "optimizer", "train"):
            require(section in top, section, "a section (the stage train is on)", None)
        train = _train(top["train"])
        guided = isinstance(train.schedule, Guided)
        require(
            not guided or data.validation,
            "data.validation",
            "examples to hold out (train.schedule is guided)",
            data.validation,
        )
        method = _method(top["method"], threat, train, top["seed"])
        optimizer = resolve(OPTIMIZERS, top["optimizer"], "optimizer")
        # The constructors check their values: on a small stand-in, at once.
        _named("method", method, _stand_in(), ramp_steps=0)
        _named("optimizer", optimizer)
        _named("train.schedule", train.schedule.learning_rate, 0.1, 1, train.epochs)
    return Spec(
        name=name,
        config=config,
        seed=top["seed"],
        precision=top["precision"],
        threat=threat,
        data=data,
        trials=_trials(entries(top)),
        stages=stages,
        train=train,
        network=network,
        method=method,
        optimizer=optimizer,
    )


def _schema(
    *,
    threat: dict[str, Any],
    data: str | dict[str, Any],
    seed: int = 0,
    precision: str = "float32",
    model: str | dict[str, Any] | None = None,
    method: str | dict[str, Any] | None = None,
    optimizer: str | dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    attacks: str | list[Any] | None = None,
    stages: list[str] | None = None,
    paper: dict[str, Any] | None = None,
    note: str | None = None,
) -> None:
    """The top-level keys of a config and their types."""


def _data(section: str | Mapping[str, Any]) -> Data:
    section = {"name": section} if isinstance(section, str) else dict(section)
    shared = {f.name for f in dataclasses.fields(Data)} - {"source"}
    known = {k: v for k, v in section.items() if k in shared}
    rest = {k: v for k, v in section.items() if k not in shared}
    source = build(DATASETS, rest, "data", also=shared)
    return _call(Data, arguments(Data, known, "data", ("source",)) | {"source": source}, "data")


def _train(section: Mapping[str, Any]) -> Train:
    nested = {"schedule": (SCHEDULES, "guided"), "validation_attack": (ATTACKS, None)}
    plain = {k: v for k, v in section.items() if k not in nested}
    values = arguments(Train, plain, "train", tuple(nested), also=tuple(nested))
    for key, (registry, default) in nested.items():
        if key in section or default:
            spec = section.get(key, default)
            values[key] = build(registry, spec, f"train.{key}")  # type: ignore[arg-type]
    return _call(Train, values, "train")


def _method(
    section: str | Mapping[str, Any], threat: Threat, train: Train, seed: int
) -> partial[RobustModel]:
    section = {"name": section} if isinstance(section, str) else dict(section)
    attack = section.pop("attack", None)
    given = ("network", "threat", "attack", "validation_attack", "ramp_steps", "seed")
    maker = resolve(METHODS, section, "method", given, also=("attack",))
    return partial(
        maker,
        threat=threat,
        validation_attack=train.validation_attack,
        seed=seed,
        attack=None if attack is None else build(ATTACKS, attack, "method.attack"),
    )


def _network(
    top: Mapping[str, Any], source: Dataset, trains: bool, init_from: str | None
) -> Callable[[], keras.Model]:
    section = top.get("model")
    section = {"name": section} if isinstance(section, str) else section
    path = section.get("path") if section else None
    if path is not None:
        require(set(section or {}) == {"path"}, "model", "either a name or a path", section)
        require(
            not trains,
            "model.path",
            "a model.name where the stage train is on (to train on from a file set "
            "train.init_from)",
            path,
        )
    if init_from is not None or path is not None:
        where, file = ("model.path", path) if path is not None else ("train.init_from", init_from)
        found = network_file(where, str(file))
        return lambda: _loaded(where, found, source)
    require(section is not None, "model", "a section with a name or a path", None)
    maker = resolve(MODELS, section, "model", ("image_shape", "num_classes"))  # type: ignore[arg-type]
    make = partial(maker, source.image_shape, source.num_classes)
    return lambda: _named("model", make)


def network_file(where: str, path: str) -> Path:
    """The .keras file that a run folder or a path stands for."""
    given = Path(path)
    file = given / "model.keras" if given.is_dir() else given
    require(
        file.is_file() and file.suffix == ".keras",
        where,
        "a .keras file or a run folder with model.keras",
        path,
    )
    return file


def _loaded(where: str, file: Path, source: Dataset) -> keras.Model:
    try:
        network = keras.saving.load_model(file, compile=False)
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: expected a .keras file, {file} does not load: {line}") from None
    expected = f"images {source.image_shape} to {source.num_classes} logits, as the data has them"
    shapes = (tuple(network.input_shape[1:]), network.output_shape[-1])
    require(shapes == (source.image_shape, source.num_classes), where, expected, shapes)
    return network


def entries(config: Mapping[str, Any]) -> list[Any]:
    """The list of `attacks`: one name stands for a list of one."""
    section = config.get("attacks") or []
    return [section] if isinstance(section, str) else section


def _trials(listed: list[Any]) -> list[Trial]:
    trials = []
    for number, entry in enumerate(listed):
        where = f"attacks[{number}]"
        entry = {"name": entry} if isinstance(entry, str) else entry
        require(isinstance(entry, Mapping), where, "a name or a mapping with 'name'", entry)
        shared = {k: v for k, v in entry.items() if k in ("label", "examples")}
        rest = {k: v for k, v in entry.items() if k not in shared}
        attack = build(ATTACKS, rest, where, also=("label", "examples"))
        checked = arguments(_trial, shared, where)
        examples = checked.get("examples")
        require(examples is None or examples >= 1, f"{where}.examples", "int >= 1", examples)
        trials.append(Trial(attack, checked.get("label") or attack.title, examples))
    names = [trial.name for trial in trials]
    double = next((n for n in names if names.count(n) > 1), None)
    require(double is None, "attacks", "attacks whose labels differ (set `label`)", double)
    return trials


def _trial(*, label: str | None = None, examples: int | None = None) -> None:
    """The keys of an entry of `attacks` beside those of the attack."""


def _stand_in() -> keras.Model:
    return MODELS["small_cnn"]((8, 8, 1), 4, filters=[2], units=2)


def _named(where: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call it; a UserError then starts with where in the config the arguments stand."""
    try:
        return function(*args, **kwargs)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None


def _call(constructor: Callable[..., Any], kwargs: Mapping[str, Any], where: str) -> Any:
    return _named(where, constructor, **kwargs)
