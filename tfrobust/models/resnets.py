"""ResNets, and ResNets with pre-activation."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tfrobust.errors import choose, require
from tfrobust.models.arguments import checked
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import max_pool, normalize
from tfrobust.models.residual import block_strides, start_network

# Depth: (number of blocks in each of the four groups, whether a block is a bottleneck).
DEPTHS = {18: ([2, 2, 2, 2], False), 34: ([3, 4, 6, 3], False), 50: ([3, 4, 6, 3], True)}


@checked
@neutral()
def resnet(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 18,
    width: int = 64,
    stem: str = "small",
    activation: str = "relu",
    init: str = "keras",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    lambdas: list[float] | None = None,
    encoding: str = "random",
    widths: list[float] | None = None,
) -> keras.Model:
    """Return ResNet-18, -34 or -50 (He et al., 2016), with BatchNorm after each convolution.

    Args:
        depth: 18, 34 or 50.
        width: The number of filters in the first of the four groups. Each group doubles it.
        stem: "small" is one 3 x 3 convolution, as for CIFAR. "imagenet" is a 7 x 7 convolution and
            a max pooling, both of stride 2. Train such a network without XLA, which computes the
            second derivative of that pooling wrongly.
        activation, init, mean, std, lambdas, encoding, widths: As in `wide_resnet`.
    """
    counts, bottleneck = _groups(depth)
    choose("stem", stem, ("small", "imagenet"))
    builder = start_network(image_shape, lambdas, encoding, widths, activation, init)
    large = stem == "imagenet"
    x = normalize(builder.image, mean, std)
    x = builder.active(builder.conv(x, width, 7 if large else 3, 2 if large else 1))
    x = max_pool(x) if large else x
    for group, stride in block_strides(counts):
        x = builder.post_block(x, width * 2**group, stride, bottleneck)
    return builder.model(layers.GlobalAveragePooling2D()(x), num_classes, f"resnet_{depth}")


@checked
@neutral()
def preact_resnet(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 18,
    width: int = 64,
    active_shortcut: bool = True,
    last_norm: bool = True,
    shortcut_kernel: int = 1,
    activation: str = "relu",
    init: str = "keras",
    padding: str = "torch",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    lambdas: list[float] | None = None,
    encoding: str = "random",
    widths: list[float] | None = None,
) -> keras.Model:
    """Return PreActResNet-18, -34 or -50 (He et al., 2016, arXiv:1603.05027), for CIFAR.

    BatchNorm and the activation come before each convolution. By default the network is that of
    AWP's code.

    Args:
        depth: 18, 34 or 50.
        width: The number of filters in the first of the four groups. Each group doubles it.
        active_shortcut: Whether the convolution of a shortcut takes the activated input of its
            block. Otherwise it takes the input, as in the code of N-FGSM and GradAlign.
        last_norm: Whether BatchNorm and the activation come before the pooling, as they do not in
            GradAlign's code.
        shortcut_kernel: The height and width of the filters in a shortcut's convolution. In the
            code of Gowal et al. (2020) they are 3, and the shortcut takes the input itself.
        activation, init, padding, mean, std, lambdas, encoding, widths: As in `wide_resnet`.
    """
    counts, bottleneck = _groups(depth)
    require(shortcut_kernel in (1, 3), "shortcut_kernel", "1 or 3", shortcut_kernel)
    builder = start_network(image_shape, lambdas, encoding, widths, activation, init, padding)
    x = builder.conv(normalize(builder.image, mean, std), width, 3)
    options: Any = {
        "bottleneck": bottleneck,
        "active_shortcut": active_shortcut,
        "shortcut_kernel": shortcut_kernel,
    }
    for group, stride in block_strides(counts):
        x = builder.pre_block(x, width * 2**group, stride, **options)
    x = builder.active(x, film=False) if last_norm else x
    x = layers.GlobalAveragePooling2D()(x)
    return builder.model(x, num_classes, f"preact_resnet_{depth}")


def _groups(depth: int) -> tuple[list[int], bool]:
    """Return the number of blocks in each group, and whether a block is a bottleneck."""
    require(depth in DEPTHS, "depth", f"one of {', '.join(map(str, DEPTHS))}", depth)
    return DEPTHS[depth]
