"""Every method through every stage, on few images: the files of a run and what resumes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import config as configs
from pipelines.run_folder import RunFolder
from pipelines.runner import run
from tests.e2e.runs import assert_same_weights, history
from tests.products import slow_but
from tfrobust.errors import UserError
from tfrobust.methods import METHODS
from tfrobust.record import Record
from tfrobust.report import load_run
from tfrobust.report.text import number
from tfrobust.training import checkpoint

ONE_STEP = [
    "train.epochs=1",
    "train.epsilon_ramp_epochs=0",
    "train.steps_per_epoch=1",
    "attacks=fgsm",
]


def smoke(name: str, workdir: Path, *overrides: str, stages: list[str] | None = None) -> Path:
    """Run a config, or some of its stages, as a smoke run; return its folder."""
    return run(name, list(overrides), workdir, stages, smoke=True)


def load(folder: Path) -> keras.Model:
    """Return the network in a run folder."""
    return keras.saving.load_model(folder / "model.keras", compile=False)


@pytest.mark.parametrize("method", slow_but(METHODS, ["atlas"]))
def test_every_method_through_every_stage(method: str, tmp_path: Path) -> None:
    folder = smoke(f"digits_{method}", tmp_path)

    config = configs.read(folder / "config.yaml")
    assert config["method"]["name"] == method
    assert config["command"] == f"python -m pipelines.run digits_{method} --smoke"

    rows = history(folder)
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "2"), ("1", "4")]
    columns = ["finished_at", "val_robust_accuracy", "val_jacobian"]
    for column in [*columns, "seconds_per_batch", "training_seconds", "validation_share"]:
        assert all(row[column] for row in rows), column
    assert ("jacobian" in rows[0]) == (method in ("jac", "atlas", "trades_jac"))

    evaluation = json.loads((folder / "eval.json").read_text())
    flags = np.load(folder / "flags.npz")
    assert evaluation["examples"] == len(flags["index"]) == 32
    assert evaluation["clean_accuracy"] == flags["clean"].mean()
    robust = flags["clean"].copy()
    for attack in evaluation["attacks"]:
        assert attack["robust_accuracy"] == flags[attack["name"]].mean()
        robust &= flags[attack["name"]]
    assert evaluation["robust_accuracy"] == robust.mean()
    assert set(evaluation["versions"]) == {"tfrobust", "tensorflow", "keras", "numpy", "python"}
    threat = {"norm": "linf", "eps": 0.15, "box": [0.0, 1.0]}
    assert evaluation["threat"] == threat and evaluation["seed"] == 0
    settings = evaluation["training_settings"]
    page = (folder / "report" / "index.html").read_text()
    assert settings["method"]["name"] == method and settings["method"]["label_smoothing"] == 0
    assert settings["optimizer"]["nesterov"] is False, "a default has to be in the record"
    attack = METHODS[method].default_attack
    assert (attack is None) == ("attack" not in settings) == ("attack in training" not in page)
    assert settings["train"]["checkpoint_minutes"] == 10
    schedule = settings["schedule"]
    assert all(f"{key} {number(schedule[key])}" in page for key in schedule.keys() - {"name"})
    if method == "atlas":  # its config names no attack
        fgsm = {"name": "fgsm", "loss": "cross_entropy", "start": "uniform", "step_scale": 1.25}
        assert settings["attack"].items() >= fgsm.items()
        assert settings["validation_attack"]["name"] == "pgd"
    written = {key: config["optimizer"][key] for key in ("learning_rate", "momentum")}
    assert settings["optimizer"] == {"name": "sgd", "nesterov": False} | written

    served = tf.saved_model.load(str(folder / "saved_model"))
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    if method == "oat":
        assert [row["lambda"] for row in evaluation["curve"]] == [1.0, 0.4, 0.3, 0.2, 0.1, 0.0]
        images = {"image": images, "strength": np.float32([0.0, 0.2, 1.0])}
    np.testing.assert_allclose(served.serve(images), load(folder)(images), rtol=1e-5, atol=1e-5)
    tables = {"iaat": "radius", "mma": "margin"}
    assert (folder / "extremes.npz").is_file() == (method in tables)
    assert (f"{tables.get(method)}_q50" in rows[0]) == (method in tables)

    assert "nesterov False" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    assert (folder / "report" / "report.md").read_text().startswith("#")
    for part in ("train", "validation", "attack_eval"):
        assert len(list((folder / "tensorboard" / part).glob("events*"))) == 1
    assert (folder / "valley.npz").is_file() and (folder / "probes.npz").is_file()
    assert (folder / "landscape.npz").is_file() == flags["clean"].any()
    assert [row["examples"] for row in evaluation["eps_curve"]] == [32] * 8


@pytest.mark.slow
@pytest.mark.usefixtures("short_closing")
def test_a_network_with_widths_through_every_stage(tmp_path: Path) -> None:
    """The network is evaluated at both widths in turn, and served at any width."""
    overrides = ["evaluation.lambdas=[1.0, 0.0]", "evaluation.widths=[0.5, 1.0]", "attacks=fgsm"]
    folder = smoke("digits_oats", tmp_path, *overrides)
    evaluation = json.loads((folder / "eval.json").read_text())
    curve = evaluation["curve"]
    points = [(row["width"], row["lambda"]) for row in curve]
    assert points == [(0.5, 1.0), (0.5, 0.0), (1.0, 1.0), (1.0, 0.0)]
    assert "<th scope=row>0.5</th><td>1</td>" in (folder / "report" / "index.html").read_text()
    served = tf.saved_model.load(str(folder / "saved_model"))
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    inputs = {"image": images, "strength": np.ones(2, np.float32), "width": np.float32([0.5, 0.75])}
    np.testing.assert_allclose(served.serve(inputs), load(folder)(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("short_closing")
def test_finished_stages_are_skipped_and_changed_ones_run(
    smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "digits_adv")
    weights = (folder / "model.keras").read_bytes()
    capsys.readouterr()

    smoke("digits_adv", tmp_path, "attacks=fgsm")
    assert capsys.readouterr().out.count("done before, skipped") == 4

    smoke("digits_adv", tmp_path, "attacks={name: pgd, steps: 2}")
    assert capsys.readouterr().out.count("done before, skipped") == 2  # train, export
    evaluation = json.loads((folder / "eval.json").read_text())
    assert [attack["name"] for attack in evaluation["attacks"]] == ["PGD-2"]
    assert (folder / "model.keras").read_bytes() == weights

    smoke("digits_adv", tmp_path, "seed=1", stages=["train"])
    assert "the former run is kept in" in capsys.readouterr().out
    assert (tmp_path / "digits_adv.1" / "model.keras").read_bytes() == weights
    assert (folder / "model.keras").read_bytes() != weights


def test_loss_that_is_not_finite_stops_after_its_rollbacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is one line that names the batch."""
    far = ["optimizer.learning_rate=1e35", "train.schedule=constant"]
    for count in (1, 0):  # the number of rollbacks is for all starts together
        with pytest.raises(UserError, match="not finite in .* epoch 1.* step 0; lower") as error:
            smoke("digits_adv", tmp_path, *far, "train.rollbacks=1", stages=["train"])
        assert "\n" not in str(error.value)
        assert capsys.readouterr().out.count("going on from there") == count


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["guided", "cosine"])
def test_each_rollback_halves_the_rate_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    """The loss is not finite in batch 1, before the first checkpoint, and in batches 3 and 4."""
    failing, steps = {1, 3, 4}, [0]
    finite, on_train_batch_end = checkpoint._finite, checkpoint.Resume.on_train_batch_end

    def fails_once(logs: Any, name: str) -> bool:
        if name == "loss" and steps[-1] in failing:
            failing.remove(steps[-1])
            return False
        return finite(logs, name)

    def counted(self: Any, batch: int, logs: Any = None) -> None:
        steps.append(self.current_epoch * self.steps + self.first_batch + batch + 1)
        on_train_batch_end(self, batch, logs)

    monkeypatch.setattr(checkpoint, "_finite", fails_once)
    monkeypatch.setattr(checkpoint.Resume, "on_train_batch_end", counted)
    sets = [f"train.schedule={schedule}", "train.rollbacks=3", "optimizer.learning_rate=0.08"]
    folder = smoke("digits_adv", tmp_path, *sets, stages=["train"])
    assert not failing
    note = json.loads((folder / "checkpoints/step-000000004/note.json").read_text())
    assert note["rollbacks"] == 3
    assert "3" in (folder / "checkpoints" / "rollbacks.txt").read_text()
    rates = [float(row["learning_rate"]) for row in history(folder)]
    # Epoch 0 ends at half the rate, epoch 1 at an eighth; a cosine is half of that in its middle.
    assert rates == pytest.approx([0.04, 0.005 if schedule == "cosine" else 0.01])


