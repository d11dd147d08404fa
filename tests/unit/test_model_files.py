"""Network files in common use: which ones load, and how the error explains the others.

The functions with a parameter `folder` write a file into it and return the path to load.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines.fingerprints import fingerprint
from tests.errors import error_line
from tests.unit.test_saved import Exotic, W, X, Z, save, save_exotic
from tfrobust import load_network
from tfrobust.errors import UserError
from tfrobust.models import keras_file, load_keras, model_files


def two_heads(folder: Path) -> Path:
    image = keras.Input((2, 2, 1))
    flat = keras.layers.Flatten()(image)
    heads = [keras.layers.Dense(3, name=name)(flat) for name in ("scores", "features")]
    return save(keras.Model(image, heads), folder / "two.keras")


def two_inputs(folder: Path) -> Path:
    images = [keras.Input((2, 2, 1), name=name) for name in ("left", "right")]
    logits = keras.layers.Flatten()(keras.layers.Add()(images))
    return save(keras.Model(images, logits), folder / "two.keras")


@keras.saving.register_keras_serializable("test_saved")
class Heads(keras.Model):
    def call(self, x: Any) -> Any:
        flat = keras.ops.reshape(x, (-1, 4))
        return {"scores": flat @ W, "features": flat}


def subclassed(folder: Path) -> Path:
    network = Heads()
    network(X)
    return save(network, folder / "sub.keras")


class Unregistered(keras.layers.Layer):
    """A class that is not registered where its file is read."""

    def call(self, x: Any) -> Any:
        return x


def unregistered(folder: Path) -> Path:
    image = keras.Input((2, 2, 1))
    layer = Unregistered()
    layer.__module__ = Unregistered.__module__ = "nowhere"
    keras.Model(image, keras.layers.Flatten()(layer(image))).save(folder / "model.keras")
    return folder


def unregistered_h5(folder: Path) -> Path:
    layer = keras.saving.register_keras_serializable("mine")(type("Odd", (Unregistered,), {}))
    network = keras.Sequential([keras.Input((2, 2, 1)), layer(), keras.layers.Flatten()])
    network.save(folder / "m.h5")
    del keras.saving.get_custom_objects()["mine>Odd"]
    return folder / "m.h5"


def no_network(folder: Path) -> Path:
    return folder


def misspelt(folder: Path) -> Path:
    (folder / "network.h5").touch()
    return folder / "netwrk.h5"


def empty(folder: Path) -> Path:
    (folder / "model.keras").touch()
    return folder


def cut_short(folder: Path) -> Path:
    complete = two_heads(folder).read_bytes()
    (folder / "model.keras").write_bytes(complete[:-100])
    return folder


def weights_alone(folder: Path) -> Path:
    image = keras.Input((2, 2, 1))
    keras.Model(image, keras.layers.Flatten()(image)).save_weights(folder / "a.weights.h5")
    return folder / "a.weights.h5"


def renamed_weights(folder: Path) -> Path:
    return weights_alone(folder).rename(folder / "a.h5")


def no_signature(folder: Path) -> Path:
    tf.saved_model.save(tf.Module(), str(folder))
    return folder


def predict(folder: Path) -> Path:
    module = Exotic(lambda z: {"classes": tf.argmax(z, 1), "logits": z})
    tf.saved_model.save(module, str(folder), signatures={"predict": module.look})
    return folder


# SavedModels with one fault, whose logits are z, [B, 3].
two_outputs = partial(save_exotic, lambda z: {"scores": z, "features": z})
classes = partial(save_exotic, lambda z: tf.argmax(z, axis=1)[:, None])
map_of_logits = partial(save_exotic, lambda z: z[:, None])
of_bytes = partial(save_exotic, lambda z: z, spec=tf.TensorSpec([None, 2, 2, 1], tf.uint8))
of_one_image = partial(save_exotic, lambda z: z, spec=tf.TensorSpec([1, 2, 2, 1]))


def damaged(name: str) -> Callable[[Path], Path]:
    """Return a function that writes a file of this name with other contents."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(b"no such thing")
        return folder if name == "saved_model.pb" else folder / name

    return write


