"""Each check warns of a network with its fault, and none warns of an honest network.

The honest network is linear, so that any attack reaches the worst image within eps in one step.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import FGSM, PGD, Threat
from tfrobust.attacks import Square
from tfrobust.evaluation import Result, evaluate
from tfrobust.evaluation.attack_list import ListedAttack
from tfrobust.evaluation.sample import Sample
from tfrobust.evaluation.sanity_checks import (
    CHECKS,
    _more,
    black_box,
    checks,
    huge_eps,
    larger_eps,
    more_steps,
    one_step,
    probabilities,
    random_noise,
    random_output,
    scaling,
    zero_gradients,
)
from tfrobust.training.interrupt import Interrupted

checks_module = importlib.import_module("tfrobust.evaluation.sanity_checks")  # not the function
W = np.array([[3, -1, 0], [1, 2, -2], [-2, 0, 3], [-1, 1, 2]], np.float32)
X = np.random.default_rng(0).uniform(0.2, 0.8, (60, 2, 2, 1)).astype(np.float32)
THREAT = Threat("linf", 0.05)
WHITE, WEAK, BLACK = (
    ListedAttack(attack, attack.title) for attack in (PGD(steps=20), FGSM(), Square())
)


# The networks return logits, [B, 3], of images [B, 2, 2, 1].
def honest(x: Any) -> Any:
    """Each class has a corner of the box, and the logits are equal at grey."""
    return tf.reshape(x - 0.5, [-1, 4]) @ W


def rounded(x: Any) -> Any:
    """The gradients are 0 everywhere."""
    return honest(tf.round(8 * x) / 8) + 0 * honest(x)


def saturated(x: Any) -> Any:
    """The logits differ by thousands, and exp(-1000) is 0 in float32."""
    return 1e5 * honest(x)


def softmax(x: Any) -> Any:
    return tf.nn.softmax(honest(x))


def pixel(margin: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a network, [B, 2], whose margin of class 0 is margin(first pixel, [B]), [B]."""

    def network(x: Any) -> Any:
        z = margin(x[:, 0, 0, 0])
        return tf.stack([z, 0 * z], axis=1)

    return network


GREY = np.full((60, 1, 1, 1), 0.5, np.float32)


@pixel
def trap(t: Any) -> Any:
    """Return a margin that falls from 0.05 at 0.5 to -0.03 at 0.6, but rises from 0.54 to 0.55.

    Steps of 0.005 stay in this local minimum, most of those of 0.025 leap over it, and one of 0.1
    always does.
    """
    return 0.05 - (t - 0.5) + 2 * tf.clip_by_value(t - 0.54, 0, 0.01)


@pixel
def beyond(t: Any) -> Any:
    """Return a margin that is negative from 0.55 to 0.62 alone; the gradient points beyond."""
    return 0.05 - (t - 0.5) + tf.where(t > 0.62, 0.5, 0.0)


def sample(
    network: Callable[[Any], Any],
    x: np.ndarray = X,
    threat: Threat = THREAT,
    results: Sequence[Result] = (),
) -> Sample:
    """Return a sample of images on all of which a network is right."""
    y, n = np.asarray(network(x)).argmax(axis=1), len(x)
    clean = Result("clean", np.ones(n, bool), 0.0)
    return Sample(network, x, y, threat, results or [clean], np.arange(n), (x, y), 0, 25, False)


def test_an_honest_network_passes_every_check() -> None:
    y = honest(X).numpy().argmax(axis=1)
    y[:5] = (y[:5] + 1) % 3  # the network is wrong on them, so no check uses them
    attack_list = [WHITE, ListedAttack(Square(queries=50), "Square")]
    results = evaluate(honest, X, y, THREAT, attack_list, check=False, progress=False).results
    result = checks(honest, X, y, THREAT, results, examples=40, progress=False)
    values = {check.name: check.value for check in result}
    assert len(result) == len(values) == len(CHECKS)
    assert [check.name for check in result if check.warns] == []
    assert values["black box against white box"] <= 1 / 60  # by chance, at the boundary
    names = ["huge eps", "random output", "zero gradients", "random noise"]
    names += ["one step against many", "more steps"]
    assert [values[name] for name in names] == [0] * len(names)
    assert all("40 images" in c.text or "40 clean images" in c.text for c in result[1:])


