"""Thirteen defences that do not make a network robust, rebuilt small on scikit-learn's digits.

Most ideas are those of Google's self-study course in evaluating adversarial robustness; the others
are among those that Athalye et al., 2018, arXiv:1802.00420, and Tramer et al., 2020,
arXiv:2002.08347, broke. A network that refuses images has one more logit, the last, for "refused".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfrobust.attacks import APGD, BPDA, EOT, PGD, Attack
from tfrobust.data.digits import open_digits

CLASSES = 10
LEVELS = 8  # of the thermometer
ASCENT = APGD("margin", restarts=3)
# Against random outputs: what counts is not a lucky draw on the way but the last image.
LAST = PGD(loss="margin", steps=40)


class Defence(NamedTuple):
    """A defended network, an attack made for it, and whether its last logit means "refused"."""

    network: keras.Model
    attack: Attack
    refuses: bool = False


@cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the training images [1437, 8, 8, 1] and labels, and the test images and labels."""
    train, test = (open_digits().load(split) for split in ("train", "test"))
    return train.as_float(), train.labels, test.as_float(), test.labels


def classifier(
    activation: Callable[[], keras.layers.Layer] = layers.ReLU,
    first: Sequence[keras.layers.Layer] = (),
    outputs: int = CLASSES,
) -> keras.Model:
    """Return an untrained network of two convolutions and a dense layer with these outputs."""
    stack = [keras.Input((8, 8, 1)), *first]
    stack += [layers.Conv2D(16, 3, padding="same"), activation()]
    stack += [layers.Conv2D(32, 3, strides=2, padding="same"), activation(), layers.Flatten()]
    stack += [layers.Dense(64), activation(), layers.Dense(outputs)]
    return keras.Sequential(stack)


def fit(network: keras.Model, targets: Any = None, loss: Any = None, seed: int = 0) -> keras.Model:
    """Train a network on the training images by Adam, and return it."""
    x, y, _, _ = digits()
    keras.utils.set_random_seed(seed)
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(2e-3), loss)
    network.fit(x, y if targets is None else targets, batch_size=64, epochs=20, verbose=0)
    return network


@cache
def natural(seed: int = 0) -> keras.Model:
    """Return the undefended network, trained once for each seed."""
    keras.utils.set_random_seed(seed)
    return fit(classifier(), seed=seed)


def function(call: Callable[[Any], Any], name: str) -> keras.layers.Layer:
    """Return a function of tensors as a layer."""
    return layers.Lambda(call, name=name)


def in_front(layer: keras.layers.Layer) -> keras.Model:
    """Return the undefended network behind a layer of images [B, 8, 8, 1]."""
    image = keras.Input((8, 8, 1))
    return keras.Model(image, natural()(layer(image)))


# ------------------------------------------------------------------ transformations of the input
def noisy() -> Defence:
    """Add Gaussian noise to the image, in training too."""
    noise = function(lambda x: x + 0.15 * tf.random.normal(tf.shape(x)), "noise")
    return Defence(fit(classifier(first=[noise])), EOT(LAST, 20))


def quantised() -> Defence:
    """Round each pixel to a multiple of 1/8 (Xu et al., 2018, arXiv:1704.01155)."""
    layer = function(lambda x: tf.round(8 * x) / 8, "quantise")
    return Defence(in_front(layer), BPDA(ASCENT, ["quantise"]))


def jpeg() -> Defence:
    """Round the cosine transform of the image, like JPEG (Das et al., 2017, arXiv:1705.02900)."""

    def compress(x: Any) -> Any:
        block = tf.round(cosines(x[..., 0]) / 0.5) * 0.5
        return cosines(block, inverse=True)[..., None]

    return Defence(in_front(function(compress, "jpeg")), BPDA(ASCENT, ["jpeg"]))


def cosines(x: Any, inverse: bool = False) -> Any:
    """Return the orthonormal cosine transform of blocks [B, 8, 8], or its inverse."""
    transform = tf.signal.idct if inverse else tf.signal.dct
    for _ in range(2):
        x = tf.transpose(transform(x, norm="ortho"), [0, 2, 1])
    return x


