"""Tables through every stage of a pipeline, and what is refused for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import config as configs
from pipelines.runner import run
from pipelines.spec import parse
from tests.errors import error_line
from tests.products import slow_but
from tfrobust import Adv, Threat, evaluate
from tfrobust.data import DATASETS
from tfrobust.methods import METHODS
from tfrobust.models import mlp

FROZEN = list(range(10, 20))
TABLE = ["data={name: breast_cancer, batch_size: 32, validation: 60}", "model={name: mlp}"]
# Methods for conditional networks, which are convolutional.
ELSEWHERE = [name for name, method in METHODS.items() if "strength" in method.network_inputs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a smoke run of the config, with each attack on all rows."""
    changes = ["evaluation.mode=each", "evaluation.save=float32"]
    return run("breast_cancer_adv", changes, tmp_path_factory.mktemp("runs"), None, smoke=True)


@pytest.mark.slow
def test_a_table_goes_through_every_stage(folder: Path) -> None:
    evaluation = json.loads((folder / "eval.json").read_text())
    factors = evaluation["threat"]["per_feature"]
    assert [int(key) for key, value in factors.items() if value == 0] == FROZEN
    assert {attack.get("suite") for attack in evaluation["attacks"]} == {"AutoAttack", None}
    assert not [check for check in evaluation["checks"] if "Error" in check["text"]]
    assert evaluation["eps_curve"] and (folder / "landscape.npz").exists()
    assert not (folder / "probes.npz").exists()
    page = (folder / "report" / "index.html").read_text()
    assert "times a factor of each feature (factors that are 0: 10)" in page
    with np.load(folder / "adversarial.npz") as saved:
        synthetic = DATASETS["synthetic"](image_shape=[30], num_classes=2, train=64, test=32)
        moved = np.abs(saved["image"] - synthetic.load("test").images)
    assert not moved[:, FROZEN].any() and moved.any()
    assert moved.max() <= 0.05 + 1e-6 and moved[:, [2, 22]].max() <= 0.025 + 1e-6
    assert evaluation["data"]["shape"] == [30]
    card = (folder / "MODEL_CARD.md").read_text()
    assert "tabular-classification" in card and "Rows of another origin" in card
    loaded = tf.saved_model.load(str(folder / "saved_model"))
    assert loaded.serve(tf.zeros([3, 30])).shape == (3, 2)


@pytest.mark.parametrize("method", slow_but([n for n in METHODS if n not in ELSEWHERE], []))
def test_every_method_trains_on_a_table(method: str, tmp_path: Path) -> None:
    changes = [*TABLE, "train.steps_per_epoch=2", "train.epochs=1", "train.epsilon_ramp_epochs=0"]
    threat = "threat={norm: linf, eps: 0.05, per_feature: {10: 0, 2: 0.5}}"
    changes += [threat, "train.schedule=constant", "attacks=fgsm"]
    folder = run(f"digits_{method}", changes, tmp_path, ["train", "attack_eval"], smoke=False)
    assert json.loads((folder / "eval.json").read_text())["examples"] == 171


def test_fit_and_evaluate_take_arrays_of_a_table_and_of_series(tmp_path: Path) -> None:
    for shape in ((6,), (5, 2)):  # a table and series
        x = np.random.default_rng(0).random((60, *shape)).astype("float32")
        y = (x.reshape(60, -1)[:, 0] > 0.5).astype(int)
        model = Adv(mlp(shape, 2, units=[8]), threat=Threat("linf", 0.1, per_feature={0: 0.5}))
        model.compile(keras.optimizers.Adam(0.05))
        model.fit(x, y, epochs=8, verbose=0)
        attack = {"name": "pgd", "steps": 5}
        result = evaluate(model.network, x, y, model.threat, attack, check=False)
        assert result.clean_accuracy > 0.8 and result.robust_accuracy < result.clean_accuracy


def refused(*changes: str, name: str = "breast_cancer_adv") -> str:
    """Return the error line of a config with changes."""
    return error_line(lambda: parse(name, configs.load(configs.find(name), list(changes))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.augment=crop", "data.augment: expected none for inputs (30,), which are no images"),
        ("evaluation.corruptions=true", "evaluation.corruptions: expected false for inputs (30,)"),
        ("model={name: small_cnn}", "model.image_shape: expected images (H, W, C) (mlp takes any"),
        ("threat.per_feature=[1, 0]", "threat.per_feature: expected numbers that broadcast to"),
        ("threat.per_feature={30: 0}", "threat.per_feature: expected features 0 to 29, received"),
        ("threat.per_feature=no.npy", "threat.per_feature: expected an .npy file, received no.npy"),
    ],
)
def test_what_a_table_cannot_have_is_one_line(change: str, message: str) -> None:
    assert message in refused(change)


def test_factors_are_read_from_a_file(tmp_path: Path) -> None:
    """The config of the run holds the numbers, so the run does not depend on the file."""
    factors = np.linspace(0, 1, 30)
    np.save(tmp_path / "factors.npy", factors)
    name, change = "breast_cancer_adv", f"threat.per_feature={tmp_path / 'factors.npy'}"
    spec = parse(name, configs.load(configs.find(name), [change]))
    np.testing.assert_allclose(spec.threats[0].factors((30,)), factors, rtol=1e-6)
    assert spec.config["threat"]["per_feature"] == factors.tolist()
    (tmp_path / "broken.npy").write_bytes(b"text")
    assert "expected an .npy file" in refused(f"threat.per_feature={tmp_path / 'broken.npy'}")


def test_corruptions_of_a_table_are_refused() -> None:
    x: Any = np.full((4, 3), 0.5, np.float32)
    network, y = mlp((3,), 2, units=[4]), np.zeros(4, int)
    line = error_line(lambda: evaluate(network, x, y, Threat("linf", 0.1), corruptions=True))
    assert line.startswith("corruptions: expected false for inputs (3,)")
