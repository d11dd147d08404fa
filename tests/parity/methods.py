"""The small network with BatchNorm, the images and the noise that the methods' references share.

`tools/make_method_references.py` builds the same network in torch.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from tfrobust.models.layers import BatchNorm

REFERENCES = Path(__file__).parent / "references" / "methods"
EPS, STEP_SIZE, STEPS, EXAMPLES, CLASSES = 0.1, 0.02, 10, 12, 10
MOMENTUM, EPSILON = 0.9, 1e-5  # of BatchNorm, in Keras's meaning
SHAPES = {
    "conv1_kernel": (3, 3, 3, 8),
    "conv1_bias": (8,),
    "bn1_gamma": (8,),
    "bn1_beta": (8,),
    "bn1_moving_mean": (8,),
    "bn1_moving_variance": (8,),
    "conv2_kernel": (3, 3, 8, 8),
    "conv2_bias": (8,),
    "bn2_gamma": (8,),
    "bn2_beta": (8,),
    "bn2_moving_mean": (8,),
    "bn2_moving_variance": (8,),
    "dense_kernel": (32, CLASSES),
    "dense_bias": (CLASSES,),
}
POSITIVE = ("gamma", "variance")


def weights() -> dict[str, np.ndarray]:
    """Return the weights by name, in Keras's shapes: 1170 trained ones and 32 moving averages."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in SHAPES.items():
        size = 1.0 if name == "dense_kernel" else 0.3
        draw = size * rng.normal(size=shape)
        arrays[name] = np.exp(draw) if name.endswith(POSITIVE) else draw
    return {name: array.astype("float32") for name, array in arrays.items()}


def network() -> keras.Model:
    """Return the network: two valid convolutions of images [8, 8, 3], BatchNorm and softplus."""
    layers = keras.layers
    image = x = keras.Input((8, 8, 3))
    for k, stride in ((1, 1), (2, 2)):
        x = layers.Conv2D(8, 3, stride, name=f"conv{k}")(x)
        x = BatchNorm(momentum=MOMENTUM, epsilon=EPSILON, name=f"bn{k}")(x)
        x = layers.Activation("softplus")(x)
    model = keras.Model(image, layers.Dense(CLASSES, name="dense")(layers.Flatten()(x)))
    model.set_weights(list(weights().values()))
    return model


def conditional_network() -> keras.Model:
    """Return logits of images and strengths [B]: those of `network` at images that are darker the
    stronger."""
    image, strength = keras.Input((8, 8, 3), name="image"), keras.Input((), name="strength")
    darker = image * (1 - 0.5 * keras.ops.reshape(strength, (-1, 1, 1, 1)))
    return keras.Model({"image": image, "strength": strength}, network()(darker))


def strengths() -> np.ndarray:
    """Return the lambda of each image [12] for OAT, with those of 0 first as in the authors'
    code."""
    return np.repeat(np.array([0.0, 0.5, 1.0], np.float32), EXAMPLES // 3)


def images() -> np.ndarray:
    """Return images [12, 8, 8, 3] in [0, 1]."""
    return np.random.default_rng(1).random((EXAMPLES, 8, 8, 3), "float32")


def labels() -> np.ndarray:
    """Return the predictions [12] of training mode, whose probabilities are above 1/2.

    With the moving averages six of them are wrong.
    """
    return np.array([6, 6, 7, 6, 6, 6, 6, 7, 7, 6, 1, 6], np.int32)


def adversaries() -> np.ndarray:
    """Return images [12, 8, 8, 3] on corners of the ball, where a test is of the loss alone."""
    return np.clip(images() + EPS * np.sign(draws("normal")[3]), 0, 1)


def draws(kind: str) -> np.ndarray:
    """Return four draws of noise, [4, 12, 8, 8, 3]: "normal", or "uniform" in [-1, 1)."""
    rng = np.random.default_rng(2)
    shape = (4, EXAMPLES, 8, 8, 3)
    noise = rng.normal(size=shape) if kind == "normal" else rng.uniform(-1, 1, shape)
    return noise.astype("float32")


def class_means() -> np.ndarray:
    """Return GKL's class means [10, 10], whose rows are rotations of one distribution."""
    row = np.random.default_rng(3).dirichlet(np.ones(CLASSES))
    return np.stack([np.roll(row, k) for k in range(CLASSES)])


def projections() -> np.ndarray:
    """Return unit vectors [12, 10]."""
    draw = np.random.default_rng(4).normal(size=(EXAMPLES, CLASSES))
    return draw / np.linalg.norm(draw, axis=1, keepdims=True)


def radii() -> np.ndarray:
    """Return IAAT's radii [12] before the step."""
    return np.linspace(0.0, 0.12, EXAMPLES).astype("float32")
