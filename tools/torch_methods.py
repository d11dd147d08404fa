"""What runs the authors' code of methods in torch: a network, images, noise, and its own lines."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.parity import methods as shared

torch.set_default_dtype(torch.float64)


def nchw(images: np.ndarray) -> torch.Tensor:
    """Return images [..., H, W, C] as float64 [..., C, H, W]."""
    return torch.from_numpy(np.moveaxis(images, -1, -3).astype("float64").copy())


def nhwc(images: torch.Tensor) -> np.ndarray:
    return np.moveaxis(images.detach().numpy(), -3, -1)


X, ADV = nchw(shared.images()), nchw(shared.adversaries())
Y = torch.from_numpy(shared.labels()).long()
NORMAL, UNIFORM = nchw(shared.draws("normal")), nchw(shared.draws("uniform"))
# Torch's names of the weights.
TORCH = {
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class BatchNorm(torch.nn.BatchNorm2d):
    """Torch's BatchNorm, but with a biased running variance, as in Keras."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.track_running_stats:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean((0, 2, 3)), self.momentum)
                self.running_var.lerp_(x.var((0, 2, 3), unbiased=False), self.momentum)
        running = (None, None) if self.training else (self.running_mean, self.running_var)
        return F.batch_norm(x, *running, self.weight, self.bias, self.training, 0.0, self.eps)


class Network(torch.nn.Module):
    """The network of tests/parity/methods.py, which keeps the images of each pass in `seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, stride=2)
        self.bn1, self.bn2 = (BatchNorm(8, shared.EPSILON, 1 - shared.MOMENTUM) for _ in range(2))
        self.dense = torch.nn.Linear(32, shared.CLASSES)
        self.seen: list[torch.Tensor] = []
        with torch.no_grad():
            for name, value in shared.weights().items():
                axes = (3, 2, 0, 1) if value.ndim == 4 else range(value.ndim)[::-1]
                self.tensors()[name].copy_(torch.from_numpy(value).permute(*axes))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights and averages under the names of tests/parity/methods.py."""
        both = dict([*self.named_parameters(), *self.named_buffers()])
        pairs = (name.split("_", 1) for name in shared.SHAPES)
        return {f"{layer}_{kind}": both[f"{layer}.{TORCH[kind]}"] for layer, kind in pairs}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 10]."""
        self.seen.append(x.detach().clone())
        x = F.softplus(self.bn1(self.conv1(x)))
        x = F.softplus(self.bn2(self.conv2(x)))
        return self.dense(x.permute(0, 2, 3, 1).flatten(1))  # Keras flattens channels last

    def result(self, loss: torch.Tensor | None = None, **images: torch.Tensor) -> dict[str, Any]:
        """Return the loss, the gradients of the weights, BatchNorm's averages, and the images.

        Without a loss the gradients are those that the weights hold.
        """
        out = {name: nhwc(value) for name, value in images.items()}
        if loss is not None:
            self.zero_grad()
            loss.backward()
            out["loss"] = loss.item()
        for name, tensor in self.tensors().items():
            value = tensor if "moving" in name else tensor.grad
            axes = (2, 3, 1, 0) if value.ndim == 4 else range(value.ndim)[::-1]
            out[name] = value.detach().permute(*axes).numpy()
        return out


def optimizer(network: Network) -> torch.optim.Optimizer:
    """Return an optimizer that leaves the weights as they are."""
    return torch.optim.SGD(network.parameters(), lr=0.0)


class Conditional(torch.nn.Module):
    """The network of `methods.conditional_network`, called as the authors of OAT call theirs."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, _lambda: torch.Tensor, idx2BN: Any) -> torch.Tensor:
        return self.network(x * (1 - 0.5 * _lambda[:, None, None, None]))

    def cuda(self, device: Any = None) -> Conditional:
        return self


class Noise:
    """Gives the authors' code the noise of tests/parity/methods.py, one draw at each request."""

    def __init__(self, uniform: torch.Tensor = UNIFORM):
        self.uniform = uniform

    def __enter__(self) -> None:
        normal, uniform = iter(NORMAL), iter(self.uniform)

        def within(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * 0.5 * (next(uniform) + 1)

        def uniform_(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
            return tensor.copy_(within(low, high))

        self.patches: list[Any] = [
            mock.patch.object(torch, "randn", lambda *_, **__: next(normal).clone()),
            mock.patch.object(torch, "rand", lambda *_, **__: within(0.0, 1.0)),
            mock.patch.object(torch.Tensor, "uniform_", uniform_),
            mock.patch.object(np.random, "uniform", lambda low, high, _: within(low, high).numpy()),
            mock.patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self),
            mock.patch.object(torch.Tensor, "float", lambda self: self.double()),
            mock.patch.object(torch.Tensor, "byte", torch.Tensor.bool),
            mock.patch.object(torch.cuda, "FloatTensor", lambda n: torch.empty(n)),
        ]
        for patch in self.patches:
            patch.start()

    def __exit__(self, *_: Any) -> None:
        for patch in self.patches:
            patch.stop()


def lines(
    path: Path, first: str, last: str, *, uniform: torch.Tensor = UNIFORM, **names: Any
) -> dict[str, Any]:
    """Run some lines of a script, and return the names that are then defined.

    Args:
        path: The script.
        first: A text in the first of the lines.
        last: A text in the last of the lines.
        uniform: The uniform noise that the lines draw.
        names: The names that the lines use.
    """
    text = path.read_text(encoding="utf-8").splitlines()
    start = next(k for k, line in enumerate(text) if first in line)
    end = next(k for k, line in enumerate(text[start:], start) if last in line)
    code = textwrap.dedent("\n".join(text[start : end + 1]))
    scope = {"torch": torch, "np": np, "F": F, "nn": torch.nn, **names}
    with Noise(uniform):
        exec(compile(code, str(path), "exec"), scope)
    return scope


def loaded(path: Path, *replaced: tuple[str, str], **names: Any) -> dict[str, Any]:
    """Run a module, and return the names that it defines.

    Args:
        path: The file of the module.
        replaced: Texts in the file, such as imports that are missing, and their replacements.
        names: The names that the module uses.
    """
    text = path.read_text(encoding="utf-8")
    for old, new in replaced:
        text = text.replace(old, new)
    scope: dict[str, Any] = {"__name__": path.stem, **names}
    exec(compile(text, str(path), "exec"), scope)
    return scope
