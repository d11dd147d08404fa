"""The stage before: the network that training starts from, against the trained one."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

from pipelines.comparison import compare
from pipelines.resolve import load_spec
from pipelines.run_folder import RunFolder
from pipelines.runner import run
from pipelines.stages import Missed
from pipelines.stages.before import Before
from tests.errors import error_line
from tfrobust.record import Record
from tfrobust.report import before_and_after

SIDE = 6


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a config that trains on from a linear network of bright and dark images.

    The network looks at the first pixel as much as at all the others, so that a few attacked values
    decide; training spreads its weights.
    """
    folder = tmp_path_factory.mktemp("mine")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("test", 100)):
        y = rng.integers(0, 2, count)
        noise = 0.1 * rng.normal(size=(count, SIDE, SIDE, 1))
        x = np.clip(0.3 + 0.4 * y[:, None, None, None] + noise, 0, 1)
        arrays |= {f"x_{split}": x.astype(np.float32), f"y_{split}": y}
    np.savez(folder / "images.npz", **arrays)
    network = keras.Sequential(
        [keras.Input((SIDE, SIDE, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    bright = np.ones((SIDE**2, 1), np.float32) / SIDE**2
    network.layers[-1].set_weights([np.hstack([-bright, bright]), np.array([0.6, -0.6])])
    network.save(folder / "bright.keras")
    config = {
        "threat": {"norm": "linf", "eps": 0.15},
        "data": {
            "name": "npz",
            "path": str(folder / "images.npz"),
            "batch_size": 20,
            "validation": 20,
        },
        "method": {"name": "adv", "attack": "fgsm"},
        "optimizer": {"name": "sgd", "learning_rate": 0.3},
        "train": {
            "init_from": str(folder / "bright.keras"),
            "epochs": 4,
            "steps_per_epoch": 20,
            "schedule": "cosine",
            "validation_attack": "fgsm",
        },
        "attacks": {"name": "pgd", "steps": 3},
        "require": {"robust_gain": 0, "clean_loss": 0.05},
        "stages": ["before", "train", "attack_eval", "report"],
    }
    (folder / "on.yaml").write_text(yaml.safe_dump(config))
    return folder / "on.yaml"


@pytest.mark.usefixtures("short_closing")
def test_before_and_after_are_compared_on_the_same_images(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The threshold of the first network is 0.1 too high: eps 0.15 breaks all bright images."""
    folder = run(str(file), [], tmp_path, None, smoke=False)
    before, after = Record.load(folder / "before"), Record.load(folder)
    assert before.training_settings is None and after.training_settings is not None
    assert before.robust_accuracy is not None and after.robust_accuracy is not None
    assert before.clean_accuracy == 1 and before.robust_accuracy < 0.6 < after.robust_accuracy
    gain, loss = after.requirements
    assert (gain.name, loss.name) == ("robust_gain", "clean_loss") and gain.met and loss.met
    assert gain.value == pytest.approx(after.robust_accuracy - before.robust_accuracy)
    assert 0 < gain.bound < gain.value and loss.required == -0.05
    row = f"| worst case | {before.robust_accuracy:.1%} | ".replace("%", " %")
    for text in ((folder / "report" / "report.md"), (folder / "MODEL_CARD.md")):
        assert "## Before and after training" in text.read_text() and row in text.read_text()
    capsys.readouterr()
    compare([folder / "before", folder], None)  # the folder is that of a run
    assert "100.0 %" in capsys.readouterr().out

    # Results that are asked for anew are so on both sides.
    folders = RunFolder(folder)
    assert Before().done(load_spec(str(file), [], smoke=False), folders)
    assert not Before().done(load_spec(str(file), ["evaluation.rerun=true"], smoke=False), folders)

    # A larger gain is judged on the same results; nothing else runs again.
    with pytest.raises(Missed, match="robust_gain: .*required: above "):
        run(str(file), ["require={robust_gain: 0.9}"], tmp_path, None, smoke=False)
    out = capsys.readouterr().out
    for stage in ("before", "train", "attack_eval"):
        assert f"{stage}: done before, skipped" in out

    # To train on once more, the run needs another folder than that of its network.
    line = error_line(lambda: run(str(file), [f"train.init_from={folder}"], tmp_path, None, False))
    assert line.startswith("train.init_from: expected a network outside ")
    assert (folder / "model.keras").is_file() and not (tmp_path / "on.1").exists()

    # Two networks under different attacks are not compared.
    assert len(before_and_after(folder)) == 2
    before.attacks[0].config = {"steps": 4}
    before.save(folder / "before")
    assert before_and_after(folder) == []


def test_a_gain_is_not_judged_without_the_stage_before(file: Path, tmp_path: Path) -> None:
    stages = ["train", "attack_eval"]
    line = error_line(lambda: run(str(file), [], tmp_path, stages, smoke=False))
    assert "before: expected the network before training evaluated with this config" in line
    few = ["attacks={name: pgd, steps: 3, examples: 5}"]
    line = error_line(lambda: run(str(file), few, tmp_path, None, smoke=False))
    assert "require.robust_gain: expected less than -0.04" in line
    assert not (tmp_path / "on").exists()


def test_what_has_no_before_is_refused(file: Path) -> None:
    def line(*changes: str) -> str:
        return error_line(lambda: load_spec(str(file), list(changes), smoke=False))

    new = ["train.init_from=", "model={name: small_cnn, filters: [2], units: 2}"]
    assert "stages: expected none of before" in line(*new)
    without = "stages=[train,attack_eval]"
    assert "require.robust_gain: expected none (stages has no stage before" in line(without)
    assert "robust_gain: expected a fraction from 0" in line("require.robust_gain=-0.1")
    assert "require.robust_gain: expected none (the evaluation has no attacks)" in line(
        "attacks=[]"
    )


def test_a_smoke_run_has_no_before(file: Path) -> None:
    spec = load_spec(str(file), [], smoke=True)
    assert spec.stages == ["train", "attack_eval", "report"] and spec.requirements is None
