"""Images that stand for a whole test set, which may be sorted by class."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines.runner import run
from tests.errors import error_line
from tfrobust import Threat, evaluate
from tfrobust.attacks import FGSM
from tfrobust.evaluation import Corruptions, ListedAttack, list_attacks
from tfrobust.evaluation.api import check_samples
from tfrobust.gate import check_first, check_inputs, representative
from tfrobust.record import Record

SORTED = np.repeat(np.arange(10), 100)


@pytest.mark.parametrize(
    ("count", "share", "class_"),
    [(50, "100%", 0), (100, "100%", 0), (500, "20%", 0), (800, "12%", 0)],
)
def test_the_first_images_of_sorted_ones_are_refused(count: int, share: str, class_: int) -> None:
    assert error_line(lambda: check_first(SORTED, count, "PGD-20: examples")) == (
        f"PGD-20: examples: expected the first {count} of 1,000 images to have classes as all of "
        f"them have, received images of which {share} are of class {class_}, where it is 10% of "
        "all; shuffle the images and labels together"
    )


def test_random_images_pass_however_few_they_are(rng: np.random.Generator) -> None:
    """Many classes, of which the sample has only some, and rare ones, pass too."""
    shares = [np.full(2, 0.5), np.full(100, 0.01), 0.7 ** np.arange(1, 31), np.array([0.001, 1])]
    for share in shares:
        labels = rng.choice(len(share), 2000, p=share / share.sum())
        for count in (1, 2, 10, 100, 1000, 1999, 2000):
            for _ in range(30):
                check_first(rng.permutation(labels), count, "examples")


def test_images_at_equal_distances_stand_for_sorted_ones(rng: np.random.Generator) -> None:
    assert np.bincount(SORTED[representative(SORTED, 200)]).tolist() == [20] * 10
    assert representative(rng.permutation(SORTED), 200) == slice(200)
    assert representative(SORTED, 1001) == slice(1001)


def half_right(x: tf.Tensor) -> tf.Tensor:
    """Return logits that are right on classes 5 to 9 of `sorted_images`, and on no other."""
    number = tf.cast(tf.floor(10 * x[:, 0, 0, 0]), tf.int32)
    logits = 5 * tf.one_hot(tf.where(number < 5, 9, number), 10)
    return logits + 0 * x[:, :1, 0, 0]  # gradients of 0, not None


def sorted_images() -> np.ndarray:
    """Return images [1000, 2, 2, 1] of the classes SORTED, whose grey tells the class."""
    return np.tile(((SORTED + 0.5) / 10).astype("float32")[:, None, None, None], (1, 2, 2, 1))


def test_curve_and_checks_of_sorted_images_are_those_of_all_classes(tmp_path: Path) -> None:
    threat = Threat("linf", 0.01)
    evaluate(half_right, sorted_images(), SORTED, threat, "fgsm", folder=tmp_path, progress=False)
    record = Record.load(tmp_path)
    assert [row.robust_accuracy for row in record.eps_curve] == [0.5] * 8
    (text,) = [check.text for check in record.checks if check.name == "scaling"]
    assert "right on 100 of 200 images" in text


def test_a_network_that_fails_at_the_first_class_is_not_taken_for_one_of_another_scale() -> None:
    """Most pixels outside [0, 1] are of class 0 to it, as all of the first images are."""

    def logits_fn(x: tf.Tensor) -> tf.Tensor:
        number = tf.cast(tf.floor(10 * x[:, 0, 0, 0]), tf.int32)
        seen = tf.where((number > 9) | (number < 0), 0, tf.where(number == 0, 3, number))
        return 5 * tf.one_hot(seen, 10)

    x = np.repeat(sorted_images(), 6, axis=0)
    check_inputs(logits_fn, x, np.repeat(SORTED, 6), Threat("linf", 0.1))


FIRST = ListedAttack(FGSM(), "first", 100)


@pytest.mark.parametrize(
    "options",
    [
        {"attacks": [FIRST]},
        {"attacks": [FGSM(), FIRST]},
        {"attacks": [], "corruptions": Corruptions(names=["brightness"], examples=100)},
    ],
)
def test_evaluate_refuses_them_before_any_attack(
    linear: Callable[..., Any], rng: np.random.Generator, options: dict[str, Any]
) -> None:
    network = linear(np.eye(4, 10, dtype=np.float32))
    x, mixed = rng.random((1000, 2, 2, 1), np.float32), rng.permutation(1000)

    def call(order: np.ndarray | slice) -> Any:
        return evaluate(network, x[order], SORTED[order], Threat("linf", 0.1), **options)

    assert "examples: expected the first 100 of 1,000 ima" in error_line(lambda: call(slice(None)))
    assert 0.0 < call(mixed).clean_accuracy < 0.3


def test_a_run_takes_a_network_that_is_weak_on_the_first_class_of_sorted_images(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """The first 500 images are of one class, and in [-1, 1] it would be right on all of them."""
    labels = np.repeat([0, 1], 600)
    images = np.where(labels == 1, 0.8, 0.55).astype("float32")
    images[:200] = 0.2
    x = np.tile(images[:, None, None, None], (1, 4, 4, 1))
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    network.add(keras.layers.Dense(2))
    network.layers[-1].set_weights([np.array([[-1.0, 1.0]] * 16), np.array([8.0, -8.0])])
    network.save(tmp_path / "network.keras")
    np.savez(tmp_path / "sorted.npz", x_test=x, y_test=labels)
    overrides = [f"model.path={tmp_path / 'network.keras'}", "data.name=npz", "threat.eps=0.01"]
    overrides += [f"data.path={tmp_path / 'sorted.npz'}", "attacks=fgsm", "stages=[attack_eval]"]
    run("evaluate", overrides, tmp_path / "runs", None, smoke=False)
    assert Record.load(tmp_path / "runs" / "evaluate").clean_accuracy == pytest.approx(800 / 1200)


@pytest.mark.usefixtures("short_closing")
def test_held_out_images_of_a_network_from_elsewhere_are_doubted(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = rng.random((60, 2, 2, 1), np.float32), np.arange(60) % 2
    np.savez(tmp_path / "my.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]).save(
        tmp_path / "network.keras"
    )
    data = f"data={{name: npz, path: {tmp_path / 'my.npz'}, validation: 20}}"
    overrides = [f"model.path={tmp_path / 'network.keras'}", data, "threat.eps=0.01"]
    overrides += ["attacks=fgsm", "stages=[attack_eval]", "seed=3"]
    said = "the 20 images are those that seed 3 holds out"
    run("evaluate", overrides, tmp_path / "runs", None, smoke=False)
    assert said not in capsys.readouterr().out
    overrides += ["evaluation.split=validation"]
    run("evaluate", overrides, tmp_path / "runs", None, smoke=False)
    assert said in capsys.readouterr().out


def test_an_attack_of_a_cascade_may_not_follow_one_of_fewer_images(
    linear: Callable[..., Any], rng: np.random.Generator
) -> None:
    """What the first attack broke of 50 images would be counted among all 100."""
    network = linear(np.eye(4, 10, dtype=np.float32))
    x, y = rng.random((100, 2, 2, 1), np.float32), rng.permutation(SORTED)[:100]
    few, all_ = ListedAttack(FGSM(), "few", 50), ListedAttack(FGSM(), "all", 100)

    def call(attacks: list[ListedAttack], mode: str) -> Any:
        return evaluate(network, x, y, Threat("linf", 0.1), attacks, mode=mode, check=False)

    assert error_line(lambda: call([few, all_], "cascade")) == (
        "attacks: expected few, on 50 images, after all, on 100, as each attack of a cascade gets "
        "what those before it left right; change their order"
    )
    assert call([all_, few], "cascade") and call([few, all_], "each")


@pytest.mark.parametrize("budget", ["small", "paper"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attacks_of_the_paper_are_in_an_order_for_a_cascade(budget: str, norm: str) -> None:
    attacks = list_attacks({"name": "paper", "budget": budget}, Threat(norm, 0.3))
    check_samples(np.arange(10000) % 10, attacks, "cascade", corruptions=False)


@pytest.mark.parametrize(
    "limited",
    [
        ["attacks={name: fgsm, examples: 100}"],
        [
            "attacks=pgd",
            "evaluation.save=uint8",
            "stages=[train, attack_eval, export]",
            "export={attacks: [{name: square, queries: 10, examples: 100}]}",
        ],
    ],
)
def test_a_run_is_refused_before_it_trains(
    tmp_path: Path, rng: np.random.Generator, limited: list[str]
) -> None:
    images = rng.random((1000, 2, 2, 1), np.float32)
    file = tmp_path / "sorted.npz"
    np.savez(file, x_train=images, y_train=SORTED, x_test=images, y_test=SORTED)
    overrides = [
        f"data={{name: npz, path: {file}, batch_size: 50, validation: 100}}",
        *limited,
    ]
    line = error_line(lambda: run("digits_adv", overrides, tmp_path / "runs", None, smoke=False))
    assert re.search(r"(FGSM|Square-10): examples: expected the first 100 of 1,000 images", line)
    assert not (tmp_path / "runs").exists()
