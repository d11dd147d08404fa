"""The inputs that an evaluation refuses, on networks with known answers.

One pixel t in [0, 1] has three classes: below a third, between, above two thirds. The images are
the middles, t = 1/6, 1/2, 5/6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import Threat
from tfrobust.errors import UserError
from tfrobust.gate import check_inputs

THREAT = Threat("linf", 0.1)
Y = np.arange(600, dtype=np.int32) % 3
X = ((2 * Y + 1) / 6).astype(np.float32).reshape(-1, 1, 1, 1)


def network(x: Any) -> Any:
    """Return the logits -|t - middle| / 0.1, which are never probabilities."""
    t = tf.reshape(x, [-1, 1])
    return -10.0 * tf.abs(t - tf.constant([[1 / 6, 3 / 6, 5 / 6]]))


def softmax(x: Any) -> Any:
    return tf.nn.softmax(network(x))


class Counted:
    """A network that counts the images it is called on."""

    def __init__(self, logits_fn: Any = network):
        self.logits_fn, self.images = logits_fn, 0

    def __call__(self, x: Any) -> Any:
        self.images += len(x)
        assert len(x) <= 250
        return self.logits_fn(x)


def test_what_fits_passes_at_the_cost_of_two_looks() -> None:
    counted = Counted()
    check_inputs(counted, X, Y, THREAT)
    assert counted.images == 1 + 500
    check_inputs(network, X[:1], Y[:1].astype("uint8"), THREAT, batch_size=1)


def test_a_network_that_is_wrong_whatever_the_scale_is_no_mistake() -> None:
    """A network that always returns class 0 is not refused.

    It is right on a third of the images, as they are and in three other scales.
    """
    counted = Counted(lambda x: 0.0 * network(x) + [[2.0, 1.0, 0.0]])
    check_inputs(counted, X, Y, THREAT)
    assert counted.images == 1 + 4 * 500


# What the network does first -> what the refusal says. `sharp` then has all images of the right
# scale right, and of others class 0 at most, and class 1 where a scale leaves its middle in place.
MEAN, STD = X[:500].mean(), X[:500].std()
OUTSIDE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "255": (lambda x: x / 255, r"on 100% of the same images in \[0, 255\]; .*Rescaling\(255, off"),
    "-1 to 1": (lambda x: (x + 1) / 2, r"in \[-1, 1\]; .*layers.Rescaling\(2, offset=-1"),
    "standardised": (lambda x: x * STD + MEAN, "the same images standardised; .*Normalization"),
}


@pytest.mark.parametrize("scale", OUTSIDE)
def test_a_scaling_that_belongs_inside_the_network(scale: str) -> None:
    first, message = OUTSIDE[scale]
    with pytest.raises(UserError, match=r"expected a network of images in \[0, 1\].*" + message):
        check_inputs(lambda x: sharp(first(x)), X, Y, THREAT)


def sharp(x: Any) -> Any:
    """Class 0 wins if the image is over 0.02 from every middle; logits may be negative."""
    t = tf.reshape(x, [-1, 1])
    near = tf.abs(t - tf.constant([[1 / 6, 3 / 6, 5 / 6]])) < 0.02
    return tf.where(near, 1.0, tf.constant([[0.5, -1.0, -1.0]]))


def test_chance_is_no_scaling() -> None:
    """The same network passes on 99 images, since so few show nothing."""
    scaled = lambda x: sharp(x / 255)  # noqa: E731
    check_inputs(scaled, X[:99], Y[:99], THREAT)
    with pytest.raises(UserError):
        check_inputs(scaled, X[:100], Y[:100], THREAT)


def test_another_box() -> None:
    """Images in [0, 255] fit the threat, but a network of [0, 1] images is refused."""
    threat = Threat("linf", 8.0, (0.0, 255.0))
    check_inputs(lambda x: network(x / 255), 255 * X, Y, threat)
    with pytest.raises(UserError, match=r"images in \[0, 1\]; .*Rescaling\(0.00392157, offset=0\)"):
        check_inputs(sharp, 255 * X, Y, threat)


def test_rows_that_sum_to_one_now_and_then_are_logits() -> None:
    def sometimes(x: Any) -> Any:
        return tf.nn.softmax(network(x)) + tf.where(tf.reshape(x, [-1, 1]) > 0.7, 1.0, 0.0)

    for chosen in (Y < 3, Y < 2):  # on the second, images far outside the box tell
        check_inputs(sometimes, X[chosen], Y[chosen], THREAT)


NAN = X.copy()
NAN[3] = np.nan


def fails(x: Any) -> Any:
    raise ValueError("input_shape=(None, 28, 28, 1)\n  does not fit")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"y": np.eye(3)[Y]},
            "y: expected class numbers [N] (of one-hot labels, argmax(-1)), received (600, 3)",
        ),
        ({"y": Y[:5]}, "y: expected one label for each of 600 images, received (5,)"),
        (
            {"y": Y - 1},
            "y: expected class numbers 0 to 2, as the network has 3 logits, received -",
        ),
        ({"y": Y + 1}, "y: expected class numbers 0 to 2, as the network has 3 logits, received 3"),
        (
            {"x": 255 * X},
            "expected float images in [0, 1], received 42.5 to 212.5; divide them by 255",
        ),
        ({"x": -X}, "x: expected float images in [0, 1], received -0.833333 to -0.166667"),
        ({"x": NAN}, "x: expected finite images, received NaN or infinite values in 1 of 600"),
        (
            {"x": X[:, 0]},
            "x: expected images of shape [N, H, W, C], none of it 0, received (600,",
        ),
        ({"x": X[:0], "y": Y[:0]}, "none of it 0, received (0, 1, 1, 1)"),
        (
            {"threat": Threat("linf", 8)},
            "threat.eps: expected at most 1, the linf width of images",
        ),
        ({"threat": Threat("l1", 2)}, "in [0, 1], received 2 (did you mean 2/255?)"),
        ({"threat": Threat("linf", 0.0)}, "threat.eps: expected a number > 0, received 0.0"),
        (
            {"logits_fn": fails},
            "takes, received shape (1, 1, 1, 1): input_shape=(None, 28, 28, 1) d",
        ),
        ({"logits_fn": softmax}, "logits_fn: expected logits, received probabilities"),
        (
            {"logits_fn": lambda x: network(x)[None]},
            "a tensor of logits [1, C] for images (1, 1, 1, 1), received 'EagerTensor of sh",
        ),
        (
            {"logits_fn": lambda x: network(x).numpy()},
            "logits_fn: expected a TensorFlow function, a tensor of logits [1, C] for images",
        ),
        ({"batch_size": 0}, "batch_size: expected int >= 1, received 0"),
        (
            {"logits_fn": lambda x: network(x)[:, :1]},
            "two logits, received one logit z; the two",
        ),
        ({"logits_fn": lambda x: {"z": network(x)}}, "received 'dict of shape ()'"),
    ],
)
def test_mistakes_are_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_inputs(**{"logits_fn": network, "x": X, "y": Y, "threat": THREAT} | changed)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
