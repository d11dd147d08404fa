"""Make tests/parity/references/zoo.npz: logits of RobustBench's networks with random weights.

    python tools/make_zoo_references.py CHECKOUT

CHECKOUT is a checkout of RobustBench/robustbench (78fcc9e). For each architecture of
`tfrobust.zoo`, and for narrow ones of the same code under "small/NAME", the file has the logits of
two images, and the names of the parameters. The tool needs torch, but neither TensorFlow nor
tfrobust.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.parity import random_weights
from tests.parity.zoo_weights import draw

FILE = Path(__file__).parents[1] / "tests" / "parity" / "references" / "zoo.npz"
# The constants that model_zoo/cifar10.py puts before a network.
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
SIZES = {
    "wrn": ((28, 10), (34, 10), (34, 15), (34, 20), (70, 16)),
    "dm_wrn": ((28, 10), (34, 10), (34, 20), (70, 16), (106, 16)),
    "wang2023_wrn": ((28, 10), (70, 16)),
    "bartoldson2024_wrn": ((82, 8), (94, 16)),
}


def networks(checkout: Path) -> dict[str, Callable[[], torch.nn.Module]]:
    """Return what makes each network, under its name in `tfrobust.zoo`."""
    module = partial(_module, checkout / "robustbench" / "model_zoo" / "architectures")
    wide, resnet, deepmind = module("wide_resnet"), module("resnet"), module("dm_wide_resnet")
    silu = {"activation_fn": torch.nn.SiLU}

    def of_deepmind(depth: int, width: int) -> torch.nn.Module:
        return deepmind.DMWideResNet(depth=depth, width=width, **silu)

    def preact(block: str, **options: Any) -> torch.nn.Module:
        return resnet.PreActResNet(getattr(resnet, block), [2, 2, 2, 2], **options)

    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "resnet_18": resnet.ResNet18,
        "preact_resnet_18": lambda: preact("PreActBlockV2", bn_before_fc=True),
        "rice2020_preact_resnet_18": lambda: _Normalised(
            CIFAR10, preact("PreActBlockV2", bn_before_fc=True)
        ),
        "andriushchenko2020_preact_resnet_18": lambda: preact("PreActBlock"),
        "wong2020_preact_resnet_18": lambda: _Normalised(CIFAR10, preact("PreActBlock")),
        "dm_preact_resnet_18": lambda: deepmind.DMPreActResNet(**silu),
        "hendrycks2019_wrn_28_10": lambda: _Normalised(HALF, wide.WideResNet(28, 10, 10)),
        "rice2020_wrn_34_20": lambda: _Normalised(CIFAR10, wide.WideResNet(34, 10, 20)),
        "small/wrn": lambda: wide.WideResNet(10, 10, 2),
        "small/rice2020_wrn": lambda: _Normalised(CIFAR10, wide.WideResNet(10, 10, 2)),
        "small/dm_wrn": partial(of_deepmind, 10, 2),
    }
    for form, sizes in SIZES.items():
        for depth, width in sizes:
            make: Callable[..., torch.nn.Module] = partial(of_deepmind, depth, width)
            if form == "wrn":
                make = partial(wide.WideResNet, depth, 10, width)
            makers[f"{form}_{depth}_{width}"] = make
    return makers


class _Normalised(torch.nn.Module):
    """A network that normalises its images first."""

    def __init__(self, constants: tuple[Any, Any], network: torch.nn.Module):
        super().__init__()
        self.network = network
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in constants)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x - self.mean) / self.std)


def _module(folder: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(network: torch.nn.Module) -> tuple[list[str], np.ndarray]:
    """Fill a network with random weights, and return their names and its logits in inference."""
    names = []
    for full_name, tensor in network.state_dict().items():
        name = full_name.removeprefix("network.")
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(torch.from_numpy(draw(name, tuple(tensor.shape))))
            names.append(name)
    x = torch.from_numpy(random_weights.images(32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return names, network.eval()(x).numpy()


def main() -> None:
    made: dict[str, Any] = {}
    for name, make in networks(Path(sys.argv[1])).items():
        made[f"{name}/names"], made[name] = run(make())
        print(name, np.abs(made[name]).max(), flush=True)
    np.savez_compressed(FILE, **made)


if __name__ == "__main__":
    main()
