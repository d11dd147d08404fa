"""Networks of `tfrobust.zoo` against those of RobustBench with the same random weights.

`tools/make_zoo_references.py` computed RobustBench's logits.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.errors import error_line
from tests.parity import random_weights
from tests.parity.networks import reference
from tests.parity.zoo_weights import draw
from tests.products import slow_but
from tfrobust import zoo
from tfrobust.errors import UserError
from tfrobust.zoo.architectures import CIFAR, TRADES, Architecture, deepmind, wide
from tfrobust.zoo.loading import build, shapes

SMALL = {
    "small/wrn": wide(TRADES, 10, 2),
    "small/rice2020_wrn": wide(TRADES, 10, 2, normalisation=CIFAR),
    "small/dm_wrn": deepmind(10, 2),
}
FORMS = SMALL | zoo.ARCHITECTURES
FAST = [*SMALL, "resnet_18", "andriushchenko2020_preact_resnet_18", "dm_preact_resnet_18"]
WRN = SMALL["small/wrn"]


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    """Return RobustBench's logits by network, and the names of its weights under NAME/names."""
    return reference("zoo")


def weights(architecture: Architecture, classes: int = 10) -> dict[str, np.ndarray]:
    """Return random weights by their names in torch."""
    expected = shapes(architecture, classes)
    return {name: draw(name, shape) for name, shape in expected.items()}


@pytest.mark.parametrize("name", list(FORMS))
def test_weights_have_the_names_of_torch(theirs: dict[str, np.ndarray], name: str) -> None:
    assert set(shapes(FORMS[name], 10)) == set(theirs[f"{name}/names"])


@pytest.mark.parametrize("name", slow_but(FORMS, FAST))
def test_logits_are_those_of_robustbench(theirs: dict[str, np.ndarray], name: str) -> None:
    architecture = FORMS[name]
    ours = build(architecture, name, weights(architecture))(random_weights.images(32))
    np.testing.assert_allclose(ours, theirs[name], rtol=0, atol=1e-4)


def save(file: Path, state: dict[str, np.ndarray]) -> None:
    """Write weights in the format of the file's ending."""
    if file.suffix == ".npz":
        np.savez(file, **state)
    elif file.suffix == ".npy":
        np.save(file, np.array({"last": state}, dtype=object))
    elif file.suffix == ".safetensors":
        pytest.importorskip("safetensors.numpy").save_file(state, file)
    else:
        torch = pytest.importorskip("torch")
        tensors = {name: torch.from_numpy(array) for name, array in state.items()}
        torch.save({"epoch": 3, "state_dict": tensors}, file)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors", ".pt"])
def test_weights_load_from_every_kind_of_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    theirs: dict[str, np.ndarray],
    suffix: str,
) -> None:
    monkeypatch.setitem(zoo.ARCHITECTURES, "small", WRN)
    file = tmp_path / f"WRN{suffix}"
    save(file, {f"module.{name}": array for name, array in weights(WRN).items()})
    network = zoo.load(file, "small")
    ours = network(random_weights.images(32))
    np.testing.assert_allclose(ours, theirs["small/wrn"], rtol=0, atol=1e-4)
    assert network.compute_dtype == "float32"


def test_averaged_weights_are_preferred_to_those_before_averaging(
    theirs: dict[str, np.ndarray],
) -> None:
    """Wang et al. save both, and their code wraps the network twice."""
    arrays = {}
    for name, array in weights(WRN).items():
        arrays[f"unaveraged_model_state_dict.module.0.{name}"] = 0 * array
        arrays[f"model_state_dict.module.0.{name}"] = array
    ours = build(WRN, "small", arrays)(random_weights.images(32))
    np.testing.assert_allclose(ours, theirs["small/wrn"], rtol=0, atol=1e-4)


