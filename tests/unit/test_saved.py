"""Networks from files: whatever wrote them, the same logits and the same gradients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import Adv, Threat, load_network
from tfrobust.export import export
from tfrobust.models import keras_file, load_keras
from tfrobust.models.layers import MaxPool
from tfrobust.registry import UserError

ROOT = Path(__file__).resolve().parents[2]
W = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
X = np.random.default_rng(1).random((5, 2, 2, 1)).astype("float32")
Z = X.reshape(5, 4) @ W


class Exotic(tf.Module):
    """A network of nobody's framework; its names are its own."""

    def __init__(self, outputs: Callable[[Any], Any], spec: Any = None) -> None:
        super().__init__()
        self.weights = tf.Variable(W)
        spec = spec or tf.TensorSpec([None, 2, 2, 1])

        @tf.function(input_signature=[spec])
        def look(picture: Any) -> Any:
            flat = tf.reshape(tf.cast(picture, tf.float32), [-1, 4])
            return outputs(flat @ self.weights)

        self.look = look


def save_exotic(outputs: Callable[[Any], Any], folder: Path, spec: Any = None) -> None:
    module = Exotic(outputs, spec)
    tf.saved_model.save(module, str(folder), signatures=module.look)


WRITERS: dict[str, Callable[[Any, Path], Path]] = {
    "run folder": lambda n, d: (n.save(d / "model.keras"), d)[1],
    "keras file": lambda n, d: (n.save(d / "mine.keras"), d / "mine.keras")[1],
    "RobustModel": lambda n, d: (
        Adv(n, threat=Threat("linf", 0.1)).save(d / "whole.keras"),
        d / "whole.keras",
    )[1],
    "our export": lambda n, d: (export(n, d / "saved_model", X), d / "saved_model")[1],
    "SavedModel": lambda n, d: (save_exotic(lambda z: {"scores": z}, d / "other"), d / "other")[1],
}


