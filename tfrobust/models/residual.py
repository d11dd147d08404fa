"""What the residual networks are made of, in ordinary and in once-for-all networks."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import layers

from tfrobust.errors import choose
from tfrobust.models import layers as ours
from tfrobust.models.conditional import Condition, DualBatchNorm, FiLM, conditional_inputs, slim
from tfrobust.models.layers import ACTIVATIONS, INITS, PADDINGS, Dropout, batch_norm, input_image

BOTTLENECK = 4  # filters at the end of a bottleneck block, in units of its inner ones


class Parts(NamedTuple):
    """The layers of one network.

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
        """Convolve x without a bias."""
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
        """Add a block of norm-activation-convolution, twice or in a bottleneck three times.

        Args:
            x: [B, H, W, C].
            filters: Number of filters.
            stride: The stride of the first 3 x 3 convolution.
            bottleneck: Whether 1 x 1 convolutions surround one of 3 x 3, the last of them with
                BOTTLENECK times as many filters.
            active_shortcut: Where the shape changes, the shortcut is a convolution of the activated
                input, or else of x.
            shortcut_kernel: Height and width of the filters of that convolution.
            dropout: The rate of dropout before the last convolution.
        """
        out_filters = filters * BOTTLENECK if bottleneck else filters
        active = self.active(x)
        if bottleneck:
            out = self.active(self.conv(active, filters, 1))
            out = self.active(self.conv(out, filters, 3, stride))
        else:
            out = self.active(self.conv(active, filters, 3, stride))
        out = Dropout(dropout)(out) if dropout else out
        out = self.conv(out, out_filters, 1 if bottleneck else 3)
        if stride > 1 or x.shape[-1] != out_filters:
            x = self.conv(active if active_shortcut else x, out_filters, shortcut_kernel, stride)
        return layers.add([x, out])

    def post_block(self, x: Any, filters: int, stride: int, bottleneck: bool) -> Any:
        """Add a block of convolution-norm-activation, twice or in a bottleneck three times.

        The last activation comes after the shortcut is added.
        """
        if bottleneck:
            wide = filters * BOTTLENECK
            out = self.active(self.conv(x, filters, 1))
            out = self.active(self.conv(out, filters, 3, stride))
            out = self.norm(self.conv(out, wide, 1))
        else:
            wide = filters
            out = self.active(self.conv(x, filters, 3, stride))
            out = self.norm(self.conv(out, wide, 3))
        if stride > 1 or x.shape[-1] != wide:
            x = self.norm(self.conv(x, wide, 1, stride), film=False)
        return self.activate(layers.add([x, out]))

    def model(self, x: Any, num_classes: int, name: str) -> keras.Model:
        """Return the network from its inputs to the logits of x [B, D]."""
        inputs = self.image
        if self.condition is not None:
            inputs = {"image": self.image, **self.condition.inputs}
        return keras.Model(inputs, ours.logits(x, num_classes, self.init), name=name)


def parts(
    image_shape: tuple[int, ...],
    lambdas: list[float] | None,
    encoding: str,
    widths: list[float] | None,
    activation: str = "relu",
    init: str = "keras",
    padding: str = "torch",
) -> Parts:
    """Create the inputs of a network and return what it is made of.

    Args:
        image_shape: (H, W, C).
        lambdas, encoding, widths: See `tfrobust.models.conditional`.
        activation: One of ACTIVATIONS.
        init: One of INITS.
        padding: One of PADDINGS.
    """
    choose("activation", activation, ACTIVATIONS)
    choose("init", init, INITS)
    choose("padding", padding, PADDINGS)
    image = input_image(image_shape)
    return Parts(image, conditional_inputs(lambdas, encoding, widths), activation, init, padding)
