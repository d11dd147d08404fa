"""Residual networks: WideResNet, a small one for CPUs, and those of ImageNet."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tfrobust.errors import require
from tfrobust.models.conditional import Condition, DualBatchNorm, FiLM, condition, slim
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import Dropout, batch_norm, conv, input_image, logits, normalize


def norm(x: Any, under: Condition | None, film: bool = True) -> Any:
    """BatchNorm; in a once-for-all network the dual one, then FiLM, at the width in use."""
    if under is None:
        return batch_norm()(x)
    x = DualBatchNorm()([x, under.inputs["strength"], *under.size])
    return slim(FiLM(under.widths)([x, under.code, *under.size]) if film else x, under)


def norm_relu(x: Any, under: Condition | None, film: bool = True) -> Any:
    """What stands before a pre-activation convolution."""
    return layers.ReLU()(norm(x, under, film))


def model(image: Any, under: Condition | None, x: Any, num_classes: int, name: str) -> keras.Model:
    """Image, or image, lambda and width, to the logits of the features x [B, D]."""
    inputs = image if under is None else {"image": image, **under.inputs}
    return keras.Model(inputs, logits(num_classes)(x), name=name)


def _block(x: Any, filters: int, stride: int, under: Condition | None, dropout: float) -> Any:
    """BN-ReLU-conv twice; where the shape changes a 1 x 1 convolution of the activated input."""
    active = norm_relu(x, under)
    changes = stride > 1 or x.shape[-1] != filters
    shortcut = conv(filters, 1, stride)(active) if changes else x
    out = norm_relu(conv(filters, 3, stride)(active), under)
    out = Dropout(dropout)(out) if dropout else out
    return layers.add([shortcut, conv(filters, 3)(out)])


def _residual(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    stem: tuple[int, int],
    groups: list[int],
    blocks: int,
    mean: list[float] | None,
    std: list[float] | None,
    name: str,
    lambdas: list[float] | None,
    encoding: str,
    widths: list[float] | None,
    dropout: float = 0.0,
) -> keras.Model:
    image = input_image(image_shape)
    under = condition(lambdas, encoding, widths)
    filters, stride = stem
    x = conv(filters, 3, stride)(normalize(image, mean, std))
    for group, size in enumerate(groups):
        for block in range(blocks):
            x = _block(x, size, 2 if group > 0 and block == 0 else 1, under, dropout)
    x = layers.GlobalAveragePooling2D()(norm_relu(x, under, film=False))
    return model(image, under, x, num_classes, name)


@neutral()
def wide_resnet(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 28,
    width: int = 8,
    dropout: float = 0.0,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    lambdas: list[float] | None = None,
    encoding: str = "random",
    widths: list[float] | None = None,
) -> keras.Model:
    """WideResNet-depth-width (Zagoruyko and Komodakis, 2016): [B, H, W, C] in [0, 1] -> logits.

    depth is 6 n + 4 for n blocks in each of three groups of 16, 32 and 64 times width filters.
    dropout: the share, before the second convolution of a block. mean, std: per-channel
    normalisation inside the network; none by default. lambdas: a once-for-all network, of inputs
    {"image", "strength"}; widths: one that can be slimmed to these shares of its channels, with the
    input "width" too (tfrobust.models.conditional).
    """
    require(depth >= 10 and (depth - 4) % 6 == 0, "depth", "6 n + 4, such as 16 or 28", depth)
    require(width >= 1, "width", "int >= 1", width)
    require(0 <= dropout < 1, "dropout", "a number in [0, 1)", dropout)
    return _residual(
        image_shape,
        num_classes,
        stem=(16, 1),
        groups=[16 * width, 32 * width, 64 * width],
        blocks=(depth - 4) // 6,
        mean=mean,
        std=std,
        name=f"wide_resnet_{depth}_{width}",
        lambdas=lambdas,
        encoding=encoding,
        widths=widths,
        dropout=dropout,
    )


@neutral()
def small_resnet(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    groups: list[int] | None = None,
    blocks: int = 1,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    lambdas: list[float] | None = None,
    encoding: str = "random",
    widths: list[float] | None = None,
) -> keras.Model:
    """A residual network for CPUs: a strided stem, then groups of residual blocks.

    The stem halves the image at once, which makes a CIFAR-10 epoch of one-step training
    affordable on two cores. groups: filters of each group, [32, 64, 128] by default. lambdas,
    widths: as in `wide_resnet`.
    """
    groups = [32, 64, 128] if groups is None else groups
    require(
        groups and min(*groups, blocks) >= 1, "groups, blocks", "numbers >= 1", [*groups, blocks]
    )
    return _residual(
        image_shape,
        num_classes,
        stem=(groups[0], 2),
        groups=groups,
        blocks=blocks,
        mean=mean,
        std=std,
        name="small_resnet",
        lambdas=lambdas,
        encoding=encoding,
        widths=widths,
    )


# depth: (blocks of each of the four groups, whether a block is a bottleneck)
DEPTHS = {18: ([2, 2, 2, 2], False), 34: ([3, 4, 6, 3], False), 50: ([3, 4, 6, 3], True)}
BOTTLENECK = 4  # a bottleneck block gives so many times its inner filters


@neutral()
def resnet(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 18,
    width: int = 64,
    stem: str = "small",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    lambdas: list[float] | None = None,
    encoding: str = "random",
    widths: list[float] | None = None,
) -> keras.Model:
    """ResNet-18, -34 or -50 (He et al., 2016), BatchNorm after each convolution.

    width: filters of the first of four groups; each group doubles them. stem: "small" is one 3 x 3
    convolution, as for CIFAR; "imagenet" a 7 x 7 one and a pooling, each of stride 2, whose second
    derivative XLA has wrong: train such a network without it. mean, std, lambdas, widths: as in
    `wide_resnet`.
    """
    require(depth in DEPTHS, "depth", f"one of {', '.join(map(str, DEPTHS))}", depth)
    require(width >= 1, "width", "int >= 1", width)
    require(stem in ("small", "imagenet"), "stem", "small or imagenet", stem)
    image = input_image(image_shape)
    under = condition(lambdas, encoding, widths)
    large = stem == "imagenet"
    x = conv(width, 7 if large else 3, 2 if large else 1)(normalize(image, mean, std))
    x = norm_relu(x, under)
    x = layers.MaxPooling2D(3, 2, "same")(x) if large else x
    counts, bottleneck = DEPTHS[depth]
    for group, blocks in enumerate(counts):
        for block in range(blocks):
            stride = 2 if group > 0 and block == 0 else 1
            x = _post_block(x, width * 2**group, stride, bottleneck, under)
    return model(image, under, layers.GlobalAveragePooling2D()(x), num_classes, f"resnet_{depth}")


def _post_block(
    x: Any, filters: int, stride: int, bottleneck: bool, under: Condition | None
) -> Any:
    """conv-BN-ReLU, the last ReLU after the shortcut is added; a bottleneck has three of them."""
    wide = filters * BOTTLENECK if bottleneck else filters
    inner = [(filters, 1, 1), (filters, 3, stride)] if bottleneck else [(filters, 3, stride)]
    out = x
    for size, kernel, step in inner:
        out = norm_relu(conv(size, kernel, step)(out), under)
    out = norm(conv(wide, 1 if bottleneck else 3)(out), under)
    if stride > 1 or x.shape[-1] != wide:
        x = norm(conv(wide, 1, stride)(x), under, film=False)
    return layers.ReLU()(layers.add([x, out]))