def resized() -> Defence:
    """Resize the image at random and pad it at random (Xie et al., 2018, arXiv:1711.01991)."""

    def resize(x: Any) -> Any:
        size = tf.random.uniform([], 8, 11, tf.int32)
        x = tf.image.resize(x, [size, size])
        top, left = tf.unstack(tf.random.uniform([2], 0, 12 - size, tf.int32))
        x = tf.image.pad_to_bounding_box(x, top, left, 11, 11)
        return tf.ensure_shape(tf.image.resize(x, [8, 8]), [None, 8, 8, 1])

    return Defence(fit(classifier(first=[function(resize, "resize")])), EOT(LAST, 20))


def thermometer() -> Defence:
    """Encode each pixel by which of 8 levels it exceeds (Buckman et al., 2018)."""
    levels = tf.range(LEVELS, dtype=tf.float32) / LEVELS
    code = function(lambda x: tf.cast(x > levels, tf.float32), "thermometer")

    def soft(x: Any) -> Any:
        return tf.sigmoid(20 * (x - levels))

    return Defence(fit(classifier(first=[code])), BPDA(ASCENT, {"thermometer": soft}))


def purified() -> Defence:
    """Reconstruct the image by an autoencoder whose code is rounded (Meng and Chen, 2017)."""
    x, _, _, _ = digits()
    encoder = [layers.Flatten(), layers.Dense(128, "relu"), layers.Dense(32, "sigmoid")]
    decoder = [layers.Dense(128, "relu"), layers.Dense(64, "sigmoid"), layers.Reshape((8, 8, 1))]
    noise = layers.GaussianNoise(0.05)
    smooth = keras.Sequential([keras.Input((8, 8, 1)), noise, *encoder, *decoder])
    fit(smooth, targets=x, loss="mse")
    rounding = function(lambda code: tf.round(4 * code) / 4, "round")
    image = keras.Input((8, 8, 1))
    network = keras.Model(image, natural()(chain([*encoder, rounding, *decoder], image)))
    return Defence(network, BPDA(ASCENT, ["round"]))


def chain(stack: Sequence[Any], x: Any) -> Any:
    """Return the output of layers one behind the other."""
    for layer in stack:
        x = layer(x)
    return x


