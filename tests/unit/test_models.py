"""Layers, parameter counts in closed form, and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust._compat import twice_differentiable
from tfrobust.errors import UserError
from tfrobust.models import (
    small_cnn,
    small_resnet,
    wide_resnet,
    with_keras_layers,
    with_precision,
)
from tfrobust.models.layers import BatchNorm, Dropout, MaxPool


def trainable(network: keras.Model) -> int:
    """Return the number of trainable parameters."""
    return sum(int(np.prod(v.shape)) for v in network.trainable_variables)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3)])
def test_max_pool_and_its_gradient_agree_with_tensorflow(
    rng: np.random.Generator, size: tuple[int, int]
) -> None:
    """Of odd sizes the last row or column is dropped (VALID)."""
    x = tf.constant(rng.normal(size=(2, *size, 3)).astype("float32"))  # no ties
    results = []
    for pool in (MaxPool(), lambda z: tf.nn.max_pool2d(z, 2, 2, "VALID")):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = pool(x)
            total = tf.reduce_sum(y * y)
        results.append((y, tape.gradient(total, x)))
    for ours, tensorflows in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, tensorflows)
    assert MaxPool().compute_output_shape(x.shape) == results[0][0].shape


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_agrees_with_keras(
    rng: np.random.Generator, training: bool, jit: bool, affine: bool
) -> None:
    """Output, averages and the gradients of first and second order in image and scale agree."""
    x = tf.constant(rng.normal(2.0, 3.0, size=(4, 5, 6, 3)).astype("float32"))
    start = [rng.uniform(0.5, 2.0, 3).astype("float32") for _ in range(4 if affine else 2)]
    options = {"momentum": 0.8, "scale": affine, "center": affine}
    results = []
    for layer in (BatchNorm(**options), keras.layers.BatchNormalization(**options)):
        layer.build(x.shape)
        layer.set_weights(start)

        @tf.function(jit_compile=jit)
        def output_and_gradients(x: Any, layer: Any = layer) -> Any:
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    y = layer(x, training=training)
                    total = tf.reduce_sum(y**3)
                sources = [x, *(v.value for v in layer.trainable_variables)]
                first = inner.gradient(total, sources)
                cost = total + tf.add_n([tf.reduce_sum(g**3) for g in first])
            return [y, *first, *outer.gradient(cost, sources)]

        with twice_differentiable():
            results.append([*output_and_gradients(x), *layer.get_weights()])
    for ours, kerass in zip(*results, strict=True):
        np.testing.assert_allclose(ours, kerass, rtol=2e-4, atol=2e-4 * np.abs(kerass).max())


def test_every_layer_of_small_cnn_but_the_last_has_its_activation() -> None:
    network = small_cnn((8, 8, 1), 4, filters=[2], units=3, activation="silu")
    layers = [layer for layer in network.layers if hasattr(layer, "activation")]
    assert [layer.activation.__name__ for layer in layers] == ["silu", "silu", "linear"]
    with pytest.raises(UserError, match="activation: expected one of relu, silu, softplus"):
        small_cnn((8, 8, 1), 4, activation="tanh")


def test_batch_norm_of_vectors_and_of_a_frozen_layer_agrees_with_keras(
    rng: np.random.Generator,
) -> None:
    """A frozen layer keeps its averages."""
    x = rng.normal(size=(8, 3)).astype("float32")
    np.testing.assert_allclose(
        BatchNorm()(x, training=True), keras.layers.BatchNormalization()(x, training=True)
    )
    image = rng.normal(size=(2, 4, 4, 3)).astype("float32")
    options = {"scale": False, "trainable": False}
    frozen = BatchNorm(**options)
    out = keras.layers.BatchNormalization(**options)(image, training=True)
    np.testing.assert_allclose(frozen(image, training=True), out, rtol=1e-5)
    assert not frozen.moving_mean.numpy().any()


def test_dropout_agrees_with_keras_on_one_device(rng: np.random.Generator) -> None:
    """Dropout on two devices is tested in two_devices.py."""
    x = rng.normal(size=(8, 5)).astype("float32")
    ours, kerass = (cls(0.4, seed=3) for cls in (Dropout, keras.layers.Dropout))
    for _ in range(2):
        np.testing.assert_allclose(ours(x, training=True), kerass(x, training=True), rtol=1e-6)
    np.testing.assert_array_equal(ours(x), x)


@pytest.mark.parametrize("jit", [False, True])
def test_second_order_gradient_of_max_pool(rng: np.random.Generator, jit: bool, xla: None) -> None:
    """g(x) = ||d/dx sum(pool(x)^3)||^2 = sum over maxima m of 9 m^4, so dg/dx = 36 m^3 there."""
    x = tf.constant(rng.normal(size=(2, 4, 4, 2)).astype("float32"))
    pool = MaxPool()

    @tf.function(jit_compile=jit)
    def second(x: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                total = tf.reduce_sum(pool(x) ** 3)
            g = tf.reduce_sum(inner.gradient(total, x) ** 2)
        return outer.gradient(g, x)

    windows = x.numpy().reshape(2, 2, 2, 2, 2, 2)
    is_max = windows == windows.max(axis=(2, 4), keepdims=True)
    expected = (36 * windows**3 * is_max).reshape(x.shape)
    np.testing.assert_allclose(second(x), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_max_pool_in_a_loop_is_a_function_of_its_own(
    rng: np.random.Generator,
) -> None:
    """In a separate function TensorFlow finds oneDNN's kernel."""
    x, pool = tf.constant(rng.normal(size=(2, 4, 4, 2)).astype("float32")), MaxPool()

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(pool(x) ** 2)
        return x + tape.gradient(total, x)

    looped = tf.function(
        lambda x: tf.while_loop(lambda x: True, step, [x], maximum_iterations=3)[0]
    )
    expected = x
    for _ in range(3):
        expected = step(expected)
    np.testing.assert_allclose(looped(x), expected, rtol=1e-6)
    library = looped.get_concrete_function(x).graph.as_graph_def().library.function
    separate = [f for f in library if f.attr["_noinline"].b]
    assert separate and all("MaxPoolGrad" in {node.op for node in f.node_def} for f in separate)


