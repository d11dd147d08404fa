"""Exported networks in their own runtimes: compared with the network, attacked, reported."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipelines.runner import run
from pipelines.stages.export import _version
from tests.errors import error_line
from tfrobust import load_network
from tfrobust.errors import UserError
from tfrobust.exporting import FORMATS, export
from tfrobust.flags import Flags
from tfrobust.models import MODELS
from tfrobust.models.signatures import signature
from tfrobust.record import ExportRow, ExportTable

SHAPE, N = (6, 6, 1), 60
STAGES = "stages=[attack_eval,export,report]"
ATTACKS = "[{name: square, queries: 20}, {name: rays, queries: 30}]"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the settings of a linear network of bright and dark images, and of its attacks."""
    folder = tmp_path_factory.mktemp("mine")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2 * N)
    x = np.clip(0.3 + 0.4 * y[:, None, None, None] + 0.1 * rng.normal(size=(2 * N, *SHAPE)), 0, 1)
    x = x.astype(np.float32)
    np.savez(folder / "my.npz", x_train=x[N:], y_train=y[N:], x_test=x[:N], y_test=y[:N])
    network = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(2)])
    bright = np.ones((36, 1), np.float32) / 36
    network.layers[-1].set_weights([np.hstack([-bright, bright]), np.array([0.5, -0.5])])
    network.save(folder / "my.keras")
    data = ["data.name=npz", f"data.path={folder / 'my.npz'}", "threat.eps=0.17"]
    attacks = "attacks={name: pgd, steps: 3}"
    return [f"model.path={folder / 'my.keras'}", *data, attacks, "evaluation.save=float32"]


def exported(base: list[str], tmp_path: Path, formats: str) -> tuple[Path, list[ExportRow]]:
    """Run `evaluate` with a section `export`; return its folder and the rows of exports.json."""
    settings = [*base, STAGES, f"export={{formats: {formats}, attacks: {ATTACKS}}}"]
    folder = run("evaluate", settings, tmp_path / "runs", None, smoke=False)
    table = ExportTable.model_validate_json((folder / "exports.json").read_text())
    return folder, table.rows


