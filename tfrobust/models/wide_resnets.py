"""WideResNets (the usual one and that of IAAT), and a small residual network for CPUs."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tfrobust.errors import number, require
from tfrobust.models.arguments import checked
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import batch_norm, conv, input_image, normalize
from tfrobust.models.residual import Builder, block_strides, start_network


@checked
@neutral()
def wide_resnet(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 28,
    width: int = 8,
    dropout: float = 0.0,
    activation: str = "relu",
    init: str = "keras",
    padding: str = "torch",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    lambdas: list[float] | None = None,
    encoding: str = "random",
    widths: list[float] | None = None,
) -> keras.Model:
    """Return WideResNet-depth-width (Zagoruyko and Komodakis, 2016): [B, H, W, C] -> logits.

    Args:
        depth: 6 n + 4, for n blocks in each of the three groups. Madry et al. (2018) and others do
            not count the shortcuts, so 6 n + 2 is the same network: 32 is 34.
        width: The number of filters in the three groups is 16, 32 and 64 times this.
        dropout: The rate of dropout before the second convolution of a block.
        activation: Relu, silu or softplus.
        init: The initial weights: keras (convolutions He-normal of the fan-in, logits
            Glorot-uniform), he (convolutions He-normal of the fan-out, logits as in torch but with
            a bias of 0, as in the WideResNet code of TRADES and AWP) or torch (all uniform within
            1 / sqrt(fan-in)).
        padding: The zeros of convolutions of stride 2: torch (one on each side) or same (at the end
            alone, as in TensorFlow, JAX, Gowal et al., 2020, and Wang et al., 2023).
        mean: The mean of each channel, for a normalisation inside the network; None for 0.
        std: The standard deviation of each channel, likewise; None for 1.
        lambdas: The lambdas of a once-for-all network with inputs {"image", "strength"}.
        encoding: How lambda is encoded; see `tfrobust.models.conditional.Encoding`.
        widths: The shares of its channels to which a once-for-all network can be slimmed. Its
            inputs are {"image", "strength", "width"}.
    """
    blocks = _blocks(depth)
    dropout = number("dropout", dropout, at_least=0, below=1)
    builder = start_network(image_shape, lambdas, encoding, widths, activation, init, padding)
    x = builder.conv(normalize(builder.image, mean, std), 16, 3)
    x = _pre_groups(builder, x, [16 * width, 32 * width, 64 * width], blocks, dropout)
    return builder.model(x, num_classes, f"wide_resnet_{depth}_{width}")


def _blocks(depth: int) -> int:
    """Return the number of blocks in each of the three groups."""
    fits = depth >= 8 and depth % 6 in (2, 4)
    require(fits, "depth", "6 n + 4, such as 16 or 28, or 6 n + 2, such as 32", depth)
    return (depth - 2) // 6


def _pre_groups(
    builder: Builder, x: Any, filters: list[int], blocks: int, dropout: float = 0.0
) -> Any:
    """Add groups of pre-activation blocks, with `filters` in each, and pool: [B, D]."""
    for group, stride in block_strides([blocks] * len(filters)):
        x = builder.pre_block(x, filters[group], stride, dropout=dropout)
    return layers.GlobalAveragePooling2D()(builder.active(x, film=False))


@checked
@neutral()
def small_resnet(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    groups: list[int] | None = None,
    blocks: int = 1,
    activation: str = "relu",
    init: str = "keras",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    lambdas: list[float] | None = None,
    encoding: str = "random",
    widths: list[float] | None = None,
) -> keras.Model:
    """Return a residual network for CPUs: a strided stem, then groups of residual blocks.

    The stem halves the size of the image, so that an epoch of one-step training on CIFAR-10 is
    affordable on two cores.

    Args:
        groups: The number of filters in each group, [32, 64, 128] by default.
        blocks: The number of blocks in each group.
        activation, init, mean, std, lambdas, encoding, widths: As in `wide_resnet`.
    """
    groups = [32, 64, 128] if groups is None else groups
    builder = start_network(image_shape, lambdas, encoding, widths, activation, init)
    x = builder.conv(normalize(builder.image, mean, std), groups[0], 3, 2)
    return builder.model(_pre_groups(builder, x, groups, blocks), num_classes, "small_resnet")


@checked
@neutral()
def iaat_wide_resnet(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 32,
    width: int = 10,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> keras.Model:
    """Return the WideResNet of IAAT (Balaji et al., 2019, arXiv:1910.08051), as in their code.

    Only the BatchNorm on the logits has a scale and an offset. The stem has as many filters as the
    first group. Where the shape changes, the shortcut is average pooled and padded with channels of
    zeros. The logits come from a 1 x 1 convolution, BatchNorm, and the mean over all pixels. The
    initial convolutions are He-normal of the fan-out. The depths 32 and 34 are the same, as in
    `wide_resnet`.

    Args:
        depth, width, mean, std: As in `wide_resnet`.
    """
    blocks = _blocks(depth)
    image = input_image(image_shape)
    x = conv(normalize(image, mean, std), 16 * width, 3, init="he")
    for group, stride in block_strides([blocks] * 3):
        x = _iaat_block(x, 16 * width * 2**group, stride)
    x = conv(_iaat_active(x), num_classes, 1, init="he")
    x = batch_norm()(x)
    x = layers.GlobalAveragePooling2D(dtype="float32", name="logits")(x)
    return keras.Model(image, x, name=f"iaat_wide_resnet_{depth}_{width}")


def _iaat_block(x: Any, filters: int, stride: int) -> Any:
    out = conv(_iaat_active(x), filters, 3, stride, init="he")
    out = conv(_iaat_active(out), filters, 3, init="he")
    if stride > 1:
        pooled = layers.AveragePooling2D(3, stride)(layers.ZeroPadding2D(1)(x))
        x = layers.Concatenate()([pooled, layers.Rescaling(0.0)(pooled)])
    return layers.add([x, out])


def _iaat_active(x: Any) -> Any:
    return layers.ReLU()(batch_norm(affine=False)(x))