def test_unused_arrays_of_robustbench_are_ignored() -> None:
    extra = ("sub_block1.layer.0.bn1.weight", "bn1.num_batches_tracked")
    build(WRN, "small", weights(WRN) | dict.fromkeys(extra, np.ones(1)))


def test_normalisation_of_the_file_replaces_that_of_the_architecture(
    theirs: dict[str, np.ndarray],
) -> None:
    mean, std = CIFAR[10]
    constants = {"mu": np.reshape(mean, (1, 3, 1, 1)), "sigma": np.reshape(std, (1, 3, 1, 1))}
    ours = build(WRN, "small", weights(WRN) | constants)(random_weights.images(32))
    np.testing.assert_allclose(ours, theirs["small/rice2020_wrn"], rtol=0, atol=1e-4)


def test_number_of_classes_is_that_of_the_file() -> None:
    architecture = SMALL["small/dm_wrn"]
    assert build(architecture, "small", weights(architecture, 100)).output_shape == (None, 100)
    with pytest.raises(UserError, match="expected 10 or 100 classes, for which .* received 7"):
        build(architecture, "small", weights(architecture, 7))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"conv1.weight": None}, "the weights of small, received no conv1.weight; nearest is "),
        ({"bn1.bias": np.ones(3)}, "received bn1.bias of shape (3,) in place of (128,)"),
        ({"fc.extra": np.ones(3)}, "small, received fc.extra too"),
    ],
)
def test_weights_of_another_architecture_are_refused(
    change: dict[str, np.ndarray | None], line: str
) -> None:
    changed = weights(WRN) | change
    arrays = {name: array for name, array in changed.items() if array is not None}
    error = error_line(lambda: build(WRN, "small", arrays, "model.path"))
    assert error.startswith("model.path: expected ") and line in error


def test_error_names_the_architectures_that_fit() -> None:
    expected = shapes(zoo.ARCHITECTURES["wang2023_wrn_28_10"], 10)
    arrays = {
        f"module.{name}": np.broadcast_to(np.float32(0), shape) for name, shape in expected.items()
    }
    line = error_line(lambda: build(WRN, "wrn_28_10", arrays))
    assert "no conv1.weight; it fits dm_wrn_28_10, wang2023_wrn_28_10" in line


def test_file_of_several_networks_is_refused() -> None:
    arrays = {f"{half}.fc.weight": np.ones((10, 3)) for half in ("left", "right")}
    with pytest.raises(UserError, match="expected one network, received .*left.*right"):
        build(WRN, "small", arrays)


class Harmful:
    """An object whose pickle runs code when it is loaded."""

    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_unreadable_files_are_one_line_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "code.npy", np.array({"fc.weight": Harmful()}, dtype=object))
    np.save(tmp_path / "one.npy", np.ones(3))
    np.save(tmp_path / "two.npy", np.array([{}, {}], dtype=object))
    for name in ("cut.npz", "x.pt", "x.safetensors"):
        (tmp_path / name).write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    lines = {
        "code.npy": "it asks for builtins.print, and may hold arrays alone",
        "one.npy": "expected one dictionary of arrays by their names in torch, received 'an array",
        "two.npy": "received '2 objects (of a network in JAX there is a .pt too)'",
        "cut.npz": "does not load",
        "x.pt": "torch reads .pt: pip install 'tfrobust[torch]'",
        "x.safetensors": "safetensors reads .safetensors: pip install 'tfrobust[zoo]'",
        "no.pt": "no such file",
        "WRN.keras": "expected weights in a file that ends in .pt",
    }
    for name, line in lines.items():
        error = error_line(partial(zoo.load, tmp_path / name, "resnet_18"))
        assert error.startswith("path: ") and line in error


def test_code_in_a_torch_file_is_not_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {}, "arguments": Harmful()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="was not read: it holds more than tensors"):
        zoo.load(tmp_path / "x.pt", "resnet_18")


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'wrn_28_10'"):
        zoo.load(tmp_path / "x.npz", "wrn_28-10")