# ------------------------------------------------------------------------- parts of the network
def k_winners() -> Defence:
    """Let only the largest tenth of activations pass (Xiao et al., 2020, arXiv:1905.10510)."""

    def winners(x: Any) -> Any:
        flat = tf.reshape(x, [tf.shape(x)[0], -1])
        size = x.shape[1:].num_elements()
        least = tf.math.top_k(flat, max(1, size // 10)).values[:, -1:]
        return tf.reshape(tf.where(flat >= least, flat, 0.0), tf.shape(x))

    names = ("winners_1", "winners_2", "winners_3")
    stack = map(partial(function, winners), names)
    return Defence(fit(classifier(lambda: next(stack))), ASCENT)


def jumping() -> Defence:
    """Replace ReLU by a function that jumps to 1 + x at 0 (Goodfellow, in the course)."""
    names = ["jump_1", "jump_2", "jump_3"]

    def jump(x: Any) -> Any:
        return tf.nn.relu(x) + tf.cast(x > 0, x.dtype)

    stack = map(partial(function, jump), names)
    attack = BPDA(ASCENT, dict.fromkeys(names, "softplus"))
    return Defence(fit(classifier(lambda: next(stack))), attack)


def saturated() -> Defence:
    """Scale the logits up, as distillation does (Papernot et al., 2016, arXiv:1511.04508)."""
    image = keras.Input((8, 8, 1))
    large = function(lambda z: 1000 * z, "temperature")
    return Defence(keras.Model(image, large(natural()(image))), ASCENT)


def coded() -> Defence:
    """Give each class a code word of 16 saturated bits (Verma and Swami, 2019)."""
    words = np.sign(np.random.default_rng(1).standard_normal((CLASSES, 16))).astype(np.float32)
    _, y, _, _ = digits()
    bits = fit(classifier(outputs=16), targets=words[y], loss=_hinge)
    image = keras.Input((8, 8, 1))
    decode = function(lambda z: (tf.round(8 * tf.tanh(z)) / 8) @ words.T, "decode")
    network = keras.Model(image, decode(bits(image)))
    return Defence(network, BPDA(ASCENT, {"decode": lambda z: tf.tanh(0.2 * z) @ words.T}))


def _hinge(truth: Any, z: Any) -> Any:
    return tf.nn.softplus(-2 * truth * z)


def neighbours() -> Defence:
    """Count the classes of the eight nearest training images in the network's features."""
    x, y, _, _ = digits()
    features = keras.Model(natural().inputs[0], natural().layers[-2].output)
    memory = tf.math.l2_normalize(features(x), axis=1)
    truth = tf.one_hot(y, CLASSES)

    def nearness(code: Any) -> Any:
        return tf.math.l2_normalize(code, axis=1) @ tf.transpose(memory)

    def vote(code: Any) -> Any:
        return tf.reduce_sum(tf.gather(truth, tf.math.top_k(nearness(code), 8).indices), axis=1)

    def soft(code: Any) -> Any:
        return tf.math.log(tf.nn.softmax(20 * nearness(code)) @ truth)

    image = keras.Input((8, 8, 1))
    network = keras.Model(image, function(vote, "vote")(features(image)))
    return Defence(network, BPDA(ASCENT, {"vote": soft}))


# -------------------------------------------------------------------- networks that refuse images
def majority() -> Defence:
    """Take the majority of three networks, and refuse an image without one."""

    def count(z: Any) -> Any:
        votes = tf.reduce_sum(tf.one_hot(tf.argmax(z, axis=-1), CLASSES), axis=1)
        return with_last(votes, tf.fill([tf.shape(z)[0], 1], 1.5))

    def mean(z: Any) -> Any:
        return with_last(tf.reduce_mean(z, axis=1), tf.fill([tf.shape(z)[0], 1], -1e3))

    image = keras.Input((8, 8, 1))
    logits = [natural(seed)(image) for seed in range(3)]
    stacked = keras.ops.stack(logits, axis=1)
    network = keras.Model(image, function(count, "count")(stacked))
    return Defence(network, BPDA(ASCENT, {"count": mean}), refuses=True)


def detector() -> Defence:
    """Refuse images whose features are far from the mean of the predicted class."""
    x, y, _, _ = digits()
    hidden = keras.Model(natural().inputs[0], natural().layers[-2].output)
    code = hidden(x).numpy()
    means = np.stack([code[y == label].mean(axis=0) for label in range(CLASSES)])
    limit = np.quantile(np.linalg.norm(code - means[y], axis=1), 0.98).astype(np.float32)

    def distance(code: Any, z: Any) -> Any:
        centre = tf.gather(means, tf.argmax(z, axis=1))
        return tf.norm(code - centre, axis=1, keepdims=True) / limit

    def refuse(both: Any) -> Any:
        code, z = both[:, :-CLASSES], both[:, -CLASSES:]
        largest = tf.reduce_max(z, axis=1, keepdims=True)
        return with_last(z, largest + tf.where(distance(code, z) > 1, 1.0, -1.0))

    def soft(both: Any) -> Any:
        code, z = both[:, :-CLASSES], both[:, -CLASSES:]
        largest = tf.reduce_max(z, axis=1, keepdims=True)
        return with_last(z, largest + 5 * (distance(code, z) - 1))

    image = keras.Input((8, 8, 1))
    both = keras.ops.concatenate([hidden(image), natural()(image)], axis=1)
    network = keras.Model(image, function(refuse, "refuse")(both))
    return Defence(network, BPDA(ASCENT, {"refuse": soft}), refuses=True)


def with_last(z: Any, refused: Any) -> Any:
    """Return logits [B, C] with one more, [B, 1]."""
    return tf.concat([z, tf.cast(refused, z.dtype)], axis=1)


def refusal_is_right(network: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[..., Any]:
    """Return logits [B, C] of a network that refuses images, where a refusal counts as right.

    The logit of the label becomes the larger one of itself and of "refused". The label is that of
    the nearest image of x [N, H, W, C], which must be more than 2 eps from each other.
    """
    flat = tf.reshape(x, [len(x), -1])

    def logits(images: Any) -> Any:
        z = network(images, training=False)
        far = tf.reduce_max(tf.abs(tf.reshape(images, [-1, 1, flat.shape[1]]) - flat), axis=2)
        label = tf.gather(tf.cast(y, tf.int32), tf.argmin(far, axis=1))
        truth = tf.one_hot(label, CLASSES, on_value=True, off_value=False)
        return tf.where(truth, tf.maximum(z[:, :-1], z[:, -1:]), z[:, :-1])

    return logits


DEFENCES: dict[str, Callable[[], Defence]] = {
    build.__name__.replace("_", " "): build
    for build in (
        noisy,
        quantised,
        jpeg,
        resized,
        thermometer,
        purified,
        k_winners,
        jumping,
        saturated,
        coded,
        neighbours,
        majority,
        detector,
    )
}
