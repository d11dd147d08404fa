"""The architectures of published weights: our network, and what torch calls its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import keras

from tfrobust.models import preact_resnet, resnet, wide_resnet

IMAGE_SHAPE = (32, 32, 3)
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel
# The constants of most published code, by the number of classes.
CIFAR: dict[int, Normalisation] = {
    10: ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
HALF: dict[int, Normalisation] = dict.fromkeys((10, 100), ((0.5,) * 3, (0.5,) * 3))


@dataclasses.dataclass(frozen=True)
class Names:
    """What torch calls the layers of a residual network. A block is its group, a dot, its number.

    Attributes:
        stem: The first convolution.
        groups: The groups of blocks.
        norms, convs: The BatchNorms and the convolutions of a block, in their order.
        shortcut: The convolution of a block's shortcut, where the number of channels changes.
        logits: The last layer.
        last_norm: The BatchNorm before the pooling, if there is one.
        stem_norm, shortcut_norm: The BatchNorms after these convolutions, if they have one.
    """

    stem: str
    groups: tuple[str, ...]
    norms: tuple[str, ...]
    convs: tuple[str, ...]
    shortcut: str
    logits: str
    last_norm: str | None = None
    stem_norm: str | None = None
    shortcut_norm: str | None = None


class Layer(NamedTuple):
    """A layer with weights: its kind, its name in torch, and the shape of its kernel there."""

    kind: type[keras.Layer]
    name: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network whose published weights can be loaded.

    Attributes:
        build: Makes the network from the shape of its images, its classes, and `mean` and `std`.
        names: What torch calls its layers.
        channels: The number of filters of the stem and of each group.
        blocks: The number of blocks in each group.
        shortcut_kernel: Height and width of the filters of a shortcut.
        normalisation: Mean and standard deviation by number of classes; none for images in [0, 1].
    """

    build: Callable[..., keras.Model]
    names: Names
    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    shortcut_kernel: int = 1
    normalisation: dict[int, Normalisation] = dataclasses.field(default_factory=dict)

    def layers(self, classes: int) -> Iterator[Layer]:
        """Yield the layers with weights, of each kind in the order in which `build` makes them."""
        names, (before, *groups) = self.names, self.channels
        yield _conv(names.stem, 3, before)
        if names.stem_norm:
            yield _norm(names.stem_norm, before)
        for group, channels, blocks in zip(names.groups, groups, self.blocks, strict=True):
            for block in range(blocks):
                yield from self._block(f"{group}.{block}.", before, channels)
                before = channels
        if names.last_norm:
            yield _norm(names.last_norm, before)
        yield Layer(keras.layers.Dense, names.logits, (classes, before))

    def _block(self, block: str, before: int, channels: int) -> Iterator[Layer]:
        post = self.names.shortcut_norm is not None  # a BatchNorm follows each convolution
        inputs = before
        for norm, conv in zip(self.names.norms, self.names.convs, strict=True):
            yield _norm(block + norm, channels if post else inputs)
            yield _conv(block + conv, inputs, channels)
            inputs = channels
        if channels != before:
            yield _conv(block + self.names.shortcut, before, channels, self.shortcut_kernel)
            if self.names.shortcut_norm is not None:
                yield _norm(block + self.names.shortcut_norm, channels)


def _conv(name: str, channels: int, filters: int, kernel: int = 3) -> Layer:
    return Layer(keras.layers.Conv2D, name, (filters, channels, kernel, kernel))


def _norm(name: str, channels: int) -> Layer:
    return Layer(keras.layers.BatchNormalization, name, (channels,))


