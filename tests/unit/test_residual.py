"""Residual networks: padding, activations, initial weights, and the papers' parameter counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.products import slow_but
from tests.unit.test_models import trainable
from tfrobust.errors import UserError
from tfrobust.models import MODELS, load_keras, preact_resnet, small_resnet, wide_resnet
from tfrobust.models.layers import ACTIVATIONS, activate, conv, max_pool
from tfrobust.training import Checkpoints

EARLIER = Path(__file__).parents[1] / "parity" / "references" / "earlier.keras"


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (9, 9)])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_a_stride_of_two_takes_every_second_pixel(
    rng: np.random.Generator, kernel: int, size: tuple[int, int]
) -> None:
    """With a padding of kernel // 2 on all sides the result is a part of that of stride 1."""
    x = rng.normal(size=(2, *size, 3)).astype("float32")
    image = keras.Input((*size, 3))
    strided, dense = (keras.Model(image, conv(image, 4, kernel, s)) for s in (2, 1))
    strided.set_weights(dense.get_weights())
    np.testing.assert_allclose(strided(x), dense(x)[:, ::2, ::2], rtol=1e-4, atol=1e-5)


def test_same_padding_is_at_the_end() -> None:
    """Windows of stride 2 begin at rows 0, 2, ..., and with torch's padding at rows -1, 1, ..."""
    x = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    image = keras.Input((4, 4, 1))
    networks = [keras.Model(image, conv(image, 1, 3, 2, padding=p)) for p in ("same", "torch")]
    for network in networks:
        corner = np.zeros((3, 3, 1, 1), "float32")
        corner[0, 0] = 1  # the result is the first pixel of each window
        network.set_weights([corner])
    same, torch = (np.asarray(network(x))[0, :, :, 0] for network in networks)
    np.testing.assert_array_equal(same, [[0, 2], [8, 10]])
    np.testing.assert_array_equal(torch, [[0, 0], [0, 5]])
    with pytest.raises(UserError, match="padding: expected one of same, torch"):
        wide_resnet((8, 8, 3), 4, depth=10, width=1, padding="valid")
    with pytest.raises(UserError, match="shortcut_kernel: expected 1 or 3"):
        preact_resnet((8, 8, 3), 4, shortcut_kernel=2)


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (1, 2)])
def test_max_pool_ignores_its_border(rng: np.random.Generator, size: tuple[int, int]) -> None:
    """Among negative numbers a border of zeros would win."""
    x = rng.uniform(-2, -1, size=(2, *size, 3)).astype("float32")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = (range(0, length, 2) for length in size)
    expected = [[padded[:, r : r + 3, c : c + 3].max((1, 2)) for c in columns] for r in rows]
    np.testing.assert_array_equal(max_pool(tf.constant(x)), np.moveaxis(expected, 2, 0))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives_of_activations(
    rng: np.random.Generator, activation: str, jit: bool
) -> None:
    """With s = sigmoid(x): s (1 - s) (2 + x (1 - 2 s)) for silu, and s (1 - s) for softplus."""
    x = tf.constant(rng.normal(0, 3, size=(50,)).astype("float32"))
    number = keras.Input(())
    layer = keras.Model(number, activate(number, activation))

    @tf.function(jit_compile=jit)
    def second(x: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                total = tf.reduce_sum(layer(x))
            first = inner.gradient(total, x)
        return outer.gradient(first, x, unconnected_gradients="zero")

    s = 1 / (1 + np.exp(-x.numpy()))
    slope = s * (1 - s)
    expected = {"relu": 0 * s, "silu": slope * (2 + x * (1 - 2 * s)), "softplus": slope}
    np.testing.assert_allclose(second(x), expected[activation], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["wide_resnet", "resnet", "preact_resnet"])
def test_every_layer_of_a_network_has_its_activation(name: str) -> None:
    depth = {"depth": 10} if name == "wide_resnet" else {}
    for activation in ("silu", "softplus"):
        network = MODELS[name]((8, 8, 3), 4, width=2, activation=activation, **depth)
        kinds = [type(layer).__name__ for layer in network.layers]
        assert "ReLU" not in kinds and kinds.count("Activation") == (7 if depth else 17)
    with pytest.raises(UserError, match="activation: expected one of relu.*did you mean 'silu'"):
        MODELS[name]((8, 8, 3), 4, activation="swilu")
    with pytest.raises(UserError, match="init: expected one of he, keras, torch, received 'lecun'"):
        MODELS[name]((8, 8, 3), 4, init="lecun")


# Deviations of the first convolution of a WideResNet, 3 x 3 from 3 channels to 16. torch draws
# its weights from U(-b, b) with b = 1 / sqrt(27), whose deviation is b / sqrt(3).
FIRST = {"keras": (2 / 27) ** 0.5, "he": (2 / 144) ** 0.5, "torch": (1 / 81) ** 0.5}


@pytest.mark.parametrize("init", FIRST)
def test_initial_weights_have_their_deviation_and_bounds(init: str) -> None:
    """The deviation is measured on 432 and 36 864 weights, the bounds on the last layer."""
    keras.utils.set_random_seed(0)
    network = wide_resnet((8, 8, 3), 64, depth=10, width=4, init=init)
    first = network.layers[1].kernel.numpy()
    assert first.shape == (3, 3, 3, 16)
    assert first.std() == pytest.approx(FIRST[init], rel=0.12)
    wide = next(w.numpy() for w in network.trainable_variables if w.shape == (3, 3, 64, 64))
    deviation = (2 / 576) ** 0.5 if init != "torch" else (1 / 576 / 3) ** 0.5
    assert wide.std() == pytest.approx(deviation, rel=0.02)
    kernel, bias = network.layers[-1].get_weights()  # from 256 to 64
    bound = (6 / 320) ** 0.5 if init == "keras" else 1 / 16
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert (np.abs(bias).max() > 0.9 * bound) == (init == "torch")
    assert bias.any() == (init == "torch") and np.abs(bias).max() <= bound


# Trainable parameters in the code of the papers' authors.
PARAMETERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "PreAct-18": ("preact_resnet", {}, 11_172_170),
    "PreAct-18 without last norm": ("preact_resnet", {"last_norm": False}, 11_171_146),
    "ResNet-18": ("resnet", {}, 11_173_962),
    "PreAct-50": ("preact_resnet", {"depth": 50}, 23_513_162),
    "WRN-32-10": ("wide_resnet", {"depth": 32, "width": 10}, 46_160_474),
    "WRN of IAAT": ("iaat_wide_resnet", {}, 46_090_740),
}


