"""Runs with the ingredients of today's recipes: they resume to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.resolve import load_spec
from pipelines.run_folder import RunFolder
from pipelines.stages import training
from tests.e2e.runs import assert_same_weights, history
from tfrobust.errors import UserError

SETTINGS = [
    "train.epochs=3",
    "train.steps_per_epoch=3",
    "train.epsilon_ramp_epochs=0",
    "train.validation_attack={name: pgd, steps: 2}",
    "model={name: small_resnet, groups: [4]}",
]
RECIPES = {
    "fast": [
        "method.label_smoothing=0.4",
        "data.validation=100",
        "data.augment=[{name: crop, padding: 2, mode: reflect}, mixup]",
        "optimizer={name: torch_sgd, learning_rate: 0.1}",
        "train.schedule=one_cycle",
        "train.averaging={name: ema, decay: 0.9, start_epoch: 1}",
    ],
    "swa": [
        "data.validation=0",
        "data.augment=[crop, rand_augment, cutmix, random_erasing]",
        "train.schedule={name: one_cycle, by_epoch: true, shape: linear}",
        "train.averaging={name: swa, start_epoch: 1}",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_resumes_to_the_bit(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is stopped after its second epoch ends like one that is not.

    Without validation the average at the last epoch is kept.
    """
    spec = load_spec("digits_adv", [*SETTINGS, *RECIPES[recipe]], smoke=False)
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    for folder, epochs in ((straight, None), (cut, 2), (cut, None)):
        training.train(spec, RunFolder(folder), epochs)
    assert_same_weights(straight, cut)
    rows = history(cut)
    assert len(rows) == 3 and ("val_accuracy" in rows[0]) == (spec.data.validation > 0)
    notice = "no validation (data.validation is 0): the last epoch is kept"
    assert (notice in capsys.readouterr().out) == (spec.data.validation == 0)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["data.augment=[crop, mixup]", "method={name: mart, beta: 1}"],
            "data.augment: expected none that mixes labels .Mart needs one for each image",
        ),
        (["data.augment=[crop, mixup, cutmix]"], "data.augment: expected one that mixes"),
        (["data.augment=[crop, {name: rand_augment, magnitude: 2}]"], r"data.augment\[1\].magni"),
        (
            ["data.augment={name: crop, mode: wrap}"],
            "data.augment.mode: expected one of reflect, z",
        ),
        (["train.averaging={name: ema, decay: 1}"], "train.averaging.decay: expected a number in"),
        (["train.averaging={name: swa, start_epoch: 40}"], "train.averaging.start_epoch: expected"),
        (["data.validation=0", "train.schedule=guided"], "data.validation: expected examples to h"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        load_spec("digits_adv", overrides, smoke=False)
