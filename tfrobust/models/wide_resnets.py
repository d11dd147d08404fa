"""WideResNets: the usual one, that of IAAT, and a small residual network for CPUs."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tfrobust.errors import require, require_at_least
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import batch_norm, conv, input_image, normalize
from tfrobust.models.residual import Parts, parts


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
    """WideResNet-depth-width (Zagoruyko and Komodakis, 2016): [B, H, W, C] in [0, 1] -> logits.

    Args:
        depth: 6 n + 4, for n blocks in each of the three groups. Madry et al. (2018) and others do
            not count the shortcuts, so that 6 n + 2 is the same network: 32 is 34.
        width: The groups have 16, 32 and 64 times as many filters.
        dropout: The rate of dropout before the second convolution of a block.
        activation: Relu, silu or softplus.
        init: How the weights start: keras (convolutions He-normal of the fan-in, logits
            Glorot-uniform), he (He-normal of the fan-out, as in the WideResNet code of TRADES and
            AWP; logits as in torch without a bias) or torch (all uniform within 1 / sqrt(fan-in)).
        padding: Of the convolutions of stride 2: torch (one zero on each side) or same (at the end
            alone, as TensorFlow and JAX pad; so do Gowal et al., 2020, and Wang et al., 2023).
        mean: Mean of each channel, for a normalisation inside the network; None for 0.
        std: Standard deviation of each channel, likewise; None for 1.
        lambdas: Makes a once-for-all network with inputs {"image", "strength"}.
        encoding: How lambda is encoded; see `tfrobust.models.conditional.Encoding`.
        widths: Makes a once-for-all network that can be slimmed to these shares of its channels,
            with inputs {"image", "strength", "width"}.
    """
    blocks = _blocks(depth)
    require_at_least(1, width=width)
    require(0 <= dropout < 1, "dropout", "a number in [0, 1)", dropout)
    made_of = parts(image_shape, lambdas, encoding, widths, activation, init, padding)
    x = made_of.conv(normalize(made_of.image, mean, std), 16, 3)
    groups = [16 * width, 32 * width, 64 * width]
    x = _pre_groups(made_of, x, groups, blocks, dropout)
    return made_of.model(x, num_classes, f"wide_resnet_{depth}_{width}")


def _blocks(depth: int) -> int:
    """Return the number of blocks in each of the three groups."""
    fits = depth >= 8 and depth % 6 in (2, 4)
    require(fits, "depth", "6 n + 4, such as 16 or 28, or 6 n + 2, such as 32", depth)
    return (depth - 2) // 6


def _pre_groups(
    made_of: Parts, x: Any, groups: list[int], blocks: int, dropout: float = 0.0
) -> Any:
    """Add groups of pre-activation blocks, all but the first with a stride, and pool: [B, D]."""
    for group, size in enumerate(groups):
        for block in range(blocks):
            stride = 2 if group > 0 and block == 0 else 1
            x = made_of.pre_block(x, size, stride, dropout=dropout)
    return layers.GlobalAveragePooling2D()(made_of.active(x, film=False))


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
    made_of = parts(image_shape, lambdas, encoding, widths)
    x = made_of.conv(normalize(made_of.image, mean, std), groups[0], 3, 2)
    return made_of.model(_pre_groups(made_of, x, groups, blocks), num_classes, "small_resnet")


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
    """The WideResNet of IAAT (Balaji et al., 2019, arXiv:1910.08051), as in the authors' code.

    BatchNorm has neither scale nor offset. The stem has as many filters as the first group. Where
    the shape changes, the shortcut is average pooled and filled up with channels of zeros. The
    logits are a 1 x 1 convolution, BatchNorm, and the mean over all places. The convolutions start
    He-normal of the fan-out. The depths 32 and 34 are the same, as in `wide_resnet`.

    Args:
        depth, width, mean, std: As in `wide_resnet`.
    """
    blocks = _blocks(depth)
    require_at_least(1, width=width)
    image = input_image(image_shape)
    x = conv(normalize(image, mean, std), 16 * width, 3, init="he")
    for group in range(3):
        for block in range(blocks):
            stride = 2 if group > 0 and block == 0 else 1
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
