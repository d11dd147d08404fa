"""The images, labels and threats that the gate accepts, in every container."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import config as configs
from pipelines.spec import parse
from tests.errors import error_line
from tests.products import slow_but
from tfrobust import FGSM, PGD, Adv, Threat
from tfrobust.data import from_arrays
from tfrobust.errors import UserError
from tfrobust.gate import check_images, check_labels, check_threat

RNG = np.random.default_rng(0)
X = RNG.random((12, 4, 4, 1)).astype("float32")
Y = RNG.integers(0, 3, 12)
WRONG_LATE = X.copy()
WRONG_LATE[9] = 2.0  # in the third batch of 4


def test_images_of_any_float_width_become_float32() -> None:
    """Images that are float32 already are not copied."""
    for dtype in ("float16", "float64", "longdouble", tf.bfloat16.as_numpy_dtype):
        images = check_images(X.astype(dtype))
        assert images.dtype == np.float32
        np.testing.assert_allclose(images, X, atol=5e-3)
    assert check_images(X) is X
    np.testing.assert_array_equal(check_images(tf.constant(X)), X)


def test_images_that_are_almost_black_are_refused_if_there_are_some() -> None:
    """One image may be almost black, and all may be black."""
    assert "at most 1/255 of the box" in error_line(lambda: check_images(X / 255))
    check_images(X[:9] / 255)
    check_images(0 * X)
    check_images(X / 254)
    check_images(X[:, 0, 0] / 255)  # a table


def test_pixels_outside_the_box_by_rounding_are_clipped_and_others_refused() -> None:
    off = np.where(X > 0.5, 1 + 1e-7, -1e-7)
    np.testing.assert_array_equal(check_images(off), X > 0.5)
    wide = np.where(X > 0.5, 255 + 1e-4, 0)
    np.testing.assert_array_equal(check_images(wide, box=(0.0, 255.0)), 255.0 * (X > 0.5))
    assert "received 0 to 1.0001" in error_line(lambda: check_images(np.where(X > 0.5, 1.0001, 0)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (X.astype("uint8"), "x: expected float images in [0, 1], received 'uint8'; divide them by"),
        (X.astype("uint16"), "received 'uint16'; divide them by their largest possible value, 655"),
        (X > 0.5, "received 'bool'; cast them to float32"),
        (X.astype(complex), "received 'complex128'"),
        (np.full((2, 4, 4, 1), "a"), "received 'str32'"),
        ([[1], [1, 2]], "x: expected an array, list: "),
        (np.where(X > 0.9, np.inf, X), "NaN or infinite values in"),
        (X[:, 0, 0, 0], "series [N, T, C] or a table [N, F], none of it 0, received (12,)"),
        (250 * X[:, 0, 0], "float inputs in [0, 1], received"),
        (X[:, 0, 0].astype(int), "received 'int64'; scale each feature by its range in the train"),
    ],
)
def test_wrong_images_are_one_line(images: Any, message: str) -> None:
    assert message in error_line(lambda: check_images(images))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 224, 160), (1, 5, 20)])
def test_images_that_look_like_channels_first_need_a_layout(shape: tuple[int, ...]) -> None:
    line = error_line(lambda: check_images(np.zeros((2, *shape))))
    assert "which looks like channels first: np.moveaxis(x, 1, -1) moves them" in line
    moved = check_images(np.zeros((2, *shape)), layout="channels_first")
    assert moved.shape == (2, *shape[1:], shape[0])
    assert check_images(np.zeros((2, *shape)), layout="channels_last").shape == (2, *shape)


@pytest.mark.parametrize("shape", [(1, 1000, 12), (64, 8, 1), (1, 28, 3), (3, 3, 16), (8, 8, 32)])
def test_shapes_that_do_not_look_like_channels_first_need_no_layout(shape: tuple[int, ...]) -> None:
    assert check_images(np.zeros((2, *shape))).shape == (2, *shape)


def test_labels_must_be_classes_of_the_network() -> None:
    np.testing.assert_array_equal(check_labels(tf.constant(Y)[:, None], 12, 3), Y)
    assert check_labels(Y.astype("float16")).dtype == np.int32
    line = error_line(lambda: check_labels(Y, 12, 2))
    assert line == "y: expected class numbers 0 to 1, as the network has 2 logits, received 2"


@pytest.mark.parametrize(
    ("threat", "message"),
    [
        (Threat("linf", 8), "at most 1, the linf width of images in [0, 1], received 8 (did you m"),
        (Threat("l2", 128), "at most 4, the l2 width of images in [0, 1], received 128 (did you"),
        (Threat("l1", 17), "at most 16, the l1 width of images in [0, 1], received 17 (did you"),
        (Threat("linf", tf.constant(0.1)), "expected a number, such as float(eps), received <tf."),
        (Threat("linf", "8/255", (0, 255)), "at least 0.5, half a step of images of 8 bits, in [0"),
        (Threat("l2", 0.3, (0, 255)), "in [0, 255], received 0.3 (did you mean 76.5?)"),
        (Threat("linf", 300, (0, 255)), "at most 255, the linf width of images in [0, 255], rec"),
    ],
)
def test_eps_beyond_the_box_is_refused(threat: Threat, message: str) -> None:
    assert message in error_line(lambda: check_threat(threat, (4, 4, 1)))
    if threat.norm == "linf":
        assert "train.eps: expected" in error_line(lambda: check_threat(threat, where="train.eps"))
        assert "threat.eps: expected" in error_line(lambda: Adv(network(), threat=threat))


@pytest.mark.parametrize(
    "threat", [Threat("linf", 1), Threat("l2", 4), Threat("l1", 16), Threat("linf", 8, (0, 255))]
)
def test_eps_within_the_box_is_accepted(threat: Threat) -> None:
    check_threat(threat, (4, 4, 1))


# Data of RobustModel.fit


def network() -> keras.Model:
    """Return a network with BatchNorm for images [4, 4, 1] of three classes."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4, 4, 1)), *layers])


