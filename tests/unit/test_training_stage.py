"""What a config asks for reaches the training: rates, eps, seeds, images and the best epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipelines.resolve import load_spec
from pipelines.run_folder import RunFolder
from pipelines.spec import Spec
from pipelines.stages import training
from tfrobust import PGD
from tfrobust.methods import RobustModel
from tfrobust.training import Guided

SMALL = [
    "model={name: small_cnn, filters: [2], kernel: 3, units: 4}",
    "seed=3",
    "train.epochs=6",
    "train.epsilon_ramp_epochs=0",
    "train.schedule=constant",
    "train.validation_attack=fgsm",
]
TINY = [
    *SMALL,
    "train.epochs=2",
    "train.steps_per_epoch=1",
    "data.validation=20",
    "data.batch_size=32",
]


def loaded(name: str, *overrides: str) -> Spec:
    return load_spec(name, overrides, smoke=False)


def compiled(name: str, *overrides: str) -> tuple[Spec, RobustModel]:
    """Return a config and its model for epochs of 5 batches."""
    spec = loaded(name, *SMALL, *overrides)
    assert spec.train is not None
    return spec, training._compiled(spec, spec.train, training.splits(spec), 5, 0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], dict[str, Any]]]:
    """Return a list of the images and options for which `batches` is called from now on."""
    calls: list[tuple[list[int], dict[str, Any]]] = []
    real = training.batches

    def noted(split: Any, size: int, **options: Any) -> Any:
        calls.append((split.index.tolist(), options))
        return real(split, size, **options)

    monkeypatch.setattr(training, "batches", noted)
    return calls


def test_epochs_of_a_config_become_steps() -> None:
    """Each of the 5 batches of an epoch has 3 updates here."""
    settings = ["method.replays=3", "train.epsilon_warmup_epochs=1", "train.epsilon_ramp_epochs=2"]
    drop = "train.schedule={name: piecewise, epochs: [2]}"
    spec, model = compiled("digits_free", *settings, drop)
    assert spec.optimizer is not None and (model.warmup_steps, model.ramp_steps) == (5, 10)
    rate, base = model.optimizer._learning_rate, float(spec.optimizer().learning_rate)
    assert [float(rate(step)) / base for step in (29, 30)] == pytest.approx([1, 0.1])


def test_the_seed_and_the_validation_attack_are_those_of_the_config() -> None:
    _, model = compiled("digits_adv", "train.validation_attack={name: pgd, steps: 4}")
    assert model.seed == 3 and model.validation_attack == PGD(steps=4)


def test_a_guided_rate_waits_for_the_whole_eps_and_follows_the_monitor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[Any, ...]] = []
    real = Guided.callbacks

    def noted(self: Guided, *args: Any) -> Any:
        calls.append(args)
        return real(self, *args)

    monkeypatch.setattr(Guided, "callbacks", noted)
    eps = ["train.epochs=6", "train.epsilon_warmup_epochs=1", "train.epsilon_ramp_epochs=2.5"]
    guided = ["train.monitor=val_accuracy", "train.schedule=guided"]
    spec = loaded("digits_adv", *TINY, *eps, *guided)
    calls.clear()
    training.train(spec, RunFolder(tmp_path), 1)
    assert calls == [(4, "val_accuracy")]


def test_training_and_validation_see_their_own_images(
    made: list[tuple[list[int], dict[str, Any]]], tmp_path: Path
) -> None:
    extra = "data.extra={name: synthetic, image_shape: [8, 8, 1], num_classes: 10, train: 64}"
    spec = loaded("digits_adv", *TINY, "data.augment=crop", extra)
    trained, held_out, _ = training.splits(spec)
    training.train(spec, RunFolder(tmp_path), 1)
    ((seen, options),) = [call for call in made if call[1].get("training")]
    ((validated, others),) = [call for call in made if not call[1].get("training")]
    assert seen == trained.index.tolist() and validated == held_out.index.tolist()
    assert options["augment"] == spec.data.augment and options["seed"] == 3
    assert len(options["extra"].split) == 64 and not others


def test_statistics_are_recomputed_on_the_batches_of_their_epoch(
    made: list[tuple[list[int], dict[str, Any]]], tmp_path: Path
) -> None:
    swa = ["data.validation=0", "train.steps_per_epoch=2", "train.averaging=swa"]
    training.train(loaded("digits_adv", *TINY, *swa), RunFolder(tmp_path))
    starts = [(options["seed"], options["first_step"]) for _, options in made]
    assert starts == [(3, 0), (3, 0), (3, 2)]  # of the training, and after each of the two epochs


def test_extra_data_have_the_share_and_weight_of_the_config() -> None:
    extra = "{name: synthetic, image_shape: [8, 8, 1], num_classes: 10, train: 64"
    spec, model = compiled("digits_adv", f"data.extra={extra}, share: 0.25, weight: 0.5}}")
    more = training.splits(spec)[2]
    assert more is not None and (more.share, more.weight) == (0.25, 0.5)
    assert model.num_examples == 1437 + 64


def test_the_monitor_of_the_config_chooses_the_epoch_that_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first of two epochs has the higher score."""
    real, ends, monitors = training.Best.on_epoch_end, [], []

    def scored(self: training.Best, epoch: int, logs: Any = None) -> None:
        ends.append(self.trained.network.get_weights())
        monitors.append(self.monitor)
        real(self, epoch, {self.monitor: -float(epoch)})

    monkeypatch.setattr(training.Best, "on_epoch_end", scored)
    folder = RunFolder(tmp_path)
    training.train(loaded("digits_adv", *TINY, "train.monitor=val_accuracy"), folder)
    kept = keras.saving.load_model(folder.model, compile=False).get_weights()
    assert any((first != last).any() for first, last in zip(*ends, strict=True))
    for weight, expected in zip(kept, ends[0], strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert monitors == ["val_accuracy"] * 2


@pytest.mark.parametrize("seed", [3, 4])
def test_the_seed_of_the_config_decides_the_first_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(keras.utils, "set_random_seed", seeds.append)
    training.train(loaded("digits_adv", *TINY, f"seed={seed}"), RunFolder(tmp_path), 1)
    assert seeds[0] == seed
