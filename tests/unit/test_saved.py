"""Networks from files of any origin have the same logits and the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.products import slow_but
from tfrobust import Adv, Threat, load_network
from tfrobust.errors import UserError
from tfrobust.exporting import export
from tfrobust.models import load_keras
from tfrobust.models.signatures import forward

ROOT = Path(__file__).resolve().parents[2]
W = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
X = np.random.default_rng(1).random((5, 2, 2, 1)).astype("float32")
Z = X.reshape(5, 4) @ W


class Exotic(tf.Module):
    """A network of no framework, with its own names."""

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
    "legacy": lambda n, d: (n.save(d / "a.h5"), d / "a.h5")[1],
    "capitals": lambda n, d: (n.save(d / "a.keras"), (d / "a.keras").rename(d / "A.KERAS"))[1],
    "saved_model.pb": lambda n, d: (n.export(d / "a", verbose=False), d / "a" / "saved_model.pb")[
        1
    ],
    "our export": lambda n, d: (export(n, d / "saved_model", X), d / "saved_model")[1],
    "SavedModel": lambda n, d: (save_exotic(lambda z: {"scores": z}, d / "other"), d / "other")[1],
}


@pytest.mark.parametrize("writer", WRITERS)
def test_logits_and_gradients(writer: str, linear: Callable[..., Any], tmp_path: Path) -> None:
    """z = x W, and the gradient of sum(c z) is W c."""
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


# Networks of z = x W, from a functional one.
CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "lists of one": lambda n: keras.Model(n.inputs, n.outputs),
    "dicts of one": lambda n: keras.Model(
        {"x": (i := keras.Input((2, 2, 1), name="x"))}, {"y": n(i)}
    ),
    "one of two": lambda n: keras.Model(n.input, {"y": n.output, "z": 2 * n.output}),
    "Sequential": lambda n: keras.Sequential([keras.Input((2, 2, 1)), n]),
    "fixed batch": lambda n: keras.Model(i := keras.Input((2, 2, 1), batch_size=16), n(i)),
    "double precision": lambda n: keras.Model(i := keras.Input((2, 2, 1), dtype="float64"), n(i)),
    "any size": lambda n: keras.Model(
        i := keras.Input((None, None, 1)), n(keras.layers.Reshape((2, 2, 1))(i))
    ),
}


@pytest.mark.parametrize("container", slow_but(CONTAINERS, ["one of two", "any size"]))
@pytest.mark.filterwarnings("error:The structure of `inputs`")
def test_containers(container: str, linear: Callable[..., Any], tmp_path: Path) -> None:
    """Networks load as an evaluation loads them, and as a training loads and exports them."""
    CONTAINERS[container](linear(W)).save(tmp_path / "model.keras")
    output = "y" if container == "one of two" else None
    network = load_network(tmp_path, output=output)
    size = (None, None, 1) if container == "any size" else (2, 2, 1)
    assert network.input_shape == size and network.classes == 3
    np.testing.assert_allclose(network(X), Z, rtol=1e-5)
    network.check(X, "network")
    trained = load_keras(tmp_path, output=output)
    np.testing.assert_allclose(forward(trained, X), Z, rtol=1e-5)
    export(trained, tmp_path / "saved_model", X)
    np.testing.assert_allclose(load_network(tmp_path / "saved_model")(X), Z, rtol=1e-5)


@keras.saving.register_keras_serializable("test_saved")
class Subclassed(keras.Model):
    """z = x W of images that may be in a dict with one entry."""

    def build(self, shape: Any) -> None:
        self.matrix = self.add_weight((4, 3), name="matrix")

    def call(self, x: Any) -> Any:
        x = x["picture"] if isinstance(x, dict) else x
        return keras.ops.reshape(x, (-1, 4)) @ self.matrix


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_subclassed_network(wrapped: bool, tmp_path: Path) -> None:
    network = Subclassed()
    network({"picture": X[:2]} if wrapped else X[:2])
    network.set_weights([W])
    network.save(tmp_path / "model.keras")
    loaded = load_network(tmp_path)
    assert loaded.input_shape == (2, 2, 1) and loaded.classes == 3
    np.testing.assert_allclose(loaded(X), Z, rtol=1e-5)
    export(load_keras(tmp_path), tmp_path / "saved_model", X)
    np.testing.assert_allclose(load_network(tmp_path / "saved_model")(X), Z, rtol=1e-5)


FLAT = [4]


@pytest.mark.parametrize(
    ("shape", "inside", "dtype"),
    [
        ((2, 2), FLAT, "float32"),
        ((4,), FLAT, "float32"),
        ((1, 2, 2), FLAT, "float32"),
        ((2, 2, 1), FLAT, "uint8"),
    ],
)
def test_a_network_of_other_images_is_told_what_to_put_in_front(
    shape: tuple[int, ...], inside: list[int], dtype: str, tmp_path: Path
) -> None:
    """The code in the error gives a network that loads and has the same logits."""
    image = keras.Input(shape, dtype=dtype)
    flat = keras.layers.Reshape(inside)(image)
    scale = keras.layers.Rescaling(1 / 255 if dtype == "uint8" else 1.0)
    dense = keras.layers.Dense(3, use_bias=False)
    network = keras.Model(image, dense(scale(flat)))
    dense.set_weights([W])
    network.save(tmp_path / "model.keras")
    images = np.round(255 * X) / 255
    with pytest.raises(UserError) as caught:
        load_network(tmp_path)(images)
    line = str(caught.value)
    assert "\n" not in line
    code = line.partition("; put a layer in front: ")[2] or line.partition("through integers: ")[2]
    names = {"keras": keras, "network": network}
    code = code.replace(" takes images in [0, 1]", "").replace("H, W, C", "2, 2, 1")
    exec(code, names)
    names["network"].save(tmp_path / "model.keras")
    loaded = load_network(tmp_path)
    np.testing.assert_allclose(loaded(images), images.reshape(5, 4) @ W, rtol=1e-4, atol=1e-5)


def test_sigmoids_become_logits_of_the_same_sigmoids(tmp_path: Path) -> None:
    """log p - log(1 - p) is the logit. p of 0 and 1 give finite logits in their order."""
    save_exotic(tf.sigmoid, tmp_path)
    network = load_network(tmp_path, outputs="sigmoids")
    np.testing.assert_allclose(network(X), Z, rtol=1e-4, atol=1e-5)
    far = network(1e6 * X).numpy()
    assert np.isfinite(far).all() and ((far > 16) == (Z > 0)).all() and (far[Z < 0] < -80).all()
    network.check(X, "model.path")
    with pytest.raises(UserError, match="a network of logits .or outputs: sigmoids., received 'si"):
        load_network(tmp_path).check(X, "model.path")
    save_exotic(tf.nn.softmax, tmp_path)
    with pytest.raises(
        UserError, match="network of sigmoids .or outputs: probabilities., received"
    ):
        load_network(tmp_path, outputs="sigmoids").check(X, "model.path")


def test_a_failed_export_leaves_the_former_one(
    linear: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved_model"
    export(linear(W), folder, X)
    monkeypatch.setattr("tfrobust.exporting.ROUNDING", {"float32": -1.0})
    with pytest.raises(
        UserError, match="saved_model: expected a SavedModel with the network's own"
    ):
        export(linear(2 * W), folder, X)
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]
    np.testing.assert_allclose(load_network(folder)(X), Z, rtol=1e-5)
    monkeypatch.undo()
    export(linear(1e6 * W), folder, X)  # rounding grows with the logits
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]
    np.testing.assert_allclose(load_network(folder)(X), 1e6 * Z, rtol=1e-5)


def test_probabilities_become_logits_of_the_same_softmax(tmp_path: Path) -> None:
    """log p differs from the logits by one number per image, and p = 0 gives a finite logit."""
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