TRADES = Names(  # the WideResNet code of TRADES, which most papers share
    stem="conv1",
    groups=("block1.layer", "block2.layer", "block3.layer"),
    norms=("bn1", "bn2"),
    convs=("conv1", "conv2"),
    shortcut="convShortcut",
    last_norm="bn1",
    logits="fc",
)
DEEPMIND = Names(  # Gowal et al., 2020, arXiv:2010.03593
    stem="init_conv",
    groups=("layer.0.block", "layer.1.block", "layer.2.block"),
    norms=("batchnorm_0", "batchnorm_1"),
    convs=("conv_0", "conv_1"),
    shortcut="shortcut",
    last_norm="batchnorm",
    logits="logits",
)
DEEPMIND_PREACT = Names(
    stem="conv_2d",
    groups=("layer_0", "layer_1", "layer_2", "layer_3"),
    norms=("batchnorm_0", "batchnorm_1"),
    convs=("conv_2d_1", "conv_2d_2"),
    shortcut="shortcut",
    last_norm="batchnorm",
    logits="logits",
)
PREACT = Names(
    stem="conv1",
    groups=("layer1", "layer2", "layer3", "layer4"),
    norms=("bn1", "bn2"),
    convs=("conv1", "conv2"),
    shortcut="shortcut.0",
    last_norm="bn",
    logits="linear",
)
PREACT_WITHOUT_LAST_NORM = dataclasses.replace(PREACT, last_norm=None)
RESNET = dataclasses.replace(PREACT_WITHOUT_LAST_NORM, stem_norm="bn1", shortcut_norm="shortcut.1")


def wide(names: Names, depth: int, width: int, **options: Any) -> Architecture:
    """Return WideResNet-depth-width. options: those of `wide_resnet`, and `normalisation`."""
    normalisation = options.pop("normalisation", {})
    build = partial(wide_resnet, depth=depth, width=width, **options)
    channels = (16, 16 * width, 32 * width, 64 * width)
    return Architecture(
        build, names, channels, ((depth - 4) // 6,) * 3, normalisation=normalisation
    )


def deepmind(depth: int, width: int) -> Architecture:
    """Return the WideResNet of Gowal et al. (2020), which Wang et al. (2023) have too."""
    options = {"activation": "silu", "padding": "same", "normalisation": CIFAR}
    return wide(DEEPMIND, depth, width, **options)


def residual_18(
    names: Names,
    builder: Callable[..., keras.Model] = preact_resnet,
    width: int = 64,
    normalisation: dict[int, Normalisation] | None = None,
    **options: Any,
) -> Architecture:
    """Return a ResNet-18 with or without pre-activation, whose first group has `width` filters.

    options: those of `builder`.
    """
    return Architecture(
        partial(builder, depth=18, width=width, **options),
        names,
        (width, width, 2 * width, 4 * width, 8 * width),
        (2, 2, 2, 2),
        options.get("shortcut_kernel", 1),
        normalisation or {},
    )


INPUT_SHORTCUT: dict[str, Any] = {"active_shortcut": False, "last_norm": False}
DEEPMIND_SHORTCUT: dict[str, Any] = {
    "activation": "silu",
    "padding": "same",
    "active_shortcut": False,
    "shortcut_kernel": 3,
    "normalisation": CIFAR,
}
ARCHITECTURES: dict[str, Architecture] = {
    "resnet_18": residual_18(RESNET, resnet),
    "preact_resnet_18": residual_18(PREACT),
    "rice2020_preact_resnet_18": residual_18(PREACT, normalisation=CIFAR),
    "andriushchenko2020_preact_resnet_18": residual_18(PREACT_WITHOUT_LAST_NORM, **INPUT_SHORTCUT),
    "wong2020_preact_resnet_18": residual_18(
        PREACT_WITHOUT_LAST_NORM, normalisation=CIFAR, **INPUT_SHORTCUT
    ),
    "dm_preact_resnet_18": residual_18(DEEPMIND_PREACT, **DEEPMIND_SHORTCUT),
    "wrn_28_10": wide(TRADES, 28, 10),
    "wrn_34_10": wide(TRADES, 34, 10),
    "wrn_34_15": wide(TRADES, 34, 15),
    "wrn_34_20": wide(TRADES, 34, 20),
    "wrn_70_16": wide(TRADES, 70, 16),
    "hendrycks2019_wrn_28_10": wide(TRADES, 28, 10, normalisation=HALF),
    "rice2020_wrn_34_20": wide(TRADES, 34, 20, normalisation=CIFAR),
    "dm_wrn_28_10": deepmind(28, 10),
    "dm_wrn_34_10": deepmind(34, 10),
    "dm_wrn_34_20": deepmind(34, 20),
    "dm_wrn_70_16": deepmind(70, 16),
    "dm_wrn_106_16": deepmind(106, 16),
    "wang2023_wrn_28_10": deepmind(28, 10),
    "wang2023_wrn_70_16": deepmind(70, 16),
    "bartoldson2024_wrn_82_8": deepmind(82, 8),
    "bartoldson2024_wrn_94_16": deepmind(94, 16),
}
