"""A Keras network as a torch module with the same weights, for comparisons with torch code."""

from __future__ import annotations

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
            made = self._layer(layer)
            if isinstance(made, nn.Module):
                self.add_module(layer.name, made)
            inputs = layer.input if isinstance(layer.input, list) else [layer.input]
            self.steps.append((made, [id(tensor) for tensor in inputs], id(layer.output)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = {self.start: x}
        for step, inputs, output in self.steps:
            values[output] = step(*(values[name] for name in inputs))
        return values[self.end]

    def _layer(self, layer: Any) -> Callable[..., torch.Tensor]:
        kind, weights = type(layer).__name__, [torch.tensor(w) for w in layer.get_weights()]
        relu = getattr(layer, "activation", None) is keras.activations.relu
        made: Callable[..., torch.Tensor]
        if kind == "Conv2D":
            made = _convolution(layer, weights)
        elif kind == "Dense":
            made = nn.Linear(*weights[0].shape, bias=layer.use_bias)
            _fill(made, weight=weights[0].T, **({"bias": weights[1]} if layer.use_bias else {}))
        elif kind in ("BatchNorm", "BatchNormalization"):
            made = nn.BatchNorm2d(len(weights[0]), layer.epsilon, 1 - layer.momentum)
            names = ("weight", "bias", "running_mean", "running_var")
            _fill(made, **dict(zip(names, weights, strict=True)))
        elif kind == "Dropout":
            made = nn.Dropout(layer.rate)
        elif kind == "MaxPool":
            made = nn.MaxPool2d(2)
        elif kind == "Flatten":  # Keras flattens channels last
            made = lambda x: x.permute(0, 2, 3, 1).flatten(1)  # noqa: E731
        elif kind in ("ReLU", "Activation"):
            name = layer.get_config().get("activation", "relu")
            made = ACTIVATIONS[name]()
        elif kind == "ZeroPadding2D":
            (top, bottom), (left, right) = layer.padding
            made = nn.ZeroPad2d((left, right, top, bottom))
        elif kind == "Add":
            made = torch.add
        elif kind == "GlobalAveragePooling2D":
            made = lambda x: x.mean((2, 3))  # noqa: E731
        else:
            raise SystemExit(f"{layer.name}: expected a layer of our networks, received {kind}")
        return nn.Sequential(made, nn.ReLU()) if relu and isinstance(made, nn.Module) else made


def _convolution(layer: keras.layers.Conv2D, weights: list[torch.Tensor]) -> nn.Module:
    size, stride = layer.kernel_size[0], layer.strides[0]
    same = layer.padding == "same"
    made = nn.Conv2d(
        weights[0].shape[2],
        weights[0].shape[3],
        size,
        stride,
        padding=size // 2 if same and stride == 1 else 0,
        bias=layer.use_bias,
    )
    filled = {"bias": weights[1]} if layer.use_bias else {}
    _fill(made, weight=weights[0].permute(3, 2, 0, 1), **filled)
    zeros = max(size - stride, 0)  # of "same" on sizes that the stride divides, more at the end
    if not same or stride == 1 or not zeros:
        return made
    start, end = zeros // 2, zeros - zeros // 2
    return nn.Sequential(nn.ZeroPad2d((start, end, start, end)), made)


def _fill(module: nn.Module, **tensors: torch.Tensor) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            getattr(module, name).copy_(tensor)
