"""Network files in common use: which load, and how the error explains the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.unit.test_saved import Exotic, W, X, Z, save_exotic
from tfrobust import load_network
from tfrobust.errors import UserError
from tfrobust.models import keras_file, load_keras


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
class Heads(keras.Model):
    def call(self, x: Any) -> Any:
        flat = keras.ops.reshape(x, (-1, 4))
        return {"scores": flat @ W, "features": flat}


def subclassed_heads(d: Path) -> Path:
    network = Heads()
    network(X)
    network.save(d / "sub.keras")
    return d / "sub.keras"


class Unregistered(keras.layers.Layer):
    """A class that is not registered where its file is read."""

    def call(self, x: Any) -> Any:
        return x


def unregistered(d: Path) -> Path:
    image = keras.Input((2, 2, 1))
    layer = Unregistered()
    layer.__module__ = Unregistered.__module__ = "nowhere"
    keras.Model(image, keras.layers.Flatten()(layer(image))).save(d / "model.keras")
    return d


def unregistered_h5(d: Path) -> Path:
    layer = keras.saving.register_keras_serializable("mine")(type("Odd", (Unregistered,), {}))
    keras.Sequential([keras.Input((2, 2, 1)), layer(), keras.layers.Flatten()]).save(d / "m.h5")
    del keras.saving.get_custom_objects()["mine>Odd"]
    return d / "m.h5"


def empty(d: Path) -> Path:
    (d / "model.keras").touch()
    return d


def cut_short(d: Path) -> Path:
    two_heads(d)
    (d / "model.keras").write_bytes((d / "two.keras").read_bytes()[:-100])
    return d


def weights_alone(d: Path) -> Path:
    image = keras.Input((2, 2, 1))
    keras.Model(image, keras.layers.Flatten()(image)).save_weights(d / "a.weights.h5")
    return d / "a.weights.h5"


def renamed_weights(d: Path) -> Path:
    return weights_alone(d).rename(d / "a.h5")


def only(kind: str) -> Callable[[Path], Path]:
    """A SavedModel with one fault."""

    def write(d: Path) -> Path:
        outputs: Callable[[Any], Any] = lambda z: z  # noqa: E731
        spec = None
        if kind == "outputs":
            outputs = lambda z: {"scores": z, "features": z}  # noqa: E731
        if kind == "classes":
            outputs = lambda z: tf.argmax(z, axis=1)[:, None]  # noqa: E731
        if kind == "map":
            outputs = lambda z: z[:, None]  # noqa: E731
        if kind == "uint8":
            spec = tf.TensorSpec([None, 2, 2, 1], tf.uint8)
        if kind == "fixed":
            spec = tf.TensorSpec([1, 2, 2, 1])
        if kind == "unsigned":
            tf.saved_model.save(tf.Module(), str(d))
        elif kind == "predict":
            module = Exotic(outputs)
            tf.saved_model.save(module, str(d), signatures={"predict": module.look})
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
        (with_code, "it holds code (Lambda); if you trust it, network = keras.saving.load_model('"),
        (unregistered_h5, "Odd is not known here; where it is, network.export(FOLDER) makes"),
        (unregistered, "Unregistered is not known here; where it is, network.export(FOLDER) makes"),
        (two_heads, "received 2: features, scores; name that of the logits by output (model.out"),
        (two_inputs, "path: expected a network with one input, received 2: left, right"),
        (
            subclassed_heads,
            "received 2: features, scores; network.export(FOLDER) makes a Saved",
        ),
        (only("outputs"), "path: expected a network with one output, received 2: features, scor"),
        (only("classes"), "a network with a float output (None, classes), received 'int64 (None,"),
        (only("map"), r"output (None, classes), received 'float32 (None, 1, 3)'"),
        (only("uint8"), "path: expected a network of float images (None, H, W, C), received 'uin"),
        (only("fixed"), "received 'float32 (1, 2, 2, 1)'; export it again for float images (H, W"),
        (only("unsigned"), "received none; save it with one, as network.export(FOLDER) of Keras"),
        (only("predict"), "received predict; name one by signature (model.signature in a config)"),
        (damaged("model.keras"), "model.keras is 13 bytes that are neither, perhaps cut short"),
        (damaged("saved_model.pb"), "path: expected a SavedModel, "),
        (damaged("model.pt"), "or a run folder with model.keras, or a SavedModel folder, received"),
        (damaged("model.tflite"), "; TFLite has no gradients: give the network that it was made f"),
        (empty, "path: expected a .keras or .h5 file, "),
        (cut_short, " bytes that are neither, perhaps cut short"),
        (weights_alone, "; it holds weights alone: network.load_weights(FILE) where its code is"),
        (renamed_weights, "does not load: it holds weights alone: network.load_weights(FILE) wher"),
        (lambda d: d, "or a run folder with model.keras, or a SavedModel folder, received"),
        (
            lambda d: [(d / "network.h5").touch(), d / "netwrk.h5"][1],
            "netwrk.h5': no such file (did you mean 'network.h5'?)",
        ),
    ],
)
def test_mistakes_are_one_line(write: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_network(write(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_place_of_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="^train.init_from: expected a .keras or .h5 file, or a run"
    ):
        load_keras(tmp_path, "train.init_from")
    with pytest.raises(UserError, match="^train.init_from: .*train it in Python: tfrobust.Adv"):
        load_keras(with_code(tmp_path), "train.init_from")
    (tmp_path / "model.keras").unlink()
    with pytest.raises(UserError, match="^model.path: expected a .keras or .h5 file, or a run"):
        keras_file(tmp_path, "model.path")
    with pytest.raises(UserError, match="^outputs: expected one of logits, probabilities"):
        load_network(tmp_path, outputs="softmax")


def test_a_named_output_and_signature(tmp_path: Path) -> None:
    module = Exotic(lambda z: {"classes": tf.argmax(z, 1), "logits": z})
    tf.saved_model.save(module, str(tmp_path), signatures={"predict": module.look})
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
    (tmp_path / "keras").mkdir()
    two_heads(tmp_path / "keras")
    with pytest.raises(UserError, match="path: output: .* features, scores, received 'score'"):
        load_network(tmp_path / "keras" / "two.keras", output="score")
    with pytest.raises(UserError, match="signature: expected none"):
        load_network(tmp_path / "keras" / "two.keras", signature="predict")


def test_a_named_output_of_each_head(tmp_path: Path) -> None:
    file = two_heads(tmp_path)
    both = keras.saving.load_model(file)(X)
    for name, expected in zip(("scores", "features"), both, strict=True):
        np.testing.assert_allclose(load_network(file, output=name)(X), expected, rtol=1e-6)
