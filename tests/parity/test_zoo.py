"""Networks of `tfrobust.zoo` against RobustBench's own with the same random weights.

The logits of theirs were made by `tools/make_zoo_references.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
    """Their logits by the name of the network, and under NAME/names what it calls its weights."""
    return reference("zoo")


def weights(architecture: Architecture, classes: int = 10) -> dict[str, np.ndarray]:
    """Return what torch's state_dict would hold."""
    expected = shapes(architecture, classes)
    return {name: draw(name, shape) for name, shape in expected.items()}


@pytest.mark.parametrize("name", list(FORMS))
def test_parameters_have_torchs_names(theirs: dict[str, np.ndarray], name: str) -> None:
    assert set(shapes(FORMS[name], 10)) == set(theirs[f"{name}/names"])


@pytest.mark.parametrize("name", slow_but(FORMS, FAST))
def test_logits_are_robustbenchs(theirs: dict[str, np.ndarray], name: str) -> None:
    architecture = FORMS[name]
    ours = build(architecture, name, weights(architecture))(random_weights.images(32))
    np.testing.assert_allclose(ours, theirs[name], rtol=0, atol=1e-4)


def saved_npz(file: Path, state: Any) -> None:
    np.savez(file, **state)


def saved_npy(file: Path, state: Any) -> None:
    np.save(file, np.array({"last": state}, dtype=object))


def saved_safetensors(file: Path, state: Any) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(state, file)


def saved_pt(file: Path, state: Any) -> None:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch.save({"epoch": 3, "state_dict": tensors}, file)


@pytest.mark.parametrize(
    ("suffix", "save"),
    [
        (".npz", saved_npz),
        (".npy", saved_npy),
        (".safetensors", saved_safetensors),
        (".pt", saved_pt),
    ],
)
def test_every_kind_of_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    theirs: dict[str, np.ndarray],
    suffix: str,
    save: Callable[[Path, Any], None],
) -> None:
    monkeypatch.setitem(zoo.ARCHITECTURES, "small", WRN)
    file = tmp_path / f"WRN{suffix}"
    save(file, {f"module.{name}": array for name, array in weights(WRN).items()})
    network = zoo.load(file, "small")
    ours = network(random_weights.images(32))
    np.testing.assert_allclose(ours, theirs["small/wrn"], rtol=0, atol=1e-4)
    assert network.compute_dtype == "float32"


def test_an_average_is_taken_before_what_was_averaged(theirs: dict[str, np.ndarray]) -> None:
    """Wang et al. save both; their code wraps the network twice."""
    arrays = {}
    for name, array in weights(WRN).items():
        arrays[f"unaveraged_model_state_dict.module.0.{name}"] = 0 * array
        arrays[f"model_state_dict.module.0.{name}"] = array
    ours = build(WRN, "small", arrays)(random_weights.images(32))
    np.testing.assert_allclose(ours, theirs["small/wrn"], rtol=0, atol=1e-4)


def test_what_the_network_does_not_use_is_left_out() -> None:
    extra = ("sub_block1.layer.0.bn1.weight", "bn1.num_batches_tracked")
    build(WRN, "small", weights(WRN) | dict.fromkeys(extra, np.ones(1)))


def test_constants_of_the_file_come_first(theirs: dict[str, np.ndarray]) -> None:
    mean, std = CIFAR[10]
    constants = {"mu": np.reshape(mean, (1, 3, 1, 1)), "sigma": np.reshape(std, (1, 3, 1, 1))}
    ours = build(WRN, "small", weights(WRN) | constants)(random_weights.images(32))
    np.testing.assert_allclose(ours, theirs["small/rice2020_wrn"], rtol=0, atol=1e-4)


def test_the_number_of_classes_is_the_files() -> None:
    architecture = SMALL["small/dm_wrn"]
    assert build(architecture, "small", weights(architecture, 100)).output_shape == (None, 100)
    with pytest.raises(UserError, match="expected 10 or 100 classes, for which .* received 7"):
        build(architecture, "small", weights(architecture, 7))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"conv1.weight": None},
            "expected the weights of small, received no conv1.weight; nearest is ",
        ),
        ({"bn1.bias": np.ones(3)}, "received bn1.bias of shape (3,) in place of (128,)"),
        ({"fc.extra": np.ones(3)}, "small, received fc.extra too"),
    ],
)
def test_what_does_not_fit(change: dict[str, np.ndarray | None], line: str) -> None:
    arrays = {k: v for k, v in (weights(WRN) | change).items() if v is not None}
    with pytest.raises(UserError) as error:
        build(WRN, "small", arrays, "model.path")
    assert str(error.value).startswith("model.path: ") and line in str(error.value)


def test_the_architectures_that_fit_are_named() -> None:
    names = shapes(zoo.ARCHITECTURES["wang2023_wrn_28_10"], 10)
    arrays = {f"module.{k}": np.broadcast_to(np.float32(0), v) for k, v in names.items()}
    with pytest.raises(
        UserError, match="no conv1.weight; it fits dm_wrn_28_10, wang2023_wrn_28_10"
    ):
        build(WRN, "wrn_28_10", arrays)


def test_several_networks_in_a_file() -> None:
    arrays = {f"{half}.fc.weight": np.ones((10, 3)) for half in ("left", "right")}
    with pytest.raises(UserError, match="expected one network, received .*left.*right"):
        build(WRN, "small", arrays)


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_files_that_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "code.npy", np.array({"fc.weight": Harmful()}, dtype=object))
    np.save(tmp_path / "one.npy", np.ones(3))
    np.save(tmp_path / "two.npy", np.array([{}, {}], dtype=object))
    for name in ("cut.npz", "x.pt", "x.safetensors"):
        (tmp_path / name).write_bytes(b"PK")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
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
        with pytest.raises(UserError) as error:
            zoo.load(tmp_path / name, "resnet_18")
        assert line in str(error.value) and str(error.value).startswith("path: ")


def test_code_in_a_file_of_torch_is_not_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {}, "arguments": Harmful()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="was not read: it holds more than tensors"):
        zoo.load(tmp_path / "x.pt", "resnet_18")


def test_an_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'wrn_28_10'"):
        zoo.load(tmp_path / "x.npz", "wrn_28-10")
