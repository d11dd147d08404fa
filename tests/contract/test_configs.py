"""Every config parses, and its network and method are built, in one process."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from pipelines import config as configs
from pipelines import suite_runner
from pipelines.smoke_runs import smoke
from pipelines.spec import Spec, parse
from pipelines.stages.training import splits
from pipelines.suite import Member, Suite, load_suite
from tests.products import slow_but
from tfrobust.errors import UserError
from tfrobust.methods import METHODS

# Overrides for what only a user has: here synthetic images of the right shape.
USER_SETTINGS = {
    "cifar10_rst": ["data.extra={name: synthetic, image_shape: [32, 32, 3], num_classes: 10}"],
    "cifar10_trades_generated": [
        "data.extra={name: synthetic, image_shape: [32, 32, 3], num_classes: 10, share: 0.7}"
    ],
    "digits_finetune": ["train.init_from="],
    "folder_finetune": ["data={name: synthetic, like: cifar10}", "model.weights=none"],
}
# The smallest suite, a grid with budgets, and one of conditional networks.
FAST_SUITES = ("digits_table", "cifar10_table1", "stl10_oat_frontier")
THIN = {
    "keras_application": ["model.application=MobileNet"],
    "wide_resnet": ["model.depth=10", "model.width=1"],
    "resnet": ["model.depth=18", "model.width=1"],
    "preact_resnet": ["model.depth=18", "model.width=1"],
    "small_resnet": ["model.groups=[2]"],
    "iaat_wide_resnet": ["model.depth=8", "model.width=1"],
}


TINY = ["model={name: small_cnn, filters: [2], units: 2}"]
FILLED_IN = ("evaluate", "harden")  # configs that need a network and images of the user
RUNS = [name for name in configs.available() if name not in FILLED_IN]


@functools.cache
def model_of(name: str) -> dict[str, Any]:
    """Return the section `model` of a config."""
    return configs.load(configs.find(name))["model"]


def network_kind(name: str) -> str:
    """Return the section `model` of a config without depth and width, as text."""
    model = model_of(name)
    return configs.dump({key: model[key] for key in sorted(model.keys() - {"depth", "width"})})


@functools.cache
def first_configs() -> dict[str, str]:
    """Return the first config of each `network_kind`."""
    return {network_kind(name): name for name in reversed(RUNS)}


@functools.cache
def spec_of(name: str) -> Spec:
    """Return the spec of a config with a small network, as the full one takes seconds.

    It is thin, and tiny where the network of an earlier config is of the same `network_kind`.
    """
    model = model_of(name)
    again = first_configs()[network_kind(name)] != name and "lambdas" not in model
    small = TINY if again and model["name"] != "mlp" else THIN.get(model["name"], [])
    return parse(name, configs.load(configs.find(name), [*small, *USER_SETTINGS.get(name, [])]))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_config_builds_its_network_in_full_size(name: str) -> None:
    parse(name, configs.load(configs.find(name), USER_SETTINGS.get(name, [])))


@pytest.mark.parametrize("name", RUNS)
def test_every_config_builds_its_network_and_method(name: str) -> None:
    spec = spec_of(name)
    assert spec.method is not None and spec.train is not None and spec.attack_list
    facts = {"num_examples": 9, "batch_size": 3, "steps_per_epoch": 3}
    model = spec.method(spec.network(), ramp_steps=1, **facts)
    source = spec.data.source
    image = model.network.input
    image = image["image"] if isinstance(image, dict) else image
    assert image.shape[1:] == source.image_shape
    assert model.network.output_shape == (None, source.num_classes)
    assert smoke(spec).config["data"]["name"] == "synthetic"


@pytest.mark.parametrize("name", slow_but(configs.suites(), FAST_SUITES))
def test_every_member_of_a_suite_builds(name: str) -> None:
    """One member of each grid builds, and one under each budget."""
    runs = Path("runs")

    def check(member: Member, suite: Suite) -> None:
        model = configs.load(configs.find(member.config), member.overrides)["model"]
        thin = THIN.get(model["name"], []) if "lambdas" in model else TINY
        member = dataclasses.replace(member, overrides=(*member.overrides, *thin))
        suite_runner.check(member, suite, runs / suite.name, smoke=False)

    suite = load_suite(configs.find(name), [], runs)
    assert len({member.name for member in suite.members}) == len(suite.members)
    checked = set()
    for member in suite.members:
        kind = member.config, *(override.partition("=")[0] for override in member.overrides)
        if kind not in checked:
            checked.add(kind)
            check(member, suite)
    for budget in suite.file.budgets:
        budgeted = load_suite(configs.find(name), [f"budget={budget}"], runs)
        check(budgeted.members[0], budgeted)


def test_all_methods_of_the_cpu_hour_have_the_same_network_and_help() -> None:
    """They differ in the arguments of the method and in the number of epochs alone.

    The library's own recipe has another optimizer, and may have other ingredients.
    """

    def shared(name: str) -> dict[str, Any]:
        config = configs.load(configs.find(name))
        config["train"].pop("epochs")
        config["method"] = {key: config["method"][key] for key in ("label_smoothing", "l2")}
        return config

    names = [name for name in configs.available() if name.startswith("cpu_hour_")]
    own = "cpu_hour_muon"
    first, *others = (shared(name) for name in names if name != own)
    assert first["require"] == shared(own)["require"] == {"training_minutes": 60}
    assert len(others) == 14 and shared(own)["threat"] == first["threat"]
    assert all(other == first for other in others)
    suite = load_suite(configs.find("cifar10_cpu_hour"), [], Path("runs"))
    assert sorted(member.config for member in suite.members) == names and suite.file.jobs == 1


def test_every_method_has_a_config_on_digits() -> None:
    assert {f"digits_{name}" for name in METHODS} <= set(configs.available())


def test_train_eps_changes_only_the_training() -> None:
    spec = parse("digits_adv", configs.load(configs.find("digits_adv"), ["train.eps=0.05"]))
    assert spec.method is not None and spec.network is not None
    model = spec.method(spec.network(), ramp_steps=0)
    assert (model.threat.eps, spec.threats[0].eps) == (0.05, 0.15)


def test_an_evaluation_may_see_the_images_that_validation_holds_out() -> None:
    config = configs.load(configs.find("digits_adv"), ["evaluation.split=validation", "seed=3"])
    spec = parse("digits_adv", config)
    trained, held_out, _ = splits(spec)
    assert spec.evaluated.index.tolist() == held_out.index.tolist()
    assert not set(spec.evaluated.index.tolist()) & set(trained.index.tolist())
    config["data"]["validation"] = 0
    with pytest.raises(UserError, match=r"evaluation.split: expected test \(data.validation holds"):
        parse("digits_adv", config)


def test_constants_are_those_of_the_papers() -> None:
    """They are in appendix B of ATLAS and, for generated images, in Wang et al. (2023)."""
    mnist, cifar = spec_of("mnist_atlas"), spec_of("cifar10_atlas")
    assert mnist.method.keywords["alpha"] == 1e-5 and mnist.method.keywords["beta"] == 0.3
    assert mnist.threats[0].eps == 0.3 and mnist.data.batch_size == 128
    assert cifar.method.keywords["alpha"] == 2e-4 and cifar.method.keywords["beta"] == 5.0
    assert cifar.method.keywords["l2"] == 2e-4 and cifar.threats[0].eps == 8 / 255
    assert cifar.train.epsilon_ramp_epochs == 15 and cifar.data.validation == 5000
    generated = spec_of("cifar10_trades_generated")
    assert generated.method.keywords["beta"] == 5.0 and generated.train.steps_per_epoch == 98
    assert generated.data.extra.share == 0.7 and generated.train.epsilon_ramp_epochs == 0
    for name, title in [
        ("mnist_adv_20step", "PGD-20 step 0.01"),
        ("cifar100_adv_5step", "PGD-5 step 0.007"),
    ]:
        assert spec_of(name).method.keywords["attack"].title == title


@pytest.mark.parametrize(
    ("name", "updates", "last_rate"),
    [
        ("cifar10_fat", 46_800, 5e-4),
        ("cifar10_free", 80_000, 1e-3),
        ("cifar10_llr", 100_000, 2e-4),
        ("cifar10_mart", 46_800, 1e-5),
        ("cifar10_mma", 50_000, 9e-3),
        ("cifar10_rst", 39_200, 0.0),
        ("cifar10_squeeze", 46_800, 1e-3),
    ],
)
def test_number_of_updates_and_last_rate_are_those_of_the_authors(
    name: str, updates: int, last_rate: float
) -> None:
    """Both are in the authors' code; LLR's rate is twice theirs, as the loss is half of theirs."""
    spec = spec_of(name)
    steps = spec.train.steps_per_epoch or (50_000 - spec.data.validation) // spec.data.batch_size
    steps *= spec.method.keywords.get("replays", 1)
    assert steps * spec.train.epochs == updates
    base = float(spec.optimizer().learning_rate)
    rate = spec.train.schedule.learning_rate(base, steps, spec.train.epochs)
    assert float(rate(updates - 1)) == pytest.approx(last_rate, rel=1e-5, abs=1e-8)