def with_code(folder: Path) -> Path:
    image = keras.Input((2, 2, 1))
    logits = keras.layers.Flatten()(keras.layers.Lambda(lambda x: 2 * x)(image))
    keras.Model(image, logits).save(folder / "model.keras")
    return folder


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (with_code, "it holds code (Lambda); if you trust it, network = keras.saving.load_model('"),
        (unregistered_h5, "Odd is not known here; where it is, network.export(FOLDER) makes"),
        (unregistered, "Unregistered is not known here; where it is, network.export(FOLDER) makes"),
        (two_heads, "received 2: features, scores; name that of the logits by output (model.out"),
        (two_inputs, "path: expected a network with one input, received 2: left, right"),
        (subclassed, "received 2: features, scores; network.export(FOLDER) makes a Saved"),
        (two_outputs, "path: expected a network with one output, received 2: features, scor"),
        (classes, "a network with a float output (None, classes), received 'int64 (None,"),
        (map_of_logits, "output (None, classes), received 'float32 (None, 1, 3)'"),
        (of_bytes, "path: expected a network of float images (None, H, W, C), received 'uin"),
        (of_one_image, "received 'float32 (1, 2, 2, 1)'; export it again for float images (H, W"),
        (no_signature, "received none; save it with one, as network.export(FOLDER) of Keras"),
        (predict, "received predict; name one by signature (model.signature in a config)"),
        (damaged("model.keras"), "model.keras is 13 bytes that are neither, perhaps cut short"),
        (damaged("saved_model.pb"), "path: expected a SavedModel, "),
        (
            damaged("model.pt"),
            "model.keras, a SavedModel folder, or a .onnx or .tflite file, received",
        ),
        (empty, "path: expected a .keras or .h5 file, "),
        (cut_short, " bytes that are neither, perhaps cut short"),
        (weights_alone, "; it holds weights alone: load_weights(FILE) of the network, or of the"),
        (renamed_weights, "does not load: it holds weights alone: load_weights(FILE) of the netwo"),
        (no_network, "model.keras, a SavedModel folder, or a .onnx or .tflite file, received"),
        (misspelt, "netwrk.h5': no such file (did you mean 'network.h5'?)"),
    ],
)
def test_a_file_that_does_not_load_is_explained_in_one_line(
    write: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    assert message in error_line(lambda: load_network(write(tmp_path)))


def test_a_run_folder_without_its_network_is_not_called_missing(tmp_path: Path) -> None:
    expected = f"received '{tmp_path}': no model.keras in it"
    assert error_line(lambda: load_network(tmp_path)).endswith(expected)
    (tmp_path / "checkpoints").mkdir()
    line = error_line(lambda: load_network(tmp_path))
    assert line.endswith(f"{expected}, the training has not ended")


def test_a_mistake_names_its_key_of_the_config(tmp_path: Path) -> None:
    message = "^train.init_from: expected a .keras or .h5 file, or a run"
    with pytest.raises(UserError, match=message):
        load_keras(tmp_path, "train.init_from")
    with pytest.raises(UserError, match="^train.init_from: .*train it in Python: tfrobust.Adv"):
        load_keras(with_code(tmp_path), "train.init_from")
    (tmp_path / "model.keras").unlink()
    with pytest.raises(UserError, match="^model.path: expected a .keras or .h5 file, or a run"):
        keras_file(tmp_path, "model.path")
    with pytest.raises(UserError, match="^outputs: expected one of logits, probabilities"):
        load_network(tmp_path, outputs="softmax")


def test_a_network_loads_by_its_named_signature_and_output(tmp_path: Path) -> None:
    predict(tmp_path)
    loaded = load_network(tmp_path, output="logits", signature="predict")
    np.testing.assert_allclose(loaded(X), Z, rtol=1e-5)
    for options, message in (
        ({"signature": "predict"}, "path: .* one output, received 2: classes, logits; name that"),
        ({"output": "logits"}, "path: .* the signature serving_default, received predict; name"),
        ({"signature": "predicts"}, "path: signature: .*did you mean 'predict'"),
        ({"output": "logit", "signature": "predict"}, "path: output: .*did you mean 'logits'"),
    ):
        with pytest.raises(UserError, match=message):
            load_network(tmp_path, **options)


def test_each_head_of_a_keras_network_loads_by_its_name(tmp_path: Path) -> None:
    file = two_heads(tmp_path)
    outputs = keras.saving.load_model(file)(X)
    for name, expected in zip(("scores", "features"), outputs, strict=True):
        np.testing.assert_allclose(load_network(file, output=name)(X), expected, rtol=1e-6)
    with pytest.raises(UserError, match="path: output: .* features, scores, received 'score'"):
        load_network(file, output="score")
    with pytest.raises(UserError, match="signature: expected none"):
        load_network(file, signature="predict")


def test_weights_beside_an_onnx_file_belong_to_it(tmp_path: Path) -> None:
    """torch writes them to a file of their own, whose name is in the .onnx file."""
    model, weights = tmp_path / "net.onnx", tmp_path / "net.onnx.data"
    model.write_bytes(b"\x0a\x08location\x12\x0dnet.onnx.data and another.bin")
    weights.write_bytes(b"one")
    (tmp_path / "another.bin").write_bytes(b"is only mentioned")
    assert model_files(model) == [model, weights]
    before = fingerprint({}, (), model_files(model))
    weights.write_bytes(b"two")
    assert fingerprint({}, (), model_files(model)) != before
