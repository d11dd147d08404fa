"""`tfrobust harden`: a hardened network from a file and a folder; each mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from pipelines import command_line, config
from pipelines.harden import filled_in
from tests.e2e.conftest import Command
from tests.errors import error_line

SIDE = 8
TINY = [  # a recipe of seconds, after which bright images are right under attack too
    "train.epochs=3", "train.steps_per_epoch=20", "optimizer.learning_rate=0.1",
    "attacks={name: pgd, steps: 3}", "evaluation.corruptions=false",
]  # fmt: skip


def network(*, bright_first: bool = False, channels: int = 3, classes: int = 2) -> keras.Model:
    """Return a network that calls an image bright (class 0 of bright, dark) above a mean of 0.6."""
    size = SIDE**2 * channels
    model = keras.Sequential([keras.Input((SIDE, SIDE, channels)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(classes))
    weights, bias = np.zeros((size, classes)), np.zeros(classes)
    bright = 0 if bright_first else 1
    weights[:, bright], bias[bright] = 2 / size, -1.2
    model.layers[-1].set_weights([weights, bias])
    return model


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `photos`, 60 bright and 60 dark images, and with networks.

    The classes are bright and dark, in the order of their names.
    """
    folder = tmp_path_factory.mktemp("mine")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20)):
        for name, level in (("bright", 0.7), ("dark", 0.3)):
            (folder / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(level, 0.05, (SIDE, SIDE, 3)), 0, 1)
                image = Image.fromarray(np.rint(255 * pixels).astype(np.uint8))
                image.save(folder / "photos" / split / name / f"{number}.png")
    network(bright_first=True).save(folder / "good.keras")
    network().save(folder / "swapped.keras")
    network(channels=1).save(folder / "grey.keras")
    network(classes=5, bright_first=True).save(folder / "five.keras")
    softmax = keras.Sequential([network(bright_first=True), keras.layers.Softmax()])
    softmax.save(folder / "softmax.keras")
    (folder / "text.keras").write_text("no network")
    (folder / "tested").mkdir()
    (folder / "tested" / "test").symlink_to(folder / "photos" / "test")
    return folder


@pytest.fixture
def harden(command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return `command` for `tfrobust harden`."""
    run = command_line.run_command

    def run_harden(_: str, argv: list[str], program: str) -> None:
        run("harden", argv, program)

    monkeypatch.setattr(command_line, "run_command", run_harden)
    return command


@pytest.mark.usefixtures("short_closing")
@pytest.mark.slow
def test_the_report_has_the_network_before_and_after(
    mine: Path, harden: Command, tmp_path: Path
) -> None:
    """The mean of a bright image is 0.7 and the threshold 0.6: eps 0.15 breaks all of them."""
    sets = [word for override in TINY for word in ("--set", override)]
    arguments = [str(mine / "good.keras"), "--data", str(mine / "photos"), "--eps", "0.15", *sets]
    first = harden(*arguments)
    assert first.returncode == 0, first.stderr
    assert "== harden: before (1 of 6)" in first.stdout and "met: robust_gain" in first.stdout
    folder = tmp_path / "runs" / "harden"
    settings = config.read(folder / "config.yaml")
    assert settings["data"]["image_size"] == SIDE and settings["data"]["validation"] == 16
    before, after = (
        json.loads((part / "eval.json").read_text()) for part in (folder / "before", folder)
    )
    assert before["clean_accuracy"] == after["clean_accuracy"] == 1
    assert before["robust_accuracy"] == 0.5 and after["robust_accuracy"] > 0.9
    assert (folder / "saved_model").is_dir() and (folder / "MODEL_CARD.md").is_file()
    again = harden(*arguments)
    assert again.returncode == 0 and again.stdout.count("done before, skipped") == 6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("good.keras --eps 0.1", "--data: expected a value"),
        ("good.keras --data photos", "--eps: expected a value (4/255, say), received none"),
        ("--data photos --eps 0.1", "MODEL: expected one network, received none"),
        ("good.keras --data photos --eps 4", "did you mean 4/255?"),
        ("good.keras --data photos --eps 0", "threat.eps: expected a number > 0"),
        ("good.keras --data photo --eps 0.1", "no such folder (did you mean 'photos'?)"),
        ("good.keras --data photos/train --eps 0.1", "no train, test or val"),
        ("good.keras --data tested --eps 0.1", "expected a data set with training images"),
        ("god.keras --data photos --eps 0.1", "no such file (did you mean 'good.keras'?)"),
        ("text.keras --data photos --eps 0.1", "train.init_from: expected a .keras or .h5 file"),
        ("softmax.keras --data photos --eps 0.1", "logits.keras"),
        ("five.keras --data photos --eps 0.1", "to 2 logits, as the data has them"),
        ("grey.keras --data photos --eps 0.1", "a network of square colour images"),
        ("swapped.keras --data photos --eps 0.1", "if its logits stand for dark, bright"),
        ("good.keras --data photos --eps 0.1 --set train.epoch=3", "did you mean 'epochs'?"),
        ("good.keras --data photos --eps 0.1 --date x", "did you mean '--data'?"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: str, line: str, mine: Path, harden: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(mine)
    outcome = harden(*arguments.split())
    assert outcome.returncode == 2 and line in outcome.stderr, outcome.stderr
    assert outcome.stderr.startswith("error: ") and outcome.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_file_that_may_not_be_read_is_one_line(
    mine: Path, harden: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "good.keras")

    monkeypatch.setattr("pipelines.harden.load_keras", refuse)
    arguments = [str(mine / "good.keras"), "--data", str(mine / "photos"), "--eps", "0.1"]
    line = "error: good.keras: expected a place to read or write: Permission denied\n"
    assert harden(*arguments).stderr == line


def test_what_the_user_sets_is_not_filled_in(mine: Path) -> None:
    given = [f"train.init_from={mine / 'good.keras'}", "threat.eps=0.1", "data.name=folder",
             f"data.path={mine / 'photos'}"]  # fmt: skip
    assert filled_in(given) == [
        "data.image_size=8", "data.validation=16", *given,
    ]  # fmt: skip
    chosen = [*given, "data.image_size=8", "data.validation=4", "data.batch_size=10"]
    assert filled_in(chosen) == chosen
    whole = [*given, "data={name: digits, batch_size: 64, validation: 60}", "train.init_from="]
    assert "train.init_from" in error_line(lambda: filled_in(whole))
