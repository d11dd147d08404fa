"""The inputs that an evaluation refuses, on networks with known answers.

Images have one pixel t in [0, 1]. Class 0 is below a third, class 1 between, class 2 above two
thirds; the images are at their middles, t = 1/6, 1/2 and 5/6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import Threat
from tfrobust.errors import UserError
from tfrobust.gate import check_inputs
from tfrobust.gate.images import TO_ARRAYS

THREAT = Threat("linf", 0.1)
Y = np.arange(600, dtype=np.int32) % 3
X = ((2 * Y + 1) / 6).astype(np.float32).reshape(-1, 1, 1, 1)


def network(x: Any) -> Any:
    """Return the logits -|t - middle| / 0.1, which are never probabilities."""
    t = tf.reshape(x, [-1, 1])
    return -10.0 * tf.abs(t - tf.constant([[1 / 6, 3 / 6, 5 / 6]]))


def softmax(x: Any) -> Any:
    """Return the probabilities of the network."""
    return tf.nn.softmax(network(x))


class Counted:
    """A network that counts the images it is called on."""

    def __init__(self, logits_fn: Any = network):
        self.logits_fn, self.images = logits_fn, 0

    def __call__(self, x: Any) -> Any:
        self.images += len(x)
        assert len(x) <= 250
        return self.logits_fn(x)


def test_right_inputs_are_accepted_after_two_passes() -> None:
    counted = Counted()
    check_inputs(counted, X, Y, THREAT)
    assert counted.images == 1 + 500
    check_inputs(network, X[:1], Y[:1].astype("uint8"), THREAT, batch_size=1)


def test_network_that_is_wrong_in_every_scale_is_accepted() -> None:
    """The network always returns class 0, which is right for a third in each of four scales."""
    counted = Counted(lambda x: 0.0 * network(x) + [[2.0, 1.0, 0.0]])
    check_inputs(counted, X, Y, THREAT)
    assert counted.images == 1 + 4 * 500


# The inverse of each scaling, and a part of the message. After it `sharp` is right on all images of
# the right scale; in another scale it is right on class 0, and on class 1 if its middle stays.
MEAN, STD = X[:500].mean(), X[:500].std()
SCALES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "255": (lambda x: x / 255, r"on 100% of the same images in \[0, 255\]; .*Rescaling\(255, off"),
    "-1 to 1": (lambda x: (x + 1) / 2, r"in \[-1, 1\]; .*layers.Rescaling\(2, offset=-1"),
    "standardised": (lambda x: x * STD + MEAN, "the same images standardised; .*Normalization"),
}


@pytest.mark.parametrize("scale", SCALES)
def test_network_of_another_scale_is_refused_with_the_layer_to_add(scale: str) -> None:
    inverse, message = SCALES[scale]
    with pytest.raises(UserError, match=r"expected a network of images in \[0, 1\].*" + message):
        check_inputs(lambda x: sharp(inverse(x)), X, Y, THREAT)


def sharp(x: Any) -> Any:
    """Return logits of which class 0 wins if the image is over 0.02 from every middle."""
    t = tf.reshape(x, [-1, 1])
    near = tf.abs(t - tf.constant([[1 / 6, 3 / 6, 5 / 6]])) < 0.02
    return tf.where(near, 1.0, tf.constant([[0.5, -1.0, -1.0]]))


def test_scale_is_judged_on_100_images_or_more() -> None:
    """On fewer images the accuracies may differ by chance."""

    def scaled(x: Any) -> Any:
        return sharp(x / 255)

    check_inputs(scaled, X[:99], Y[:99], THREAT)
    with pytest.raises(UserError, match="on 100% of the same images"):
        check_inputs(scaled, X[:100], Y[:100], THREAT)


def test_network_that_does_not_take_images_of_another_scale_is_accepted() -> None:
    """It looks its pixels up in a table, as an embedding does."""
    table = tf.constant(np.random.default_rng(0).normal(size=(256, 3)), tf.float32)

    def embedded(x: Any) -> Any:
        place = tf.cast(255 * tf.reshape(x, [-1]), tf.int32)
        with tf.control_dependencies([tf.debugging.assert_less(place, 256)]):
            return tf.gather(table, place)

    check_inputs(embedded, X, (Y + 1) % 3, THREAT)


def test_scale_is_not_judged_by_a_network_of_one_answer() -> None:
    """It says class 0 in [0, 1], class 1 in [0, 255], and four fifths of the images are of 1."""
    y = np.where(np.arange(600) % 5 == 0, 0, 1)

    def constant(x: Any) -> Any:
        bright = tf.reduce_max(x, axis=[1, 2, 3]) > 2
        return tf.where(bright[:, None], [[-1.0, 2.0]], [[2.0, -1.0]])

    check_inputs(constant, X, y, THREAT)


def test_scale_is_judged_against_the_box_of_the_threat() -> None:
    """In the box [0, 255] a network of images in [0, 1] is refused."""
    threat = Threat("linf", 8.0, (0.0, 255.0))
    check_inputs(lambda x: network(x / 255), 255 * X, Y, threat)
    with pytest.raises(UserError, match=r"images in \[0, 1\]; .*Rescaling\(0.00392157, offset=0\)"):
        check_inputs(sharp, 255 * X, Y, threat)


def test_logits_that_sometimes_sum_to_one_are_accepted() -> None:
    def sometimes(x: Any) -> Any:
        return tf.nn.softmax(network(x)) + tf.where(tf.reshape(x, [-1, 1]) > 0.7, 1.0, 0.0)

    # The rows of classes 0 and 1 all sum to one, but not those of images far outside the box.
    for rows in (Y < 3, Y < 2):
        check_inputs(sometimes, X[rows], Y[rows], THREAT)


STREAM = tf.data.Dataset.from_tensor_slices((X, Y)).batch(250)


def one_at_a_time(x: Any) -> Any:
    """Return the logits of one image, as a network that was exported for one does."""
    return network(tf.ensure_shape(x, [1, 1, 1, 1]))


def test_stream_becomes_arrays_by_the_advice() -> None:
    code = TO_ARRAYS.partition(" makes ")[0]
    namespace: dict[str, Any] = {"np": np, "data": STREAM}
    exec(code, namespace)
    np.testing.assert_array_equal(namespace["x"], X)
    np.testing.assert_array_equal(namespace["y"], Y)


NAN = X.copy()
NAN[3] = np.nan


def raises(x: Any) -> Any:
    """Raise the error of a network for images of another shape."""
    raise ValueError("input_shape=(None, 28, 28, 1)\n  does not fit")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"y": np.eye(3)[Y]},
            "y: expected class numbers [N] (of one-hot labels, argmax(-1)), received (600, 3)",
        ),
        ({"x": (X - 0.5) / 0.3}, "to 1.11111; undo their normalisation, which belongs inside the"),
        ({"x": 2 * X - 1}, "to 0.666667; undo their normalisation, which belongs inside the netw"),
        ({"x": X / 255}, "0.000653595 to 0.00326797, at most 1/255 of the box, as if divided by "),
        (
            {"threat": Threat("linf", 8, (0, 255))},
            "x: expected float images in [0, 255], received 0.166667 to 0.833333, at most 1/255 of",
        ),
        ({"x": STREAM, "y": None}, "received a tf.data.Dataset; x, y = (np.concatenate(parts)"),
        ({"x": (batch for batch in [X])}, "x: expected an array, received 'generator'"),
        ({"y": None}, "y: expected an array, received 'NoneType'"),
        ({"logits_fn": one_at_a_time}, "batch_size: expected batches that the network takes, rec"),
        ({"y": Y[:5]}, "y: expected one label for each of 600 images, received (5,)"),
        ({"y": Y - 1}, "y: expected class numbers 0 to 2, as the network has 3 logits, received -"),
        ({"y": Y + 1}, "y: expected class numbers 0 to 2, as the network has 3 logits, received 3"),
        (
            {"x": 255 * X},
            "expected float images in [0, 1], received 42.5 to 212.5; divide them by 255",
        ),
        ({"x": -X}, "x: expected float images in [0, 1], received -0.833333 to -0.166667"),
        ({"x": NAN}, "x: expected finite images, received NaN or infinite values in 1 of 600"),
        ({"x": X[:, 0, 0, 0]}, "or a table [N, F], none of it 0, received (600,)"),
        ({"x": X[:0], "y": Y[:0]}, "none of it 0, received (0, 1, 1, 1)"),
        ({"threat": Threat("linf", 8)}, "threat.eps: expected at most 1, the linf width of images"),
        ({"threat": Threat("l1", 2)}, "in [0, 1], received 2 (did you mean 2/255?)"),
        ({"threat": Threat("linf", 0.0)}, "threat.eps: expected a number > 0, received 0.0"),
        (
            {"logits_fn": raises},
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
        ({"threat": Threat("linf", tf.constant(8.0))}, "threat.eps: expected a number > 0, rec"),
        ({"threat": Threat("linf", tf.ones(600))}, "threat.eps: expected a number > 0, received "),
        ({"logits_fn": "model.keras"}, "network(PATH) makes one of a file or of an exported fold"),
        ({"batch_size": 0}, "batch_size: expected int >= 1, received 0"),
        ({"logits_fn": lambda x: network(x)[:, :1]}, "two logits, received one logit z; the two"),
        ({"logits_fn": lambda x: {"z": network(x)}}, "received 'dict of shape ()'"),
    ],
)
def test_mistakes_are_one_line(changed: dict[str, Any], message: str) -> None:
    arguments = {"logits_fn": network, "x": X, "y": Y, "threat": THREAT} | changed
    assert message in error_line(lambda: check_inputs(**arguments))