def test_there_are_no_checks_where_no_image_is_right() -> None:
    clean = Result("clean", np.zeros(60, bool), 0.0)
    assert checks(honest, X, np.zeros(60, int), THREAT, [clean]) == []


@pytest.mark.parametrize(("network", "share"), [(honest, 0), (rounded, 1), (saturated, 1)])
def test_zero_gradients_of_rounding_or_large_logits_are_a_warning(
    network: Any, share: float
) -> None:
    """Where only large logits are the cause, the difference of two of them has a gradient."""
    check = zero_gradients(sample(network))
    assert (check.value, check.warns) == (share, share > 0)
    assert ("divide them" in check.text) == (network is saturated)


def test_zero_gradients_at_two_of_sixty_images_are_a_warning() -> None:
    bright = np.sort(X[:, 0, 0, 0])[-2]
    check = zero_gradients(sample(lambda x: tf.where(x[:, 0, 0] >= bright, rounded(x), honest(x))))
    assert (check.value, check.warns) == (2 / 60, True)


def test_gradients_that_are_not_finite_are_a_warning() -> None:
    """sqrt(relu(x - 2)) is 0 in the box, and its derivative is infinity times 0."""
    check = zero_gradients(sample(lambda x: honest(x + tf.sqrt(tf.nn.relu(x - 2)))))
    assert check.value == 1 and check.warns


@pytest.mark.parametrize("scale", [0.1, 0.001])
def test_a_random_output_is_a_warning(scale: float) -> None:
    network = lambda x: honest(x) + scale * tf.random.normal([tf.shape(x)[0], 3])  # noqa: E731
    check = random_output(sample(network))
    assert check.warns and check.value is not None and check.value > scale


def test_logits_that_depend_on_the_other_images_of_a_batch_are_a_warning() -> None:
    """BatchNorm in training mode gives the same logits twice, but others in other batches."""
    check = random_output(sample(lambda x: honest(x) - tf.reduce_mean(honest(x), 0)))
    assert check.warns and check.value is not None and check.value > 0.01
    assert "differ by at most 0 in" in check.text and "In batches of 13 they differ" in check.text


def test_probabilities_instead_of_logits_are_a_warning() -> None:
    check = probabilities(sample(softmax))
    assert check.warns and "not logits" in check.text


@pytest.mark.parametrize(
    ("scale", "offset", "layer"),
    [(1, 0, None), (2, -1, "Rescaling(2, offset=-1)"), (255, 0, "Rescaling(255, offset=0)")],
)
def test_a_network_of_images_in_another_range_is_a_warning(
    scale: int, offset: int, layer: str | None
) -> None:
    """It is right on all images once they are scaled as it expects."""
    y = honest(X).numpy().argmax(axis=1)
    network = lambda x: honest((x - offset) / scale)  # noqa: E731
    check = scaling(dataclasses.replace(sample(network), unselected=(X, y)))
    right = int((network(X).numpy().argmax(axis=1) == y).sum())
    start = f"The network is right on {right} of 60 images in [0, 1]"
    assert check.text.startswith(start)
    assert check.warns == (layer is not None) == (right < 60)
    assert (f"inside the network: keras.layers.{layer}." in check.text) == check.warns


def test_an_evaluation_prints_its_warnings() -> None:
    y = rounded(X).numpy().argmax(axis=1)
    result = evaluate(rounded, X, y, THREAT, PGD(steps=2), progress=False)
    assert len(result.checks) == len(CHECKS)
    assert "\nwarning: zero gradients: The gradient" in str(result)


@pytest.mark.parametrize("check", [huge_eps, random_noise])
def test_large_eps_and_random_noise_warn_of_a_network_without_gradients(check: Any) -> None:
    result = check(sample(rounded))
    assert result.warns and result.value > 0.2


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.5), ("l2", 1), ("l1", 2)])
def test_huge_eps_reaches_grey_in_every_norm(norm: str, eps: float) -> None:
    """For four pixels the distance is 0.5 * 4^(1/p)."""
    check = huge_eps(sample(honest, threat=Threat(norm, 0.01)))
    assert check.text.startswith(f"At eps {eps},")
    assert (check.value, check.warns) == (0, False)