@pytest.mark.usefixtures("short_closing")
def test_deleted_files_are_made_again(smoke_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "digits_adv")
    (folder / "eval.json").unlink()
    variables = folder / "saved_model" / "variables"
    (variables / "variables.index").unlink()
    smoke("digits_adv", tmp_path, "attacks=fgsm")
    assert (folder / "eval.json").is_file()
    assert (variables / "variables.index").is_file()
    (data,) = variables.glob("*.data*")
    whole = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-1])  # a copy of the folder was cut off
    smoke("digits_adv", tmp_path, "attacks=fgsm")
    assert data.stat().st_size == whole


@pytest.mark.usefixtures("short_closing")
@pytest.mark.parametrize("name", ["model.keras", "flags.npz", "eval.json", "history.csv"])
def test_files_that_are_damaged_or_edited_are_made_again(
    smoke_run: Path, tmp_path: Path, name: str
) -> None:
    """A copy of the folder was cut off, or a hand wrote another accuracy."""
    folder = shutil.copytree(smoke_run, tmp_path / "digits_adv")
    file, clean = folder / name, Record.load(smoke_run).clean_accuracy
    if name == "eval.json":
        content = json.loads(file.read_text()) | {"clean_accuracy": 1.0}
        file.write_text(json.dumps(content))
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    smoke("digits_adv", tmp_path, "attacks=fgsm")
    assert load_run(folder).evaluation.clean_accuracy == clean
    assert len(history(folder)) == len(history(smoke_run))
    assert_same_weights(folder, smoke_run)


