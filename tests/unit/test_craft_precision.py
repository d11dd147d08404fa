"""Attacks search in a lower precision, and the network itself decides what is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import FGSM, PGD, Adv, Threat, tf32
from tfrobust.attacks import APGD, Square
from tfrobust.data.digits import open_digits
from tfrobust.errors import UserError
from tfrobust.evaluation import craft, evaluate
from tfrobust.models import in_precision, load_network, small_cnn
from tfrobust.models.layers import Dropout
from tfrobust.record import Record
from tfrobust.report.summary import how_counted

THREAT = Threat("linf", 0.15)


@pytest.fixture(scope="module")
def digits() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Return a briefly trained network and 200 test images."""
    keras.utils.set_random_seed(0)
    train, test = (open_digits().load(split) for split in ("train", "test"))
    network = small_cnn((8, 8, 1), 10, filters=[8], pool=False)
    model = Adv(network, threat=THREAT, validation_attack=FGSM())
    model.compile(keras.optimizers.Adam(2e-3))
    model.fit(train.as_float(), train.labels, batch_size=64, epochs=4, verbose=0)
    return network, test.as_float()[:200], test.labels[:200]


def test_images_that_only_the_search_breaks_are_attacked_again(digits: Any) -> None:
    """A search that takes every image for misclassified costs a query but changes no result."""
    network, x, y = digits
    attack = PGD(steps=5, success="any")
    alone = craft(network, x, y, attack, THREAT)
    again = craft(network, x, y, attack, THREAT, search=lambda images: -network(images))
    np.testing.assert_array_equal(again.right, alone.right)
    assert 0 < alone.right.mean() < 1
    assert (again.queries > alone.queries)[alone.queries > 1].all()


def test_images_attacked_again_have_their_own_noise_of_dropout(digits: Any) -> None:
    """It failed: Dropout had the noise of all these images, and the attack only some of them."""
    network, x, y = digits
    random = keras.Sequential([keras.Input((8, 8, 1)), network, Dropout(0.1)])
    search: Any = lambda images: -random(images, training=True)  # noqa: E731
    attack = PGD(steps=5, success="any")
    found = craft(lambda z: random(z, training=True), x, y, attack, THREAT, search=search)
    assert 0 < found.right.mean() < 1


@pytest.mark.slow
def test_bfloat16_search_breaks_as_many_images_as_float32(digits: Any) -> None:
    """The numbers of robust images of 200 differ by at most one."""
    network, x, y = digits
    # The attacks have their standard length: the results of shorter ones differ more from one seed
    # to the next.
    attacks = [APGD(), APGD("targeted_dlr")]
    options: dict[str, Any] = {"check": False, "progress": False}
    plain = evaluate(network, x, y, THREAT, attacks, **options)
    half = evaluate(network, x, y, THREAT, attacks, craft_precision="mixed_bfloat16", **options)
    assert abs(plain.robust_accuracy - half.robust_accuracy) <= 1 / 200
    assert half.clean_accuracy == plain.clean_accuracy
    np.testing.assert_array_equal(plain.results[0].robust, half.results[0].robust)


def test_record_has_the_precision_of_the_search(digits: Any, tmp_path: Path) -> None:
    """Results of one precision are not reused in another."""
    network, x, y = digits
    network.save(tmp_path / "model.keras")
    loaded = load_network(tmp_path)
    options: dict[str, Any] = {"folder": tmp_path, "check": False, "progress": False}
    for precision in ("float32", "mixed_bfloat16"):
        evaluate(loaded, x, y, THREAT, "fgsm", craft_precision=precision, **options)
        record = Record.load(tmp_path)
        assert record.craft_precision == precision
        provenance = record.attacks[0].provenance
        assert provenance is not None and provenance.precision == "float32"
        assert (provenance.tf32, provenance.replicas) == (tf32.in_use(), 1)
        assert ("searched on the network in" in how_counted(record)) == (precision != "float32")
    assert Record.load(tmp_path / "evaluation.1").craft_precision == "float32"


def test_search_in_lower_precision_needs_a_keras_network(digits: Any, tmp_path: Path) -> None:
    network, x, y = digits
    network.export(str(tmp_path / "exported"), verbose=False)
    for function in (lambda images: network(images), load_network(tmp_path / "exported")):
        with pytest.raises(UserError, match="^craft_precision: expected float32 .only a func"):
            evaluate(function, x, y, THREAT, "fgsm", craft_precision="mixed_bfloat16")
    with pytest.raises(UserError, match="^craft_precision: .* received 'mixed_float16'"):
        evaluate(network, x, y, THREAT, "fgsm", craft_precision="mixed_float16")
    method = Adv(network, threat=THREAT)
    with pytest.raises(UserError, match=r"^craft_precision: .* for Adv \(or give model.network"):
        evaluate(method, x, y, THREAT, "fgsm", craft_precision="mixed_bfloat16")
    copy = in_precision(network, "mixed_bfloat16", "network")
    np.testing.assert_allclose(copy(x[:4]), network(x[:4]), atol=0.1)


def test_verdicts_are_computed_without_tensor_float_32(digits: Any) -> None:
    """It is on during the search, and on again after the verdicts."""
    network, x, y = digits
    switch, states = tf.config.experimental, []
    assert switch.tensor_float_32_execution_enabled()

    def look(images: Any) -> Any:
        states.append(switch.tensor_float_32_execution_enabled())
        return images

    def logits_fn(images: tf.Tensor) -> tf.Tensor:
        return network(tf.ensure_shape(tf.py_function(look, [images], tf.float32), images.shape))

    craft(logits_fn, x[:8], y[:8], Square(queries=5), THREAT)
    assert set(states) == {True, False} and not states[-1]
    assert switch.tensor_float_32_execution_enabled()