def test_dropout_refuses_a_rate_of_one_and_a_noise_shape() -> None:
    for options, message in (
        ({"rate": 1.0}, "rate: expected a number in .0, 1., received 1.0"),
        ({"rate": 0.5, "noise_shape": (None, 1)}, "noise_shape: expected none"),
    ):
        with pytest.raises(UserError, match=message):
            Dropout(**options)
    layer = Dropout(0.25, seed=3)
    assert Dropout.from_config(layer.get_config()).get_config() == layer.get_config()


def test_number_of_parameters_of_small_cnn() -> None:
    """It is (25 + 1) 32 + (25 * 32 + 1) 64 + (7 * 7 * 64 + 1) 1024 + (1024 + 1) 10."""
    expected = 26 * 32 + 801 * 64 + 3137 * 1024 + 1025 * 10
    assert expected == 3_274_634
    assert small_cnn((28, 28, 1), 10).count_params() == expected


@pytest.mark.parametrize(
    ("width", "classes", "count"),
    # WRN-28-10 has 36 479 194 in the torch code of the paper's authors, which counts trainable
    # parameters; Keras's count_params adds BatchNorm's 17 952 moving averages. The other numbers
    # are the same sum by hand: see `closed_form`.
    [
        (10, 10, 36_479_194),
        pytest.param(8, 10, 23_354_842, marks=pytest.mark.slow),
        pytest.param(8, 100, 23_354_842 + 90 * 513, marks=pytest.mark.slow),
    ],
)
def test_number_of_parameters_of_wide_resnet(width: int, classes: int, count: int) -> None:
    def closed_form(n: int = 4) -> int:
        total, before = 9 * 3 * 16, 16
        for size in (16 * width, 32 * width, 64 * width):
            total += before * size  # the shortcut of the first block
            for block in range(n):
                first = before if block == 0 else size
                total += 2 * first + 9 * first * size + 2 * size + 9 * size * size
            before = size
        return total + 2 * before + before * classes + classes

    network = wide_resnet((32, 32, 3), classes, depth=28, width=width)
    assert trainable(network) == closed_form() == count


@pytest.mark.parametrize("depth", [27, 4, 2, 30])
def test_wide_resnet_refuses_a_depth_that_is_not_6n_plus_4(depth: int) -> None:
    with pytest.raises(UserError, match=rf"^depth: expected 6 n \+ 4.*received {depth}$"):
        wide_resnet((32, 32, 3), 10, depth=depth)