@pytest.mark.parametrize("writer", WRITERS)
def test_logits_and_gradients(writer: str, linear: Callable[..., Any], tmp_path: Path) -> None:
    """z = x W; the gradient of sum(c z) is W c."""
    network = load_network(WRITERS[writer](linear(W), tmp_path))
    assert network.input_shape == (2, 2, 1) and network.classes == 3
    np.testing.assert_allclose(network(X), Z, rtol=1e-5)

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 2, 1])], autograph=False)
    def slope(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = network(x)
            assert logits.shape.as_list() == [None, 3] and logits.dtype == tf.float32
            total = tf.reduce_sum(logits * tf.constant([1.0, -2.0, 0.5]))
        return tape.gradient(total, x)

    expected = W @ np.array([1.0, -2.0, 0.5], np.float32)
    for n in (5, 2):
        wanted = np.tile(expected, n).reshape(n, 2, 2, 1)
        np.testing.assert_allclose(slope(X[:n]), wanted, atol=1e-6)


def test_probabilities_become_logits_of_the_same_softmax(tmp_path: Path) -> None:
    """log p differs from the logits by one number for each image; p = 0 stays finite."""
    save_exotic(tf.nn.softmax, tmp_path)
    logits = load_network(tmp_path, outputs="probabilities")(X).numpy()
    gap = logits - Z
    np.testing.assert_allclose(gap - gap[:, :1], 0.0, atol=1e-5)
    assert load_network(tmp_path)(X).numpy().sum() == pytest.approx(5)
    far = load_network(tmp_path, outputs="probabilities")(1e6 * X)
    assert np.isfinite(far).all() and np.min(far) < -80


def test_the_network_is_used_as_at_inference(tmp_path: Path) -> None:
    image = keras.Input((2, 2, 1))
    noisy = keras.Model(image, keras.layers.Flatten()(keras.layers.Dropout(0.9)(image)))
    noisy.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(load_network(tmp_path)(X), X.reshape(5, 4))


def test_a_network_built_by_its_first_batch(tmp_path: Path) -> None:
    network = keras.Sequential([keras.layers.Flatten()])
    network(X)
    network.save(tmp_path / "model.keras")
    loaded = load_network(tmp_path)
    assert loaded.input_shape == (2, 2, 1) and loaded(X[:2]).shape == (2, 4)


def two_heads(d: Path) -> Path:
    image = keras.Input((2, 2, 1))
    flat = keras.layers.Flatten()(image)
    heads = [keras.layers.Dense(3, name=name)(flat) for name in ("scores", "features")]
    keras.Model(image, heads).save(d / "two.keras")
    return d / "two.keras"


def two_inputs(d: Path) -> Path:
    images = [keras.Input((2, 2, 1), name=name) for name in ("left", "right")]
    both = keras.layers.Flatten()(keras.layers.Add()(images))
    keras.Model(images, both).save(d / "two.keras")
    return d / "two.keras"


@keras.saving.register_keras_serializable("test_saved")
class Subclassed(keras.Model):
    def call(self, x: Any) -> Any:
        return keras.ops.reshape(x, (-1, 4))


def subclassed(d: Path) -> Path:
    network = Subclassed()
    network(X)
    network.save(d / "sub.keras")
    return d / "sub.keras"


def only(kind: str) -> Callable[[Path], Path]:
    """A SavedModel with one thing wrong."""

    def write(d: Path) -> Path:
        outputs: Callable[[Any], Any] = lambda z: z  # noqa: E731
        spec = None
        if kind == "outputs":
            outputs = lambda z: {"scores": z, "features": z}  # noqa: E731
        if kind == "map":
            outputs = lambda z: z[:, None]  # noqa: E731
        if kind == "uint8":
            spec = tf.TensorSpec([None, 2, 2, 1], tf.uint8)
        if kind == "fixed":
            spec = tf.TensorSpec([1, 2, 2, 1])
        if kind == "unsigned":
            tf.saved_model.save(tf.Module(), str(d))
        else:
            save_exotic(outputs, d, spec)
        return d

    return write


def damaged(name: str) -> Callable[[Path], Path]:
    def write(d: Path) -> Path:
        (d / name).write_bytes(b"no such thing")
        return d if name == "saved_model.pb" else d / name

    return write


def with_code(folder: Path) -> Path:
    image = keras.Input((2, 2, 1))
    logits = keras.layers.Flatten()(keras.layers.Lambda(lambda x: 2 * x)(image))
    keras.Model(image, logits).save(folder / "model.keras")
    return folder


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (with_code, "path: expected a .keras file, "),
        (two_heads, "path: expected a network with one output, received 2: features, scores"),
        (two_inputs, "path: expected a network with one input, received 2: left, right"),
        (subclassed, "Sequential network (any other one as a SavedModel), received 'Subclassed'"),
        (only("outputs"), "path: expected a network with one output, received 2: features, scor"),
        (only("map"), r"an output (None, classes), received '(None, 1, 3)'"),
        (only("uint8"), "path: expected a network of float images (None, H, W, C), received 'uin"),
        (only("fixed"), "(None, H, W, C), received 'float32 (1, 2, 2, 1)'"),
        (only("unsigned"), "a SavedModel with the signature serving_default, received 'none'"),
        (damaged("model.keras"), "path: expected a .keras file, "),
        (damaged("saved_model.pb"), "path: expected a SavedModel, "),
        (damaged("model.pt"), "a .keras file or a run folder with model.keras, or a SavedModel f"),
        (lambda d: d, "a .keras file or a run folder with model.keras, or a SavedModel folder, r"),
        (lambda d: d / "none", "a .keras file or a run folder with model.keras, or a SavedModel"),
    ],
)
def test_mistakes_are_one_line(write: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_network(write(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_place_of_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^train.init_from: expected a .keras file or a run folder"):
        load_keras(tmp_path, "train.init_from")
    with pytest.raises(UserError, match="^model.path: expected a .keras file or a run folder"):
        keras_file(tmp_path, "model.path")
    with pytest.raises(UserError, match="^outputs: expected one of logits, probabilities"):
        load_network(tmp_path, outputs="softmax")


def test_importing_the_library_is_enough_for_keras_to_load_its_layers(tmp_path: Path) -> None:
    """In a fresh process: here the layers are known already."""
    image = keras.Input((2, 2, 1))
    keras.Model(image, MaxPool()(image)).save(tmp_path / "model.keras")
    code = "import sys, tfrobust, keras; keras.saving.load_model(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "model.keras")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