def test_folder_of_another_run_is_refused(smoke_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "digits_adv")
    (folder / "eval.json").unlink()
    with pytest.raises(UserError, match="trained with another"):
        smoke("digits_adv", tmp_path, "seed=5", stages=["report"])
    with pytest.raises(UserError, match="run the stage attack_eval first"):
        smoke("digits_adv", tmp_path, "attacks=fgsm", stages=["report"])
    marks = RunFolder(folder)
    begun = marks.begun("train")
    assert begun is not None
    marks.mark("train", begun, done=False)  # stopped, beside the network of a former training
    with pytest.raises(UserError, match="expected a finished training, received one that was"):
        smoke("digits_adv", tmp_path, "attacks=fgsm", stages=["attack_eval"])
    (folder / "config.yaml").write_text("name: digits_adv\ncommand: a real run\n")
    with pytest.raises(UserError, match="received one with a real run"):
        smoke("digits_adv", tmp_path, "seed=5")
    (folder / "stages.json").unlink()
    with pytest.raises(UserError, match="received one with a real run"):
        smoke("digits_adv", tmp_path)


@pytest.mark.usefixtures("short_closing")
@pytest.mark.slow
@pytest.mark.parametrize("source", [".", "model.keras"])
def test_init_from_continues_from_a_run_or_a_keras_file(
    smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    settings = [*ONE_STEP, f"train.init_from={smoke_run / source}", "optimizer.learning_rate=1e-9"]
    hardened = run("digits_adv", settings, tmp_path, ["train", "attack_eval"], smoke=False)
    for before, after in zip(load(smoke_run).weights, load(hardened).weights, strict=True):
        assert before.path == after.path
        np.testing.assert_allclose(before.numpy(), after.numpy(), atol=1e-6)
    capsys.readouterr()
    # With fewer stages it is the same run, so the hardened network has been evaluated.
    run("digits_adv", [*settings, "stages=[attack_eval]"], tmp_path, None, smoke=False)
    assert "attack_eval: done before" in capsys.readouterr().out


@pytest.mark.usefixtures("short_closing")
@pytest.mark.slow
def test_init_from_takes_one_output_of_a_network_of_any_size(tmp_path: Path) -> None:
    image = keras.Input((None, None, 1))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    heads = [keras.layers.Dense(size, name=name)(pooled) for name, size in (("a", 3), ("b", 10))]
    keras.Model(image, heads).save(tmp_path / "two.keras")
    settings = [*ONE_STEP, f"train.init_from={tmp_path / 'two.keras'}"]
    with pytest.raises(UserError, match="train.init_from: .* received 2: a, b; name that of the "):
        run("digits_adv", settings, tmp_path, ["train"], smoke=False)
    with pytest.raises(UserError, match="train.init_from: .*received ..None, None, 1., 3."):
        run("digits_adv", [*settings, "model.output=a"], tmp_path, ["train"], smoke=False)
    assert [path.name for path in tmp_path.iterdir()] == ["two.keras"]  # nothing was begun
    settings.append("model.output=b")
    folder = run("digits_adv", settings, tmp_path, ["train", "attack_eval", "export"], smoke=False)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["digits_adv"]
    network = load(folder)
    assert network.input_shape == (None, None, None, 1) and network.output_shape == (None, 10)
    assert (folder / "saved_model" / "saved_model.pb").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_and_leaves_a_float32_network(
    tmp_path: Path, precision: str
) -> None:
    folder = smoke("digits_atlas", tmp_path, f"precision={precision}", stages=["train"])
    assert {layer.dtype_policy.name for layer in load(folder).layers} == {"float32"}


def test_training_without_training_images_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_test=np.zeros((4, 8, 8, 1), np.uint8), y_test=np.arange(4))
    data = f"data={{name: npz, path: {tmp_path / 'mine.npz'}, batch_size: 2}}"
    with pytest.raises(UserError, match="data: expected a data set with training images"):
        run("digits_adv", [data, "train.schedule=constant"], tmp_path, ["train"], smoke=False)


@pytest.mark.usefixtures("short_closing")
def test_arrays_of_a_user_run_through_every_stage(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (96, 10, 12, 2), np.uint8), rng.integers(0, 5, 96)
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
    data = f"data={{name: npz, path: {path}, batch_size: 16, validation: 16}}"
    folder = run("digits_adv", [*ONE_STEP, data], tmp_path, None, smoke=False)
    assert json.loads((folder / "eval.json").read_text())["examples"] == 32
    assert load(folder).output_shape == (None, 5)