@pytest.mark.usefixtures("short_closing")
def test_a_saved_model_is_compared_attacked_and_reported(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PGD breaks an image of the linear network if its mean is within eps of 0.5."""
    folder, rows = exported(base, tmp_path, "[saved_model]")
    robust = json.loads((folder / "eval.json").read_text())["robust_accuracy"]
    network, saved = rows
    assert (network.name, network.file, network.largest_difference) == ("network", "my.keras", 0)
    assert (saved.name, saved.file, saved.equal_predictions) == ("saved_model", "saved_model", 1)
    assert saved.largest_difference < 1e-6 and saved.examples == N
    assert list(saved.attacks) == ["network's adversaries", "Square-20", "RayS-30"]
    assert saved.attacks["network's adversaries"] == saved.robust_accuracy == robust < 1
    assert (saved.difference, saved.p, network.p) == (0, 1, None)
    assert len(Flags.load(folder / "exports" / "saved_model").right["Square-20"]) == N
    for page in ("report/report.md", "report/index.html", "MODEL_CARD.md"):
        text = (folder / page).read_text()
        assert "Exports" in text and "saved_model" in text and "exact test" in text
    exported(base, tmp_path, "[saved_model]")
    assert capsys.readouterr().out.count("done before, skipped") == 3
    # A stage that was stopped goes on, although the files are exported again.
    (folder / "exports.json").unlink()
    assert exported(base, tmp_path, "[saved_model]")[1] == rows
    out = capsys.readouterr().out
    assert "kept in" not in out and "saved_model: Square-20" not in out


@pytest.mark.usefixtures("short_closing")
def test_exports_have_the_images_of_the_evaluation(base: list[str], tmp_path: Path) -> None:
    held_out = [*base, "evaluation.split=validation", "data.validation=20"]
    _, rows = exported(held_out, tmp_path, "[saved_model]")
    assert [row.examples for row in rows] == [20, 20] and rows[1].difference == 0


def test_a_missing_package_stops_a_run_before_any_work(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    line = error_line(lambda: exported(base, tmp_path, "[onnx]"))
    assert line.startswith("tf2onnx: expected it installed: pip install 'tfrobust[onnx]'")
    assert not (tmp_path / "runs").exists()


def test_a_runtime_that_another_distribution_has_installed_has_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "fast_runtime", types.ModuleType("fast_runtime"))
    assert _version("fast_runtime") == "of unknown version"
    sys.modules["fast_runtime"].__dict__["__version__"] = "1.2"
    assert _version("fast_runtime") == "1.2"


@pytest.fixture
def runtimes() -> None:
    """Skip a test where a runtime or a converter is missing."""
    for module in ("tf2onnx", "onnxruntime", "ai_edge_litert.interpreter"):
        pytest.importorskip(module, reason="needs pip install '.[onnx,litert]'")


@pytest.mark.slow
@pytest.mark.usefixtures("runtimes", "short_closing")
def test_every_format_is_compared_attacked_and_evaluated(base: list[str], tmp_path: Path) -> None:
    _, rows = exported(base, tmp_path, f"[{', '.join(FORMATS)}]")
    network, *others = rows
    assert [row.name for row in others] == list(FORMATS)
    for row in others[:-1]:
        assert row.largest_difference < 1e-5 and row.attacks == network.attacks
    int8 = others[-1]
    assert 1e-4 < int8.largest_difference < 0.1 and int8.equal_predictions > 0.9
    folder = tmp_path / "runs" / "evaluate"
    for name in ("onnx", "litert_int8"):
        settings = [*base[1:], f"model.path={folder / FORMATS[name].file}"]
        with pytest.raises(UserError, match="attacks: expected attacks without gradients .*rays"):
            run("evaluate", settings, tmp_path / name, None, smoke=False)
        attacks = f"attacks=[{{name: saved_images, path: {folder / 'adversarial.npz'}}}, square]"
        again = run("evaluate", [*settings, attacks], tmp_path / name, None, smoke=False)
        record = json.loads((again / "eval.json").read_text())
        (row,) = (row for row in rows if row.name == name)
        assert record["clean_accuracy"] == row.clean_accuracy
        assert record["attacks"][0]["robust_accuracy"] == row.attacks["network's adversaries"]
        assert [check["name"] for check in record["checks"]] == ["gradients"]


NETWORKS: dict[str, dict[str, Any]] = {
    "small_cnn": {},
    "trades_cnn": {},
    "wide_resnet": {"depth": 10, "width": 1},
    "one-hot": {"lambdas": [0.0, 0.5, 1.0], "widths": [0.5, 1.0], "encoding": "onehot"},
    "plain": {"lambdas": [0.0, 0.5, 1.0], "encoding": "none"},
}


@pytest.mark.slow
@pytest.mark.usefixtures("runtimes")
@pytest.mark.parametrize("name", NETWORKS)
def test_our_layers_have_the_same_logits_in_every_format(name: str, tmp_path: Path) -> None:
    """`export` compares them, at each lambda and width of a once-for-all network."""
    rng = np.random.default_rng(0)
    make = MODELS.get(name, MODELS["small_cnn"])
    shape = (32, 32, 3) if name == "wide_resnet" else (28, 28, 1)
    network = make(shape, 10, **NETWORKS[name])
    images, samples = (rng.random((n, *shape), np.float32) for n in (7, 20))
    for kind in FORMATS:
        file = tmp_path / FORMATS[kind].file
        export(network, file, images, kind, samples)
        loaded = load_network(file)
        assert (loaded.input_shape, loaded.classes) == (shape, 10)
        for place, field in enumerate(("strength", "width"), 1):
            takes = len(signature(network).inputs) > place
            assert getattr(loaded, field) == (1.0 if takes else None)
    size = {kind: (tmp_path / FORMATS[kind].file).stat().st_size for kind in FORMATS}
    assert size["litert_int8"] < 0.5 * size["litert"]


@pytest.mark.slow
@pytest.mark.usefixtures("runtimes")
def test_an_operation_that_a_format_lacks_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = keras.Input((2, 2, 1))
    scores = keras.layers.Dense(2)(keras.layers.Flatten()(image))
    network = keras.Model(image, keras.ops.erfinv(scores))
    file = tmp_path / "model.tflite"
    images = np.zeros((7, 2, 2, 1), np.float32)
    line = error_line(lambda: export(network, file, images, "litert"))
    assert line.startswith(f"{file}: expected a network that litert can hold: ")
    assert not list(tmp_path.iterdir()) and len(capfd.readouterr().err) < 200


@pytest.mark.usefixtures("short_closing")
def test_an_exported_network_does_not_stay_beside_the_results_of_another(
    base: list[str], tmp_path: Path
) -> None:
    def evaluated(*overrides: str) -> Path:
        return run("evaluate", [*base, *overrides], tmp_path / "runs", None, smoke=False)

    folder = evaluated("attacks=fgsm", "stages=[attack_eval, export]")
    graph = folder / "saved_model" / "saved_model.pb"
    exported = graph.read_bytes()
    evaluated("attacks=[fgsm, uniform_noise]", "stages=[attack_eval]")
    assert graph.read_bytes() == exported  # the same network
    network = keras.saving.load_model(base[0].removeprefix("model.path="))
    network.set_weights([3 * weight for weight in network.get_weights()])
    network.save(tmp_path / "third.keras")
    evaluated(f"model.path={tmp_path / 'third.keras'}", "attacks=fgsm", "stages=[attack_eval]")
    (aside,) = folder.glob("evaluation.*/saved_model")
    assert (aside / graph.name).read_bytes() == exported and not graph.exists()
    assert (aside.parent / "eval.json").is_file()
