"""A Keras network as a torch module with the same weights, for comparisons with torch code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import torch
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "softplus": nn.Softplus}


class TorchNetwork(nn.Module):
    """The torch form of one of our networks, layer by layer, for images [B, C, H, W].

    Raises:
        SystemExit: For a layer that none of our networks has.
    """

    def __init__(self, network: keras.Model):
        super().__init__()
        self.steps: list[tuple[Callable[..., torch.Tensor], list[int], int]] = []
        self.start, self.end = id(network.input), id(network.output)
        for layer in network.layers:
            if type(layer).__name__ == "InputLayer":
                continue
            module = self._layer(layer)
            if isinstance(module, nn.Module):
                self.add_module(layer.name, module)
            inputs = layer.input if isinstance(layer.input, list) else [layer.input]
            self.steps.append((module, [id(tensor) for tensor in inputs], id(layer.output)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = {self.start: x}
        for step, inputs, output in self.steps:
            values[output] = step(*(values[name] for name in inputs))
        return values[self.end]

    def _layer(self, layer: Any) -> Callable[..., torch.Tensor]:
        kind, weights = type(layer).__name__, [torch.tensor(w) for w in layer.get_weights()]
        relu = getattr(layer, "activation", None) is keras.activations.relu
        module: Callable[..., torch.Tensor]
        if kind == "Conv2D":
            module = _convolution(layer, weights)
        elif kind == "Dense":
            module = nn.Linear(*weights[0].shape, bias=layer.use_bias)
            _fill(module, weight=weights[0].T, **({"bias": weights[1]} if layer.use_bias else {}))
        elif kind in ("BatchNorm", "BatchNormalization"):
            module = nn.BatchNorm2d(len(weights[0]), layer.epsilon, 1 - layer.momentum)
            names = ("weight", "bias", "running_mean", "running_var")
            _fill(module, **dict(zip(names, weights, strict=True)))
        elif kind == "Dropout":
            module = nn.Dropout(layer.rate)
        elif kind == "MaxPool":
            module = nn.MaxPool2d(2)
        elif kind == "Flatten":
            module = _flattened
        elif kind in ("ReLU", "Activation"):
            name = layer.get_config().get("activation", "relu")
            module = ACTIVATIONS[name]()
        elif kind == "ZeroPadding2D":
            (top, bottom), (left, right) = layer.padding
            module = nn.ZeroPad2d((left, right, top, bottom))
        elif kind == "Add":
            module = torch.add
        elif kind == "GlobalAveragePooling2D":
            module = functools.partial(torch.mean, dim=(2, 3))
        else:
            raise SystemExit(f"{layer.name}: expected a layer of our networks, received {kind}")
        if relu and isinstance(module, nn.Module):
            return nn.Sequential(module, nn.ReLU())
        return module


def _flattened(x: torch.Tensor) -> torch.Tensor:
    """Return images [B, C, H, W] flattened with the channels last, as Keras has them."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _convolution(layer: keras.layers.Conv2D, weights: list[torch.Tensor]) -> nn.Module:
    size, stride = layer.kernel_size[0], layer.strides[0]
    same = layer.padding == "same"
    module = nn.Conv2d(
        weights[0].shape[2],
        weights[0].shape[3],
        size,
        stride,
        padding=size // 2 if same and stride == 1 else 0,
        bias=layer.use_bias,
    )
    filled = {"bias": weights[1]} if layer.use_bias else {}
    _fill(module, weight=weights[0].permute(3, 2, 0, 1), **filled)
    zeros = max(size - stride, 0)  # of "same" on sizes that the stride divides, more at the end
    if not same or stride == 1 or not zeros:
        return module
    start, end = zeros // 2, zeros - zeros // 2
    return nn.Sequential(nn.ZeroPad2d((start, end, start, end)), module)


def _fill(module: nn.Module, **tensors: torch.Tensor) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            getattr(module, name).copy_(tensor)