@pytest.mark.parametrize("network", slow_but(PARAMETERS, list(PARAMETERS)[:3]))
def test_number_of_parameters_of_the_papers_networks(network: str) -> None:
    name, options, count = PARAMETERS[network]
    assert trainable(MODELS[name]((32, 32, 3), 10, **options)) == count


def test_wide_resnets_of_depth_6n_plus_2_and_6n_plus_4_are_equal() -> None:
    """IAAT, Free AT and FAT say depth 32 for five blocks in a group, other papers 34."""
    shapes = [
        [w.shape for w in wide_resnet((8, 8, 3), 4, depth=depth, width=1).weights]
        for depth in (8, 10)
    ]
    assert shapes[0] == shapes[1]


def test_a_checkpoint_of_the_networks_before_symmetric_padding_is_refused(tmp_path: Path) -> None:
    """The earlier network has weights of the same shapes, but other logits."""
    earlier = load_keras(EARLIER)
    network = small_resnet((16, 16, 3), 4, groups=[2, 3])
    assert earlier.count_params() == network.count_params()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tf.train.Checkpoint(model=earlier), {"step": 1})
    with pytest.raises(UserError, match="step-000000001: expected a checkpoint of this network"):
        checkpoints.read(tf.train.Checkpoint(model=network))
    checkpoints.read(tf.train.Checkpoint(model=load_keras(EARLIER)))
