"""The builder of networks, above all residual ones, ordinary or once-for-all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
from keras import layers

from tfrobust.errors import choose
from tfrobust.models import layers as ours
from tfrobust.models.conditional import (
    ENCODINGS,
    Condition,
    DualBatchNorm,
    FiLM,
    conditional_inputs,
    slim,
)
from tfrobust.models.layers import ACTIVATIONS, INITS, PADDINGS, Dropout, batch_norm, input_image

BOTTLENECK = 4  # filters at the end of a bottleneck block for each filter inside


def block_strides(counts: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the group and the stride of each block, by the number of blocks in each group.

    The stride is 2 for the first block of all groups but the first.
    """
    for group, count in enumerate(counts):
        for block in range(count):
            yield group, 2 if group > 0 and block == 0 else 1


class Builder(NamedTuple):
    """The inputs of a network and the kind of its layers, from which it is built.

    Attributes:
        image: The network's input, [B, H, W, C] in [0, 1].
        condition: The other inputs of a once-for-all network; None for an ordinary one.
        activation: One of ACTIVATIONS.
        init: One of INITS.
        padding: One of PADDINGS.
    """

    image: Any
    condition: Condition | None = None
    activation: str = "relu"
    init: str = "keras"
    padding: str = "torch"

    def conv(self, x: Any, filters: int, kernel: int, stride: int = 1) -> Any:
        """Return the convolution of x without a bias."""
        return ours.conv(x, filters, kernel, stride, init=self.init, padding=self.padding)

    def norm(self, x: Any, film: bool = True) -> Any:
        """Apply BatchNorm; in a once-for-all network DualBatchNorm, then FiLM."""
        if self.condition is None:
            return batch_norm()(x)
        x = DualBatchNorm()([x, self.condition.inputs["strength"], *self.condition.size])
        if not film:
            return x
        return FiLM(self.condition.widths)([x, self.condition.code, *self.condition.size])

    def activate(self, x: Any) -> Any:
        """Apply the activation, then set the channels beyond the width to 0."""
        return slim(ours.activate(x, self.activation), self.condition)

    def active(self, x: Any, film: bool = True) -> Any:
        """Apply `norm`, then the activation, as before a pre-activation convolution."""
        return self.activate(self.norm(x, film))

    def pre_block(
        self,
        x: Any,
        filters: int,
        stride: int,
        *,
        bottleneck: bool = False,
        active_shortcut: bool = True,
        shortcut_kernel: int = 1,
        dropout: float = 0.0,
    ) -> Any:
        """Add a block of two sequences of norm, activation, convolution; a bottleneck has three.

        Args:
            x: Feature maps [B, H, W, C].
            filters: The number of filters.
            stride: The stride of the first 3 x 3 convolution.
            bottleneck: Whether a 3 x 3 convolution is between two of 1 x 1, the second of which has
                BOTTLENECK times as many filters.
            active_shortcut: Whether a shortcut with a convolution, which a change of shape needs,
                takes the activated input. Otherwise it takes x.
            shortcut_kernel: The height and width of the filters of that convolution.
            dropout: The rate of dropout before the last convolution.
        """
        out_filters = filters * BOTTLENECK if bottleneck else filters
        active = self.active(x)
        out = self.active(self.conv(active, filters, 1)) if bottleneck else active
        out = self.active(self.conv(out, filters, 3, stride))
        out = Dropout(dropout)(out) if dropout else out
        out = self.conv(out, out_filters, 1 if bottleneck else 3)
        if stride > 1 or x.shape[-1] != out_filters:
            x = self.conv(active if active_shortcut else x, out_filters, shortcut_kernel, stride)
        return layers.add([x, out])

    def post_block(self, x: Any, filters: int, stride: int, bottleneck: bool) -> Any:
        """Add a block of two sequences of convolution, norm, activation; a bottleneck has three.

        The last activation follows the addition of the shortcut.
        """
        out_filters = filters * BOTTLENECK if bottleneck else filters
        out = self.active(self.conv(x, filters, 1)) if bottleneck else x
        out = self.active(self.conv(out, filters, 3, stride))
        out = self.norm(self.conv(out, out_filters, 1 if bottleneck else 3))
        if stride > 1 or x.shape[-1] != out_filters:
            x = self.norm(self.conv(x, out_filters, 1, stride), film=False)
        return self.activate(layers.add([x, out]))

    def model(self, x: Any, num_classes: int, name: str) -> keras.Model:
        """Return the network from its inputs to the logits of the features x [B, D]."""
        inputs = self.image
        if self.condition is not None:
            inputs = {"image": self.image, **self.condition.inputs}
        return keras.Model(inputs, ours.logits(x, num_classes, self.init), name=name)


def start_network(
    image_shape: tuple[int, ...],
    lambdas: list[float] | None,
    encoding: str,
    widths: list[float] | None,
    activation: str = "relu",
    init: str = "keras",
    padding: str = "torch",
) -> Builder:
    """Create the inputs of a network and return its builder.

    Args:
        image_shape: The shape of the images, (H, W, C).
        lambdas, encoding, widths: See `tfrobust.models.conditional`.
        activation: One of ACTIVATIONS.
        init: One of INITS.
        padding: One of PADDINGS.
    """
    choose("activation", activation, ACTIVATIONS)
    choose("init", init, INITS)
    choose("padding", padding, PADDINGS)
    choose("encoding", encoding, ENCODINGS)
    image = input_image(image_shape)
    return Builder(image, conditional_inputs(lambdas, encoding, widths), activation, init, padding)
