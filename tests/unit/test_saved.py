"""A network has the same logits and gradients from files of every kind.

The functions with a parameter `folder` write a file into it and return the path to load.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tests.products import slow_but
from tfrobust import Adv, Threat, load_network
from tfrobust.errors import UserError
from tfrobust.exporting import export
from tfrobust.models import load_keras
from tfrobust.models.signatures import forward

W = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
X = np.random.default_rng(1).random((5, 2, 2, 1)).astype("float32")
Z = X.reshape(5, 4) @ W


class Exotic(tf.Module):
    """A network of no framework: outputs(x W) of images x that match a spec."""

    def __init__(self, outputs: Callable[[Any], Any], spec: Any = None) -> None:
        super().__init__()
        self.weights = tf.Variable(W)
        spec = spec or tf.TensorSpec([None, 2, 2, 1])

        @tf.function(input_signature=[spec])
        def look(picture: Any) -> Any:
            flat = tf.reshape(tf.cast(picture, tf.float32), [-1, 4])
            return outputs(flat @ self.weights)

        self.look = look


def save_exotic(outputs: Callable[[Any], Any], folder: Path, spec: Any = None) -> Path:
    module = Exotic(outputs, spec)
    tf.saved_model.save(module, str(folder), signatures=module.look)
    return folder


def save(network: Any, file: Path) -> Path:
    network.save(file)
    return file


def keras_export(network: Any, folder: Path) -> Path:
    network.export(folder, verbose=False)
    return folder / "saved_model.pb"


def our_export(network: Any, folder: Path) -> Path:
    export(network, str(folder / "saved_model"), X)
    return folder / "saved_model"


WRITERS: dict[str, Callable[[Any, Path], Path]] = {
    "run folder": lambda network, folder: save(network, folder / "model.keras").parent,
    "keras file": lambda network, folder: save(network, folder / "mine.keras"),
    "RobustModel": lambda network, folder: save(Adv(network, threat=Threat()), folder / "a.keras"),
    "legacy": lambda network, folder: save(network, folder / "a.h5"),
    "capitals": lambda network, folder: save(network, folder / "a.keras").rename(
        folder / "A.KERAS"
    ),
    "saved_model.pb": keras_export,
    "our export": our_export,
    "a folder like a pattern": lambda network, folder: our_export(network, folder / "[x] *?"),
    "SavedModel": lambda network, folder: save_exotic(lambda z: {"scores": z}, folder),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_loaded_network_has_its_logits_and_gradients(
    writer: str, linear: Callable[..., Any], tmp_path: Path
) -> None:
    """The logits are z = x W, and the gradient of sum(c z) is W c."""
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
        gradients = np.reshape(slope(X[:n]), (n, 4))
        np.testing.assert_allclose(gradients, np.tile(expected, (n, 1)), atol=1e-6)


def around(network: Any, shape: Any = (2, 2, 1), **options: Any) -> keras.Model:
    """Return a network with another input, which it reshapes to the images of the inner one."""
    image = keras.Input(shape, **options)
    return keras.Model(image, network(keras.layers.Reshape((2, 2, 1))(image)))


# Networks that contain a functional one of z = x W.
CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "lists of one": lambda n: keras.Model(n.inputs, n.outputs),
    "dicts of one": lambda n: keras.Model({n.input.name: n.input}, {"y": n.output}),
    "one of two": lambda n: keras.Model(n.input, {"y": n.output, "z": 2 * n.output}),
    "Sequential": lambda n: keras.Sequential([keras.Input((2, 2, 1)), n]),
    "fixed batch": lambda n: around(n, batch_size=16),
    "double precision": lambda n: around(n, dtype="float64"),
    "any size": lambda n: around(n, (None, None, 1)),
}


@pytest.mark.parametrize("container", slow_but(CONTAINERS, ["one of two", "any size"]))
@pytest.mark.filterwarnings("error:The structure of `inputs`")
def test_a_network_in_a_container_loads_for_evaluation_and_for_training(
    container: str, linear: Callable[..., Any], tmp_path: Path
) -> None:
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
    """A network of logits x W whose images may be in a dict with one entry."""

    def build(self, shape: Any) -> None:
        self.matrix = self.add_weight((4, 3), name="matrix")

    def call(self, x: Any) -> Any:
        x = x["picture"] if isinstance(x, dict) else x
        return keras.ops.reshape(x, (-1, 4)) @ self.matrix


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_subclassed_network_loads_and_is_exported(wrapped: bool, tmp_path: Path) -> None:
    network = Subclassed()
    network({"picture": X[:2]} if wrapped else X[:2])
    network.set_weights([W])
    network.save(tmp_path / "model.keras")
    loaded = load_network(tmp_path)
    assert loaded.input_shape == (2, 2, 1) and loaded.classes == 3
    np.testing.assert_allclose(loaded(X), Z, rtol=1e-5)
    export(load_keras(tmp_path), tmp_path / "saved_model", X)
    np.testing.assert_allclose(load_network(tmp_path / "saved_model")(X), Z, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 2), "float32"), ((4,), "float32"), ((1, 2, 2), "float32"), ((2, 2, 1), "uint8")],
)
def test_the_error_of_a_network_of_other_images_has_code_that_adapts_it(
    shape: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    """The code gives a network that loads and has the same logits."""
    image = keras.Input(shape, dtype=dtype)
    flat = keras.layers.Reshape([4])(image)
    scale = keras.layers.Rescaling(1 / 255 if dtype == "uint8" else 1.0)
    dense = keras.layers.Dense(3, use_bias=False)
    network = keras.Model(image, dense(scale(flat)))
    dense.set_weights([W])
    network.save(tmp_path / "model.keras")
    images = np.round(255 * X) / 255
    line = error_line(lambda: load_network(tmp_path)(images))
    code = line.partition("; put a layer in front: ")[2] or line.partition("through integers: ")[2]
    names = {"keras": keras, "network": network}
    code = code.replace(" takes images in [0, 1]", "").replace("H, W, C", "2, 2, 1")
    exec(code, names)
    names["network"].save(tmp_path / "model.keras")
    loaded = load_network(tmp_path)
    np.testing.assert_allclose(loaded(images), images.reshape(5, 4) @ W, rtol=1e-4, atol=1e-5)


def test_a_network_of_an_image_and_another_input_is_refused(tmp_path: Path) -> None:
    image, mask = keras.Input((2, 2, 1), name="image"), keras.Input((2, 2, 1), name="mask")
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(image * mask))
    keras.Model([image, mask], logits).save(tmp_path / "model.keras")
    line = error_line(lambda: load_network(tmp_path))
    assert line.startswith("path: expected a network with one input, received 2: image, mask; give")


def test_sigmoids_become_logits_of_the_same_sigmoids(tmp_path: Path) -> None:
    """They are log p - log(1 - p). The logits of p = 0 and 1 are finite and in this order."""
    save_exotic(tf.sigmoid, tmp_path)
    network = load_network(tmp_path, outputs="sigmoids")
    np.testing.assert_allclose(network(X), Z, rtol=1e-4, atol=1e-5)
    far = network(1e6 * X).numpy()
    assert np.isfinite(far).all() and ((far > 16) == (Z > 0)).all() and (far[Z < 0] < -80).all()
    network.check(X, "model.path")
    with pytest.raises(UserError, match="a network of logits .or outputs: sigmoids., received 'si"):
        load_network(tmp_path).check(X, "model.path")
    save_exotic(tf.nn.softmax, tmp_path)
    with pytest.raises(UserError, match="network of sigmoids .or outputs: probabilities., receiv"):
        load_network(tmp_path, outputs="sigmoids").check(X, "model.path")


def test_a_failed_export_keeps_the_former_one(
    linear: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved_model"
    export(linear(W), folder, X)
    monkeypatch.setattr("tfrobust.exporting.ROUNDING", {"float32": -1.0})
    with pytest.raises(UserError, match="saved_model: expected an export with the network's o"):
        export(linear(2 * W), folder, X)
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]
    np.testing.assert_allclose(load_network(folder)(X), Z, rtol=1e-5)
    monkeypatch.undo()
    export(linear(1e6 * W), folder, X)  # the tolerance grows with the logits
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]
    np.testing.assert_allclose(load_network(folder)(X), 1e6 * Z, rtol=1e-5)


def test_a_full_disk_is_not_called_a_network_that_cannot_be_exported(
    linear: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **options: Any) -> None:
        text = f"{tmp_path}/variables_temp/part-0; No space left on device"
        raise tf.errors.ResourceExhaustedError(None, None, text)

    network = linear(W)
    monkeypatch.setattr(type(network), "export", full)
    with pytest.raises(OSError, match="No space left on device: .*saved_model'$"):
        export(network, tmp_path / "saved_model", X)
    assert not list(tmp_path.iterdir())


def test_probabilities_become_logits_of_the_same_softmax(tmp_path: Path) -> None:
    """They are log p, which differs from z by one number per image, and is finite for p = 0."""
    save_exotic(tf.nn.softmax, tmp_path)
    logits = load_network(tmp_path, outputs="probabilities")(X).numpy()
    difference = logits - Z
    np.testing.assert_allclose(difference - difference[:, :1], 0.0, atol=1e-5)
    assert load_network(tmp_path)(X).numpy().sum() == pytest.approx(5)
    far = load_network(tmp_path, outputs="probabilities")(1e6 * X)
    assert np.isfinite(far).all() and np.min(far) < -80


def test_a_loaded_network_is_in_inference_mode(tmp_path: Path) -> None:
    image = keras.Input((2, 2, 1))
    noisy = keras.Model(image, keras.layers.Flatten()(keras.layers.Dropout(0.9)(image)))
    noisy.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(load_network(tmp_path)(X), X.reshape(5, 4))


def test_a_network_that_its_first_batch_has_built_loads(tmp_path: Path) -> None:
    network = keras.Sequential([keras.layers.Flatten()])
    network(X)
    network.save(tmp_path / "model.keras")
    loaded = load_network(tmp_path)
    assert loaded.input_shape == (2, 2, 1) and loaded(X[:2]).shape == (2, 4)
