"""Networks outside TensorFlow: their files, their outputs, and what is refused without gradients.

A stand-in takes the place of ONNX Runtime; tests/e2e/test_exports.py has the real ones.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipelines.resolve import load_spec
from tests.errors import error_line
from tfrobust import Threat, load_network
from tfrobust.attacks import PGD
from tfrobust.errors import UserError
from tfrobust.evaluation import craft, evaluate
from tfrobust.exporting import FORMATS
from tfrobust.models import load_keras

W = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
X = np.random.default_rng(1).random((12, 2, 2, 1)).astype("float32")
Y = (X.reshape(-1, 4) @ W).argmax(1)


def tensor(name: str, shape: list[Any], kind: str = "tensor(float)") -> Any:
    return types.SimpleNamespace(name=name, shape=shape, type=kind)


class Session:
    """A linear network in ONNX Runtime's place. A file has the shape and type of its input."""

    def __init__(self, file: str, providers: list[str]) -> None:
        *sizes, self.kind = Path(file).read_text().split()
        self.shape = [int(size) if size.isdigit() else size for size in sizes]

    def get_inputs(self) -> list[Any]:
        return [tensor("picture", self.shape, self.kind)]

    def get_outputs(self) -> list[Any]:
        return [tensor("scores", ["batch", 3]), tensor("other", ["batch", 5])]

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        (x,) = inputs.values()
        return [x.reshape(-1, 4) @ W, np.zeros((len(x), 5), np.float32)]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file for the stand-in."""
    stand_in = types.ModuleType("onnxruntime")
    stand_in.InferenceSession = Session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    path = tmp_path / "network.onnx"
    path.write_text("batch 2 2 1 tensor(float)")
    return path


def test_a_network_in_a_runtime_has_its_outputs_by_name(file: Path) -> None:
    network = load_network(file, output="scores")
    assert (network.input_shape, network.classes) == ((2, 2, 1), 3)
    assert network.runtime == "ONNX Runtime" and network.network is None
    np.testing.assert_allclose(network(X), X.reshape(-1, 4) @ W, rtol=1e-6)
    assert "received 2: other, scores; name that of" in error_line(lambda: load_network(file))
    assert "signature: expected none" in error_line(
        lambda: load_network(file, output="scores", signature="serve")
    )
    file.write_text("batch 3 2 4 tensor(float)")  # channels first, as torch has them
    torch = load_network(file, output="scores")
    line = error_line(lambda: torch(np.zeros((1, 2, 4, 3), np.float32)))
    assert line.endswith("again for images (2, 4, 3), with x.permute(0, 3, 1, 2) in front of a "
                         "network of torch")  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2 2 1 tensor(float)", "received 'float32 (1, 2, 2, 1)'; export it again for float"),
        ("batch 2 2 1 tensor(uint8)", "a network of float images (None, H, W, C), received 'int"),
        (
            "batch 2 x",
            "a network of float images (None, H, W, C), received 'int64 (None, 2",
        ),
        ("", "expected ONNX Runtime to load "),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    file: Path, content: str, message: str
) -> None:
    file.write_text(content)
    assert message in error_line(lambda: load_network(file, output="scores"))


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("a.onnx", "onnxruntime", "onnx"), ("a.tflite", "ai_edge_litert.interpreter", "litert")],
)
def test_a_missing_runtime_is_named_with_its_extra(
    name: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"network")
    line = error_line(lambda: load_network(tmp_path / name))
    assert line.startswith(f"{module.partition('.')[0]}: expected it installed")
    assert f"pip install 'tfrobust[{extra}]'" in line
    formats = [kind for kind in FORMATS.values() if kind.file.endswith(Path(name).suffix)]
    assert formats and all(extra in error_line(kind.check) for kind in formats)


def test_attacks_without_gradients_break_the_same_images_as_in_tensorflow(file: Path) -> None:
    attacks = [{"name": "square", "queries": 20}, {"name": "rays", "queries": 30}]
    threat, network = Threat("linf", 0.1), load_network(file, output="scores")
    outside = evaluate(network, X, Y, threat, attacks, progress=False)
    inside = evaluate(
        lambda x: tf.reshape(x, [-1, 4]) @ W, X, Y, threat, attacks, check=False, progress=False
    )
    for result, expected in zip(outside.results, inside.results, strict=True):
        np.testing.assert_array_equal(result.robust, expected.robust)
    assert 0 < outside.robust_accuracy < 1
    (sign,) = outside.checks
    assert sign.warns and "the robust accuracy is an upper bound" in sign.text


def test_attacks_with_gradients_are_refused_before_any_runs(file: Path, tmp_path: Path) -> None:
    threat, network = Threat("linf", 0.1), load_network(file, output="scores")
    folder = tmp_path / "record"
    line = error_line(lambda: evaluate(network, X, Y, threat, ["square", "pgd"], folder=folder))
    assert line == (
        "attacks: expected attacks without gradients (rays, saved_images, square, transfer, "
        "uniform_noise), as ONNX Runtime has none, received 'PGD-10'"
    )
    assert not folder.exists()
    line = error_line(lambda: craft(lambda x: network(x), X, Y, PGD(steps=1), threat))
    assert "received one that has none (ONNX Runtime computes the network)" in line
    with pytest.raises(UserError, match="cannot be trained: give the network that it was made"):
        load_keras(file)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{formats: [onx]}", "export.formats: .*did you mean 'onnx'"),
        ("{formats: []}", "export.formats: expected at least one format"),
        ("{calibration: 0}", "export.calibration: expected int >= 1"),
        ("{}", "evaluation.save: expected float32 or uint8, to try the network's"),
        ("{attacks: [pgd]}", "evaluation.save: expected"),
    ],
)
def test_a_wrong_section_of_exports_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_spec("digits_adv", [f"export={setting}"], smoke=False)


def test_attacks_on_exports_need_no_gradients_and_rays_is_for_linf() -> None:
    def attacks(*overrides: str) -> list[str]:
        settings = ["evaluation.save=float32", *overrides]
        spec = load_spec("digits_adv", settings, smoke=False)
        return [listed.name for listed in spec.export_attacks]

    assert attacks("export={}") == ["Square-5000", "RayS-10000"]
    assert attacks("export={}", "threat={norm: l2, eps: 0.5}") == ["Square-5000"]
    assert attacks("export={attacks: []}") == attacks() == []
    with pytest.raises(UserError, match="export.attacks: expected attacks without gradients .*PGD"):
        attacks("export={attacks: [square, pgd]}")
    with pytest.raises(UserError, match=r"export.attacks\[0\].path: expected an .npz file"):
        attacks("export={attacks: [{name: saved_images, path: none.npz}]}")
