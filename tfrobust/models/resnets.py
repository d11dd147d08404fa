"""The ResNets of ImageNet, and those with pre-activation, also for CIFAR."""

from __future__ import annotations

import keras
from keras import layers

from tfrobust.errors import choose, require, require_at_least
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import max_pool, normalize
from tfrobust.models.residual import parts

# Depth: (number of blocks in each of the four groups, whether a block is a bottleneck).
DEPTHS = {18: ([2, 2, 2, 2], False), 34: ([3, 4, 6, 3], False), 50: ([3, 4, 6, 3], True)}


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
    """ResNet-18, -34 or -50 (He et al., 2016), with BatchNorm after each convolution.

    Args:
        depth: 18, 34 or 50.
        width: Number of filters of the first of the four groups. Each group doubles it.
        stem: "small" is one 3 x 3 convolution, as for CIFAR. "imagenet" is a 7 x 7 convolution and
            a max pooling, both of stride 2. XLA computes the second derivative of that pooling
            wrongly: train such a network without XLA.
        activation, init, mean, std, lambdas, encoding, widths: As in `wide_resnet`.
    """
    counts, bottleneck = _groups(depth, width)
    choose("stem", stem, ("small", "imagenet"))
    made_of = parts(image_shape, lambdas, encoding, widths, activation, init)
    large = stem == "imagenet"
    x = normalize(made_of.image, mean, std)
    x = made_of.active(made_of.conv(x, width, 7 if large else 3, 2 if large else 1))
    x = max_pool(x) if large else x
    for group, blocks in enumerate(counts):
        for block in range(blocks):
            stride = 2 if group > 0 and block == 0 else 1
            x = made_of.post_block(x, width * 2**group, stride, bottleneck)
    return made_of.model(layers.GlobalAveragePooling2D()(x), num_classes, f"resnet_{depth}")


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
    """PreActResNet-18, -34 or -50 (He et al., 2016, arXiv:1603.05027), for CIFAR.

    BatchNorm and the activation come before each convolution. By default the network is that of
    AWP's code.

    Args:
        depth: 18, 34 or 50.
        width: Number of filters of the first of the four groups. Each group doubles it.
        active_shortcut: Whether the convolution of a shortcut takes the activated input of
            its block, or else the input itself, as in the code of N-FGSM and GradAlign.
        last_norm: Whether BatchNorm and the activation come before the pooling. They do not in
            GradAlign's code.
        shortcut_kernel: Height and width of the filters of a shortcut's convolution. They are 3 in
            the code of Gowal et al. (2020), whose shortcut takes the input itself.
        activation, init, padding, mean, std, lambdas, encoding, widths: As in `wide_resnet`.
    """
    counts, bottleneck = _groups(depth, width)
    require(shortcut_kernel in (1, 3), "shortcut_kernel", "1 or 3", shortcut_kernel)
    made_of = parts(image_shape, lambdas, encoding, widths, activation, init, padding)
    x = made_of.conv(normalize(made_of.image, mean, std), width, 3)
    for group, blocks in enumerate(counts):
        for block in range(blocks):
            x = made_of.pre_block(
                x,
                width * 2**group,
                2 if group > 0 and block == 0 else 1,
                bottleneck=bottleneck,
                active_shortcut=active_shortcut,
                shortcut_kernel=shortcut_kernel,
            )
    x = made_of.active(x, film=False) if last_norm else x
    x = layers.GlobalAveragePooling2D()(x)
    return made_of.model(x, num_classes, f"preact_resnet_{depth}")


def _groups(depth: int, width: int) -> tuple[list[int], bool]:
    """Return the number of blocks in each group, and whether a block is a bottleneck."""
    require(depth in DEPTHS, "depth", f"one of {', '.join(map(str, DEPTHS))}", depth)
    require_at_least(1, width=width)
    return DEPTHS[depth]
