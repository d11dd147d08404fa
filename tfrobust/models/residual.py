"""Pre-activation residual networks (He et al., 2016): WideResNet and a small one for CPUs."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tfrobust.models.layers import conv, input_image, logits, norm_relu, normalize
from tfrobust.registry import require


def _block(x: Any, filters: int, stride: int) -> Any:
    """BN-ReLU-conv twice; where the shape changes a 1 x 1 convolution of the activated input."""
    active = norm_relu(x)
    changes = stride > 1 or x.shape[-1] != filters
    shortcut = conv(filters, 1, stride)(active) if changes else x
    out = conv(filters, 3, stride)(active)
    return layers.add([shortcut, conv(filters, 3)(norm_relu(out))])


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
) -> keras.Model:
    image = input_image(image_shape)
    filters, stride = stem
    x = conv(filters, 3, stride)(normalize(image, mean, std))
    for group, size in enumerate(groups):
        for block in range(blocks):
            x = _block(x, size, 2 if group > 0 and block == 0 else 1)
    x = layers.GlobalAveragePooling2D()(norm_relu(x))
    return keras.Model(image, logits(num_classes)(x), name=name)


def wide_resnet(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 28,
    width: int = 8,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> keras.Model:
    """WideResNet-depth-width (Zagoruyko and Komodakis, 2016): [B, H, W, C] in [0, 1] -> logits.

    depth is 6 n + 4 for n blocks in each of three groups of 16, 32 and 64 times width filters.
    mean, std: per-channel normalisation inside the network; none by default.
    """
    require(depth >= 10 and (depth - 4) % 6 == 0, "depth", "6 n + 4, such as 16 or 28", depth)
    require(width >= 1, "width", "int >= 1", width)
    return _residual(
        image_shape,
        num_classes,
        stem=(16, 1),
        groups=[16 * width, 32 * width, 64 * width],
        blocks=(depth - 4) // 6,
        mean=mean,
        std=std,
        name=f"wide_resnet_{depth}_{width}",
    )


def small_resnet(
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    groups: list[int] | None = None,
    blocks: int = 1,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> keras.Model:
    """A residual network for CPUs: a strided stem, then groups of residual blocks.

    The stem halves the image at once, which makes a CIFAR-10 epoch of one-step training
    affordable on two cores. groups: filters of each group, [32, 64, 128] by default.
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
    )