def test_wide_resnet_halves_the_image_twice_and_small_resnet_thrice() -> None:
    """The sizes are 32, 32, 16, 8 and 32, 16, 8, 4."""
    for network, size in (
        (wide_resnet((32, 32, 3), 10, depth=10, width=1), 8),
        (small_resnet((32, 32, 3), 10), 4),
    ):
        pooled = next(v for v in network.layers if "pooling" in v.name)
        assert pooled.input.shape[1:3] == (size, size)


def test_networks_normalise_their_images(rng: np.random.Generator) -> None:
    """The network of x with mean and std equals the plain one of (x - mean) / std."""
    mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    plain = wide_resnet((8, 8, 3), 4, depth=10, width=1)
    inside = wide_resnet((8, 8, 3), 4, depth=10, width=1, mean=mean, std=std)
    inside.set_weights(plain.get_weights())
    x = rng.random((3, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(inside(x), plain((x - mean) / std), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="mean, std: expected 3 numbers each, received .2, 3."):
        small_resnet((8, 8, 3), 4, mean=[0.1, 0.2])
    with pytest.raises(UserError, match="std: expected numbers > 0, received .0.0, 1.0, 1.0."):
        small_resnet((8, 8, 3), 4, std=[0, 1, 1])


def test_batch_norm_has_the_papers_constants() -> None:
    norms = [
        v for v in wide_resnet((8, 8, 3), 4, depth=10, width=1).layers
        if isinstance(v, keras.layers.BatchNormalization)
    ]  # fmt: skip
    assert len(norms) == 2 * 3 + 1
    assert {(v.momentum, v.epsilon) for v in norms} == {(0.9, 1e-5)}


@pytest.fixture
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return small_resnet((8, 8, 3), 4, groups=[4, 8], mean=[0.5] * 3, std=[0.25] * 3)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_weights_keep_their_bits_in_mixed_precision_and_back(
    rng: np.random.Generator, network: keras.Model, tmp_path: Path, precision: str
) -> None:
    x = rng.random((3, 8, 8, 3)).astype("float32")
    mixed = with_precision(network, precision)
    assert {v.dtype for v in mixed.variables} == {"float32"}
    computes = {v.compute_dtype for v in mixed.layers}
    assert computes == {precision.removeprefix("mixed_"), "float32"}
    assert mixed.layers[-1].compute_dtype == "float32"
    logits = mixed(x)
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, network(x), rtol=0.1, atol=0.05)
    assert not np.array_equal(logits, network(x))
    np.testing.assert_array_equal(with_precision(mixed, "float32")(x), network(x))
    mixed.save(tmp_path / "mixed.keras")
    loaded = keras.saving.load_model(tmp_path / "mixed.keras")
    np.testing.assert_array_equal(loaded(x), mixed(x))


def test_a_network_of_another_precision_shares_no_weights(network: keras.Model) -> None:
    copy, before = with_precision(network, "mixed_bfloat16"), network.get_weights()[0].copy()
    np.testing.assert_array_equal(copy.get_weights()[0], before)
    copy.set_weights([w + 1 for w in copy.get_weights()])
    np.testing.assert_array_equal(network.get_weights()[0], before)
    assert with_precision(network, "float32") is network


def test_precision_reaches_nested_networks() -> None:
    body = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    outer = keras.Sequential([keras.Input((4,)), body, keras.layers.Dense(2)])
    mixed = with_precision(outer, "mixed_bfloat16")
    assert mixed.layers[0].layers[0].compute_dtype == "bfloat16"
    assert mixed.layers[1].compute_dtype == "float32"


def test_an_unknown_precision_is_an_error(network: keras.Model) -> None:
    with pytest.raises(UserError, match="did you mean 'mixed_bfloat16'"):
        with_precision(network, "mixed_bfloat")


@pytest.mark.parametrize("copy", [with_keras_layers, lambda x: with_precision(x, "float32")])
def test_what_is_no_network_is_not_copied(copy: Any) -> None:
    with pytest.raises(UserError, match="network: expected a keras.Model, received 'x'"):
        copy("x")
