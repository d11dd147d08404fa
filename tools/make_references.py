"""Make the frozen references of tests/parity with the public implementations of the attacks.

    python tools/make_references.py NAME... --autoattack DIR [--rays DIR]

NAME: apgd, fab, square, rays. DIR: a checkout of github.com/fra31/auto-attack (a392200) and of
github.com/uclaml/RayS (29bc174). Needs torch (CPU will do); tfrobust itself never does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.parity.networks import REFERENCES, images


class DigitsNetwork(torch.nn.Module):
    """The network of tests/parity/networks.py, on [B, 1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        with np.load(REFERENCES / "network.npz") as w:
            self.w = {name: torch.from_numpy(w[name]) for name in w.files}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, 10]."""
        relu, w = torch.relu, self.w
        for name, stride in (("conv1", 1), ("conv2", 2)):
            kernel = w[f"{name}_kernel"].permute(3, 2, 0, 1)
            x = relu(torch.conv2d(x, kernel, w[f"{name}_bias"], stride=stride))
        x = x.permute(0, 2, 3, 1).flatten(1)  # Keras flattens channels last
        x = relu(x @ w["dense1_kernel"] + w["dense1_bias"])
        return x @ w["dense2_kernel"] + w["dense2_bias"]


def torch_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Images [200, 1, 8, 8] and labels [200] of tests/parity/networks.py."""
    x, y = images()
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y).long()


# One function an attack: name -> arrays, saved as references/NAME.npz.
MAKERS: dict[str, Any] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=sorted(MAKERS), metavar="NAME")
    parser.add_argument("--autoattack", type=Path, help="checkout of fra31/auto-attack")
    parser.add_argument("--rays", type=Path, help="checkout of uclaml/RayS")
    arguments = parser.parse_args()
    for checkout in (arguments.autoattack, arguments.rays):
        if checkout is not None:
            sys.path.insert(0, str(checkout))
    for name in arguments.names:
        np.savez_compressed(REFERENCES / f"{name}.npz", **MAKERS[name]())


if __name__ == "__main__":
    main()
