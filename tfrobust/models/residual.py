"""Residual networks: WideResNet, a small one for CPUs, and the ResNets of ImageNet."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tfrobust.errors import require, require_at_least
from tfrobust.models.conditional import Condition, DualBatchNorm, FiLM, conditional_inputs, slim
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import Dropout, batch_norm, conv, input_image, logits, normalize


def norm(x: Any, condition: Condition | None, film: bool = True) -> Any:
    """Apply BatchNorm; in a once-for-all network DualBatchNorm, then FiLM, at the width in use."""
    if condition is None:
        return batch_norm()(x)
    x = DualBatchNorm()([x, condition.inputs["strength"], *condition.size])
    if film:
        x = FiLM(condition.widths)([x, condition.code, *condition.size])
    return slim(x, condition)


def norm_relu(x: Any, condition: Condition | None, film: bool = True) -> Any:
    """Apply `norm`, then ReLU, as before a pre-activation convolution."""
    return layers.ReLU()(norm(x, condition, film))


def model(
    image: Any, condition: Condition | None, x: Any, num_classes: int, name: str
) -> keras.Model:
    """Return the network from the image, and lambda and the width, to the logits of x [B, D]."""
    inputs = image if condition is None else {"image": image, **condition.inputs}
    return keras.Model(inputs, logits(num_classes)(x), name=name)


def _block(x: Any, filters: int, stride: int, condition: Condition | None, dropout: float) -> Any:
    """Add a pre-activation block: BN-ReLU-conv twice, plus the shortcut.

    Where the shape changes the shortcut is a 1 x 1 convolution of the activated input.
    """
    active = norm_relu(x, condition)
    changes = stride > 1 or x.shape[-1] != filters
    shortcut = conv(filters, 1, stride)(active) if changes else x
    out = norm_relu(conv(filters, 3, stride)(active), condition)
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
    condition = conditional_inputs(lambdas, encoding, widths)
    filters, stride = stem
    x = conv(filters, 3, stride)(normalize(image, mean, std))
    for group, size in enumerate(groups):
        for block in range(blocks):
            x = _block(x, size, 2 if group > 0 and block == 0 else 1, condition, dropout)
    x = layers.GlobalAveragePooling2D()(norm_relu(x, condition, film=False))
    return model(image, condition, x, num_classes, name)


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

    Args:
        depth: 6 n + 4, for n blocks in each of the three groups.
        width: The groups have 16, 32 and 64 times as many filters.
        dropout: The rate of dropout before the second convolution of a block.
        mean: Mean of each channel, for a normalisation inside the network; None for 0.
        std: Standard deviation of each channel, likewise; None for 1.
        lambdas: Makes a once-for-all network with inputs {"image", "strength"}.
        encoding: How lambda is encoded; see `tfrobust.models.conditional.Encoding`.
        widths: Makes a once-for-all network that can be slimmed to these shares of its channels,
            with inputs {"image", "strength", "width"}.
    """
    require(depth >= 10 and (depth - 4) % 6 == 0, "depth", "6 n + 4, such as 16 or 28", depth)
    require_at_least(1, width=width)
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

    The stem halves the image at once, so that an epoch of one-step training on CIFAR-10 is
    affordable on two cores.

    Args:
        groups: Number of filters of each group, [32, 64, 128] by default.
        blocks: Number of blocks of each group.
        mean, std, lambdas, encoding, widths: As in `wide_resnet`.
    """
    groups = [32, 64, 128] if groups is None else groups
    sizes = [*groups, blocks]
    require(groups and min(sizes) >= 1, "groups, blocks", "numbers >= 1", sizes)
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


# Depth: (number of blocks in each of the four groups, whether a block is a bottleneck).
DEPTHS = {18: ([2, 2, 2, 2], False), 34: ([3, 4, 6, 3], False), 50: ([3, 4, 6, 3], True)}
BOTTLENECK = 4  # filters at the end of a bottleneck block, in units of its inner ones


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
    """ResNet-18, -34 or -50 (He et al., 2016), with BatchNorm after each convolution.

    Args:
        depth: 18, 34 or 50.
        width: Number of filters of the first of the four groups. Each group doubles it.
        stem: "small" is one 3 x 3 convolution, as for CIFAR. "imagenet" is a 7 x 7 convolution and
            a max pooling, both of stride 2. XLA computes the second derivative of that pooling
            wrongly: train such a network without XLA.
        mean, std, lambdas, encoding, widths: As in `wide_resnet`.
    """
    require(depth in DEPTHS, "depth", f"one of {', '.join(map(str, DEPTHS))}", depth)
    require_at_least(1, width=width)
    require(stem in ("small", "imagenet"), "stem", "small or imagenet", stem)
    image = input_image(image_shape)
    condition = conditional_inputs(lambdas, encoding, widths)
    large = stem == "imagenet"
    x = conv(width, 7 if large else 3, 2 if large else 1)(normalize(image, mean, std))
    x = norm_relu(x, condition)
    x = layers.MaxPooling2D(3, 2, "same")(x) if large else x
    counts, bottleneck = DEPTHS[depth]
    for group, blocks in enumerate(counts):
        for block in range(blocks):
            stride = 2 if group > 0 and block == 0 else 1
            x = _post_block(x, width * 2**group, stride, bottleneck, condition)
    return model(
        image, condition, layers.GlobalAveragePooling2D()(x), num_classes, f"resnet_{depth}"
    )


def _post_block(
    x: Any, filters: int, stride: int, bottleneck: bool, condition: Condition | None
) -> Any:
    """Add a block of conv-BN-ReLU, twice or in a bottleneck three times.

    The last ReLU comes after the shortcut is added.
    """
    if bottleneck:
        wide = filters * BOTTLENECK
        out = norm_relu(conv(filters, 1)(x), condition)
        out = norm_relu(conv(filters, 3, stride)(out), condition)
        out = norm(conv(wide, 1)(out), condition)
    else:
        wide = filters
        out = norm_relu(conv(filters, 3, stride)(x), condition)
        out = norm(conv(wide, 3)(out), condition)
    if stride > 1 or x.shape[-1] != wide:
        x = norm(conv(wide, 1, stride)(x), condition, film=False)
    return layers.ReLU()(layers.add([x, out]))
