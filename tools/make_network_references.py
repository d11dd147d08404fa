"""Make tests/parity/references/residual.npz: logits of the authors' networks with random weights.

    python tools/make_network_references.py CHECKOUTS

CHECKOUTS is a folder with checkouts of csdongxian/AWP (a7acf5d), pdejorge/N-FGSM (0a9e4f0),
tml-epfl/understanding-fast-adv-training (ceed494), zjfheart/Friendly-Adversarial-Training
(80a0640) and yogeshbalaji/Instance_Adaptive_Adversarial_Training (49f5f14), each named by the part
after the slash. The tool needs torch, but neither TensorFlow nor tfrobust.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.parity import random_weights
from tests.parity.random_weights import Draws

FILE = Path(__file__).parents[1] / "tests" / "parity" / "references" / "residual.npz"


def networks(folder: Path) -> dict[str, tuple[Any, int]]:
    """Return the authors' networks and the size of their images, under the names in the tests."""
    # IAAT's code imports this function from another file of its repository.
    sys.modules["utils"] = SimpleNamespace(data_normalize=_normalized)  # type: ignore[assignment]
    awp, trades = (f"AWP/{place}" for place in ("AT_AWP", "trades_AWP/models"))
    fast = _module(folder, "understanding-fast-adv-training/models.py")
    gradalign = fast.PreActResNet18(10, cuda=False)
    del gradalign.model_preact_hl1  # it is a second name of the first layers
    madry = _module(folder, "Friendly-Adversarial-Training/models/wrn_madry.py")
    iaat = _module(folder, "Instance_Adaptive_Adversarial_Training/models/wideresnet.py")
    return {
        "wide_resnet": (_module(folder, f"{awp}/wideresnet.py").WideResNet(10, 10, 2), 32),
        "wide_resnet_8": (madry.Wide_ResNet_Madry(8, 10, 2), 32),
        "iaat": (iaat.WRN(8, 1, 10), 32),
        "preact": (_module(folder, f"{awp}/preactresnet.py").PreActResNet18(), 32),
        "preact_50": (_module(folder, f"{awp}/preactresnet.py").PreActResNet50(), 32),
        "n_fgsm": (_module(folder, "N-FGSM/architectures/preact_resnet.py").PreActResNet18(), 32),
        "gradalign": (gradalign, 32),
        "resnet": (_module(folder, f"{trades}/resnet.py").ResNet18(), 32),
        "imagenet": (_with_stem(_module(folder, f"{trades}/resnet.py").ResNet50()), 128),
    }


def _with_stem(network: Any) -> torch.nn.Module:
    """Return the network with the stem for ImageNet (He et al., 2016)."""
    network.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    network.bn1 = torch.nn.Sequential(network.bn1, torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1))
    return network


def _normalized(x: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    return (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def _module(folder: Path, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(file).stem, folder / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logits(network: torch.nn.Module, size: int) -> np.ndarray:
    """Fill a network with random weights, and return its logits in inference."""
    draws, state = Draws(0), network.state_dict()
    # IAAT's code registers the last convolution before the groups.
    convolutions = [name for name, value in state.items() if value.dim() == 4]
    for name in sorted(convolutions, key=lambda name: name == "conv_last"):
        filters, channels, _, kernel = state[name].shape
        _fill(state[name], random_weights.convolution(draws, filters, channels, kernel))
    norms = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    for name in norms:
        affine = f"{name}weight" in state
        rows = random_weights.batch_norm(draws, len(state[f"{name}running_mean"]), affine)
        names = ["weight", "bias"] * affine + ["running_mean", "running_var"]
        for row_name, row in zip(names, rows, strict=True):
            _fill(state[name + row_name], row)
    for name in [name for name, value in state.items() if value.dim() == 2]:
        kernel, bias = random_weights.dense(draws, *state[name].shape)
        _fill(state[name], kernel)
        _fill(state[name.replace("weight", "bias")], bias)
    x = torch.from_numpy(random_weights.images(size)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return network.eval()(x).numpy()


def _fill(tensor: torch.Tensor, values: np.ndarray) -> None:
    tensor.copy_(torch.from_numpy(values))


def main() -> None:
    arrays: dict[str, Any] = {}
    for name, (network, size) in networks(Path(sys.argv[1])).items():
        arrays[name] = logits(network, size)
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