@pytest.mark.parametrize(("beaten", "loss", "warns"), [(6, 2, False), (7, 2, True), (6, 99, True)])
def test_noise_beats_the_attack_at_a_tenth_of_the_images_or_in_the_mean(
    beaten: int, loss: float, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the attack all losses are 1. Under noise `beaten` have this value, the others are 0."""
    chance = np.where(np.arange(60) < beaten, loss, 0)
    monkeypatch.setattr(Sample, "losses", lambda *_: [np.ones(60), chance])
    monkeypatch.setattr(Sample, "pgd_50", Mock(images=X))
    check = random_noise(sample(honest))
    assert (check.value, check.warns) == (beaten / 60, warns)


def test_one_step_or_few_steps_that_break_more_images_than_many_are_a_warning() -> None:
    result = sample(trap, GREY, Threat("linf", 0.1))
    few, one = more_steps(result), one_step(result)
    assert few.warns and one.warns
    assert "FGSM) leaves 0 of 60" in one.text
    assert one.value is not None and few.value is not None and one.value > few.value > 0.1


def test_a_larger_eps_that_breaks_fewer_images_is_a_warning() -> None:
    check = larger_eps(sample(beyond, GREY, Threat("linf", 0.1)))
    assert (check.value, check.warns) == (1, True)
    assert check.text == "PGD-50 leaves 0 of 60 images right at eps 0.1, 60 at 0.2."


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_larger_eps_that_breaks_no_more_images_is_a_warning_if_eps_breaks_some(
    share: float,
) -> None:
    """It is none if eps breaks all images or none. A second pixel of 0 makes an image breakable."""
    x = np.full((60, 1, 2, 1), 0.5, np.float32)
    x[:, 0, 1] = (np.arange(60) < 60 * share)[:, None]

    def network(x: Any) -> Any:
        margin = 0.05 - (x[:, 0, 0, 0] - 0.5) + tf.round(x[:, 0, 1, 0])
        return tf.stack([margin, 0 * margin], axis=1)

    check = larger_eps(sample(network, x, Threat("linf", 0.1)))
    assert (check.value, check.warns) == (0, share == 0.5)


class Failing:
    """A network that raises an error from its second call on."""

    def __init__(self, error: BaseException):
        self.error, self.calls = error, 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        if self.calls > 1:
            raise self.error
        return honest(x)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "OOM\nwhen"), "the memory does not suf"),
        (MemoryError("Unable to allocate 9 GiB"), "the memory does not suffice; lower the batch"),
        (RuntimeError("no\n  luck."), "RuntimeError: no luck."),
        (KeyError("w"), "KeyError: 'w'."),
        (ZeroDivisionError(), "ZeroDivisionError."),
    ],
)
def test_a_check_that_fails_is_reported_as_not_measured(error: Exception, reason: str) -> None:
    result = [check(sample(Failing(error))) for check in CHECKS]
    assert len({check.name for check in result}) == len(CHECKS)
    assert not any(check.warns or check.value is not None for check in result)
    # The first check does not call the network.
    assert all(c.text.startswith(f"Not measured: {reason}") for c in result[1:])
    assert all("\n" not in c.text for c in result)


def test_an_evaluation_ends_with_its_results_when_checks_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
    monkeypatch.setattr(checks_module, "first_order_distances", Mock(side_effect=error))
    monkeypatch.setattr(checks_module, "CHECKS", CHECKS[-2:])
    y = honest(X).numpy().argmax(axis=1)
    evaluation = evaluate(honest, X, y, THREAT, PGD(steps=2), progress=False)
    assert [result.name for result in evaluation.results] == ["clean", "PGD-2"]
    measured, last = evaluation.checks
    assert (last.name, last.value, last.warns) == ("first-order distance", None, False)
    assert last.text == "Not measured: the memory does not suffice; lower the batch size."
    assert "Not measured" not in measured.text


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted(15, "")])
def test_an_interruption_is_raised_and_not_reported_as_a_failed_check(stop: BaseException) -> None:
    with pytest.raises(type(stop)):
        random_output(sample(Failing(stop)))


def test_noise_that_leaves_the_ball_is_reported_as_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The images of a check are validated like those of an attack."""
    monkeypatch.setattr(Threat, "random_start", lambda self, x, seed: 0 * x)
    result = random_noise(dataclasses.replace(sample(honest), x=X))
    assert result.value is None and "RuntimeError: uniform noise: made images at" in result.text


def test_every_batch_of_a_check_has_its_own_noise() -> None:
    one = random_noise(dataclasses.replace(sample(honest), batch_size=60))
    several = random_noise(dataclasses.replace(sample(honest), batch_size=7))
    assert one.value is not None and several.value == pytest.approx(one.value, abs=0.1)
    assert one.text != several.text


def row(listed: ListedAttack, attacked: int, broken: Sequence[int], n: int = 10) -> Result:
    """Return the result of an attack on n images that breaks those of these places."""
    flags = ~np.isin(np.arange(n), broken)
    gradients = 0 if listed.attack is BLACK.attack else 9
    return Result(listed.name, flags, 0.0, listed, attacked, 9, gradients)


@pytest.mark.parametrize(
    ("results", "value", "warns"),
    [
        # Each attack ran on all images; the black box alone breaks 4 and 5.
        ([row(WHITE, 10, [0, 1]), row(BLACK, 10, [1, 4, 5])], 0.2, True),
        ([row(BLACK, 10, [1, 4, 5]), row(WHITE, 10, [0, 1])], 0.2, True),
        ([row(WHITE, 10, [0, 1, 4]), row(BLACK, 10, [1, 4])], 0, False),
        ([row(WHITE, 10, [0, 1]), row(BLACK, 10, [4])], 0.1, False),  # by chance
        # Both attacks ran on the first five images alone.
        ([row(WHITE, 10, [0]), row(BLACK, 5, [1, 2], 5)], 0.4, True),
        ([row(WHITE, 5, [0], 5), row(BLACK, 10, [1, 7, 8])], 0.2, False),
        # The flags of a cascade are also False where an earlier attack broke the image.
        ([row(WHITE, 10, [0, 1]), row(BLACK, 8, [0, 1])], 0, False),
        ([row(WHITE, 10, [0, 1]), row(BLACK, 8, [0, 1, 4, 5])], 0.2, True),
        ([row(WEAK, 10, [0]), row(WHITE, 9, [0, 1]), row(BLACK, 8, [0, 1, 4])], 0.1, False),
        # Each attack ran on all images but the last one, which is in a suite with the second.
        (
            [
                row(BLACK, 10, [0, 1, 2]),
                row(dataclasses.replace(WHITE, suite="both"), 10, [3, 4]),
                row(dataclasses.replace(BLACK, suite="both"), 8, [3, 4, 5]),
                Result("both", np.zeros(10, bool), 0.0),
            ],
            0.3,
            True,
        ),
        # No strong white-box attack ran on the images that the black box broke.
        ([row(BLACK, 10, [4, 5]), row(WHITE, 8, [0, 4, 5])], None, False),
        ([row(WEAK, 10, [0]), row(BLACK, 10, [4, 5])], None, False),
        ([row(WHITE, 10, [0])], None, False),
    ],
)
def test_a_black_box_that_breaks_more_images_than_the_white_box_is_a_warning(
    results: list[Result], value: float | None, warns: bool
) -> None:
    """`value` is the share of images that the black box alone breaks, None if not measured."""
    check = black_box(sample(honest, X[:10], results=[sample(honest, X[:10]).results[0], *results]))
    assert (check.value, check.warns) == (value, warns)
    assert ("Not measured" in check.text) == (value is None)


def test_two_of_sixty_images_that_the_black_box_alone_breaks_are_a_warning() -> None:
    results = [sample(honest).results[0], row(WHITE, 60, [0], 60), row(BLACK, 60, [1, 2], 60)]
    check = black_box(sample(honest, results=results))
    assert (check.value, check.warns) == (2 / 60, True)


def test_square_breaks_images_of_rounded_logits_that_pgd_does_not() -> None:
    y = rounded(X).numpy().argmax(axis=1)
    threat = Threat("linf", 0.2)
    attack_list = [WHITE, ListedAttack(Square(queries=100), "Square")]
    result = evaluate(rounded, X, y, threat, attack_list, check=False)
    check = black_box(sample(rounded, threat=threat, results=result.results))
    assert check.warns and "Square breaks" in check.text and WHITE.name in check.text


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [(0, 0, False), (6, 0, False), (7, 0, True), (4, 1, False), (12, 2, True), (0, 9, False)],
)
def test_a_difference_is_significant_if_a_sign_test_gives_less_than_a_percent(
    gained: int, lost: int, expected: bool
) -> None:
    """Six of six images have probability 1/64, seven of seven 1/128, and 12 of 14 106 / 2^14."""
    before, after = np.ones(200, bool), np.ones(200, bool)
    after[:gained] = False
    before[100 : 100 + lost] = False
    assert _more(before, after) is expected