def compiled(**options: Any) -> Adv:
    """Return a compiled model of the network; `options` are those of `compile`."""
    model = Adv(network(), threat=Threat("linf", 0.1), attack=FGSM(), validation_attack=FGSM())
    model.compile(**{"optimizer": "sgd"} | options)
    return model


def stream(x: np.ndarray, y: np.ndarray) -> tf.data.Dataset:
    """Return the examples in batches of 4."""
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


class Batches(keras.utils.PyDataset):
    """The examples in batches of 4."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x) // 4

    def __getitem__(self, index: int) -> Any:
        rows = slice(4 * index, 4 * index + 4)
        return self.x[rows], self.y[rows]


def generator(x: np.ndarray, y: np.ndarray) -> Any:
    """Yield the first 4 examples without end."""
    while True:
        yield x[:4], y[:4]


CONTAINERS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, Any]]] = {
    "arrays": lambda x, y: {"x": x, "y": y},
    "tensors": lambda x, y: {"x": tf.constant(x), "y": tf.constant(y)},
    "dict": lambda x, y: {"x": {"image": x, "label": y}},
    "tf.data": lambda x, y: {"x": stream(x, y)},
    "tf.data of dicts": lambda x, y: {
        "x": tf.data.Dataset.from_tensor_slices({"image": x, "label": y}).batch(4)
    },
    "PyDataset": lambda x, y: {"x": Batches(x, y)},
    "generator": lambda x, y: {"x": generator(x, y), "steps_per_epoch": 2},
    "validation arrays": lambda x, y: {"x": X, "y": Y, "validation_data": (x, y)},
    "validation tf.data": lambda x, y: {"x": X, "y": Y, "validation_data": stream(x, y)},
    "validation PyDataset": lambda x, y: {"x": X, "y": Y, "validation_data": Batches(x, y)},
    "validation generator": lambda x, y: {
        "x": X,
        "y": Y,
        "validation_data": generator(x, y),
        "validation_steps": 1,
    },
}
MISTAKES = {
    "0 to 255": (255 * X, Y, "expected float images in [0, 1], received 0."),
    "NaN": (np.where(X > 0.5, np.nan, X), Y, "received NaN or infinite values"),
    "uint8": ((255 * X).astype("uint8"), Y, "uint8"),
    "fractions": (X, Y + 0.9, "expected whole class numbers"),
    "below 0": (X, Y - 1, "class numbers 0 to 2"),
    "too great": (X, Y + 1, "class numbers 0 to 2"),
    "one-hot": (X, np.eye(3)[Y], "(of one-hot labels, argmax(-1))"),
}
# The fast suite has every mistake in arrays and in a stream, and one in every container.
PAIRS = list(itertools.product(CONTAINERS, MISTAKES))
FAST = [pair for pair in PAIRS if pair[0] in ("arrays", "tf.data") or pair[1] == "too great"]


@pytest.mark.parametrize("pair", slow_but(PAIRS, FAST), ids=" ".join)
def test_wrong_training_data_are_refused_before_a_weight_moves(pair: tuple[str, str]) -> None:
    container, mistake = pair
    x, y, message = MISTAKES[mistake]
    model = compiled()
    start = model.get_weights()
    line = error_line(lambda: model.fit(**CONTAINERS[container](x, y), verbose=0))
    assert message in line
    for after, before in zip(model.get_weights(), start, strict=True):
        np.testing.assert_array_equal(after, before)
    if "validation" in container:
        assert "validation_data" in line


@pytest.mark.parametrize("eager", [False, True])
def test_single_batch_is_checked(eager: bool) -> None:
    model = compiled(run_eagerly=eager)
    for step in (model.train_on_batch, model.test_on_batch):
        assert "x: expected float images in [0, 1]" in error_line(partial(step, 255 * X, Y))
        assert "y: expected class numbers 0 to 2" in error_line(partial(step, X, Y + 1))
        assert "Adv expected label beside image" in error_line(partial(step, X))
    assert int(model.step) == 0
    assert np.isfinite(model.train_on_batch(X, Y)).all()
    assert int(model.step) == 1
    logs = model.test_on_batch(X, Y, return_dict=True)
    assert logs.keys() == model.evaluate(X, Y, verbose=0, return_dict=True).keys()


def test_checked_generator_still_gives_all_its_batches() -> None:
    """The network predicts class 0, which only the first batch of three has."""
    model = compiled(optimizer=keras.optimizers.SGD(0.0))
    model.network.layers[-1].set_weights([np.zeros((16, 3)), np.array([2.0, 1.0, 0.0])])
    labels = np.repeat([0, 1, 2], 4)
    data = (batch for batch in stream(X, labels).as_numpy_iterator())
    history = model.fit(X, Y, validation_data=data, verbose=0).history
    assert history["val_accuracy"] == [pytest.approx(1 / 3)]


@pytest.mark.parametrize("container", ["tf.data", "PyDataset", "arrays"])
def test_evaluate_refuses_wrong_images(container: str) -> None:
    data = CONTAINERS[container](255 * X, Y)
    assert "images in [0, 1]" in error_line(lambda: compiled().evaluate(**data, verbose=0))


def test_every_batch_of_a_stream_is_checked() -> None:
    model = compiled()
    line = error_line(lambda: model.fit(stream(WRONG_LATE, Y), verbose=0))
    assert line.endswith(" to 2; divide them by 255")
    assert int(model.step) == 2


def test_stream_without_end_needs_a_number_of_batches() -> None:
    """Keras would never end the epoch, or the validation."""
    endless, model = stream(X, Y).repeat(), compiled()
    line = error_line(lambda: model.fit(endless, verbose=0))
    assert line.startswith("steps_per_epoch: expected the number of batches of x, a data set that")
    line = error_line(lambda: model.fit(X, Y, validation_data=endless, verbose=0))
    assert line.startswith("validation_steps: expected the number of batches of validation_data")
    assert "steps: expected the number" in error_line(lambda: model.evaluate(endless, verbose=0))
    assert int(model.step) == 0
    options: Any = {"validation_data": endless, "validation_steps": 1, "verbose": 0}
    model.fit(endless, steps_per_epoch=2, **options)
    assert int(model.step) == 2


def test_stream_without_batches_is_refused() -> None:
    """Keras would train nothing and return an empty history."""
    empty, model = stream(X, Y).take(0), compiled()
    line = error_line(lambda: model.fit(empty, verbose=0))
    assert line == "x: expected at least one batch, received 0"
    line = error_line(lambda: model.fit(X, Y, validation_data=empty, verbose=0))
    assert line == "validation_data: expected at least one batch, received 0"


def test_batch_on_the_second_device_is_checked(
    on_two_devices: Callable[[str], dict[str, Any]],
) -> None:
    expected = "image: expected float images in [0, 1], received 0.5 to 9; divide them by 255"
    assert on_two_devices("refused") == {"line": expected, "moved": 0.0}


def test_every_batch_is_checked_under_xla(xla: None) -> None:
    """XLA has no assertions, so it compiles only what follows the checks."""
    model = compiled(jit_compile=True)
    assert np.isfinite(model.fit(stream(X, Y), verbose=0).history["loss"]).all()
    wrong_labels = stream(X, Y + (Y > 1))
    assert "received 0 to 3" in error_line(lambda: model.evaluate(wrong_labels, verbose=0))
    late_batches = ((WRONG_LATE[rows : rows + 4], Y[rows : rows + 4]) for rows in (0, 4, 8))
    for data in (
        {"x": stream(WRONG_LATE, Y)},
        {"x": X, "y": Y, "validation_data": stream(WRONG_LATE, Y)},
        {"x": late_batches, "steps_per_epoch": 3},
        {"x": Batches(WRONG_LATE, Y), "steps_per_epoch": 3},
    ):
        line = error_line(partial(model.fit, **data, verbose=0))
        assert line.endswith("to 2; divide them by 255")


def unshaped(x: np.ndarray, y: np.ndarray) -> tf.data.Dataset:
    """Return the examples in batches of 4 whose shapes TensorFlow does not know."""

    def read(index: tf.Tensor) -> Any:
        return tuple(tf.py_function(Batches(x, y).__getitem__, [index], (tf.float32, tf.int64)))

    return tf.data.Dataset.range(len(x) // 4).map(read)


def test_stream_of_unknown_shapes_is_refused_with_advice_that_works() -> None:
    model = compiled()
    line = error_line(lambda: model.fit(unshaped(X, Y), verbose=0))
    code = (
        "data.map(lambda x, y: (tf.ensure_shape(x, [None, H, W, C]), tf.ensure_shape(y, [None])))"
    )
    assert line.startswith(f"x: expected batches [B, H, W, C] ({code} gives them), received")
    shaped = eval(code, {"tf": tf, "data": unshaped(X, Y), "H": 4, "W": 4, "C": 1})
    model.fit(shaped, verbose=0)
    assert int(model.step) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            tf.data.Dataset.from_tensor_slices((X, Y)),
            "as the network takes them (batch the data set)",
        ),
        (stream(np.zeros((4, 3, 8, 8)), Y[:4]), "looks like channels first"),
        (stream(X[:, :2], Y), "expected images [N, 4, 4, 1], as the network takes them, received"),
        (stream(X, Y.astype(str)), "y: expected integer class numbers, received 'string'"),
    ],
)
def test_stream_of_wrong_shapes_or_labels_is_refused(data: tf.data.Dataset, message: str) -> None:
    assert message in error_line(lambda: compiled().fit(data, verbose=0))


def test_right_images_and_labels_of_any_dtype_are_trained_on() -> None:
    """The images are outside the box by rounding."""
    labels = itertools.cycle([Y.astype("float32"), Y > 0, Y.astype("uint8")[:, None]])
    model, rounded = compiled(), X / X.max() * np.float32(1 + 1e-7)
    for name, container in CONTAINERS.items():
        if "validation" not in name:
            losses = model.fit(**container(rounded, next(labels)), verbose=0).history["loss"]
            assert np.isfinite(losses).all(), name


def test_data_set_with_a_layout_is_not_asked_about_channels_first(rng: np.random.Generator) -> None:
    """Images [12, 1, 8, 12] have height 1 and 12 channels."""
    x = rng.random((12, 1, 8, 12)).astype("float32")
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    model = Adv(keras.Sequential([keras.Input((1, 8, 12)), *layers]), threat=Threat("linf", 0.1))
    model.compile("sgd")
    data = from_arrays(x, Y, 4, training=False, layout="channels_last")
    model.fit(data, validation_data=data, verbose=0)
    assert int(model.step) == 3
    assert "looks like channels first" in error_line(lambda: model.fit(x, Y, verbose=0))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("threat.eps=8", "threat.eps: expected at most 1, .* .did you mean 8/255?"),
        ("train.eps=8", "train.eps: expected at most 1, .* .did you mean 8/255?"),
        ("threat={norm: l2, eps: 128}", "threat.eps: expected at most 8, the l2 width"),
        ("method.attack={name: pgd, step_size: 2}", "method.attack.step_size: .* 2/255"),
        ("train.validation_attack={name: pgd, step_size: 2}", "train.validation_attack.step_size"),
        ("attacks=[{name: pgd, step_size: 2}]", r"attacks\[0\].step_size: .* 2/255"),
    ],
)
def test_wrong_eps_or_step_of_a_config_names_its_key(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse("mine", configs.load(configs.find("digits_adv"), [override]))


@pytest.mark.parametrize("section", ["method.attack", "train.validation_attack", "attacks"])
def test_step_of_a_config_beyond_the_images_is_refused(section: str) -> None:
    """With 8 x 8 x 1 pixels no L2 distance is greater than 8."""
    attack = {"name": "pgd", "step_size": 9.0}
    config = configs.load(configs.find("digits_adv"), ["threat={norm: l2, eps: 1}"])
    name, _, key = section.partition(".")
    config[name] = {**config[name], key: attack} if key else [attack]
    with pytest.raises(UserError, match=f"{section}.step_size: expected a step within"):
        parse("mine", config)


def test_steps_of_both_attacks_must_fit_the_images() -> None:
    """In Linf the constructor refuses a step beyond the box; in L2 `fit` knows the images."""
    for name in ("attack", "validation_attack"):
        attack: Any = {name: PGD(step_size=9.0)}
        line = error_line(partial(Adv, network(), threat=Threat("linf", 0.1), **attack))
        assert line.startswith(f"{name}.step_size: expected a step within the box [0, 1]")
        model = Adv(network(), threat=Threat("l2", 0.1), **attack)  # the diagonal is 4
        model.compile("sgd")
        line = error_line(partial(model.fit, X, Y, verbose=0))
        assert line.startswith(f"{name}.step_size: ")
        assert int(model.step) == 0
