"""Each check warns of a network with its fault and does not warn of an honest one.

The honest network is linear: its worst image within eps is one step away for any attack.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

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


def honest(x: Any) -> Any:
    """Each class has a corner of the box, and all meet in grey."""
    return tf.reshape(x - 0.5, [-1, 4]) @ W


def rounded(x: Any) -> Any:
    """The gradients are 0 everywhere."""
    return honest(tf.round(8 * x) / 8) + 0 * honest(x)


def saturated(x: Any) -> Any:
    """Differences of logits are in the thousands; exp(-1000) is 0 in float32."""
    return 1e5 * honest(x)


def randomised(x: Any) -> Any:
    return honest(x) + 0.1 * tf.random.normal([tf.shape(x)[0], 3])


def softmax(x: Any) -> Any:
    return tf.nn.softmax(honest(x))


def pixel(margin: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a network of two classes; the margin of class 0 depends on the first pixel alone."""

    def network(x: Any) -> Any:
        z = margin(x[:, 0, 0, 0])
        return tf.stack([z, 0 * z], axis=1)

    return network


GREY = np.full((60, 1, 1, 1), 0.5, np.float32)


@pixel
def trap(t: Any) -> Any:
    """Return a margin with a local minimum at 0.54.

    From 0.5 upwards it falls from 0.05 to -0.03 at 0.6, but rises from 0.54 to 0.55. Steps of 0.005
    stay there, most of those of 0.025 leap over it, and one of 0.1 always does.
    """
    return 0.05 - (t - 0.5) + 2 * tf.clip_by_value(t - 0.54, 0, 0.01)


@pixel
def beyond(t: Any) -> Any:
    """Wrong from 0.55 to 0.62; the gradient points beyond it, to where class 0 is right again."""
    return 0.05 - (t - 0.5) + tf.where(t > 0.62, 0.5, 0.0)


def seen(
    network: Callable[[Any], Any],
    x: np.ndarray = X,
    threat: Threat = THREAT,
    results: Sequence[Result] = (),
) -> Sample:
    """Return all images, labelled by the network itself."""
    y, n = np.asarray(network(x)).argmax(axis=1), len(x)
    clean = Result("clean", np.ones(n, bool), 0.0)
    return Sample(network, x, y, threat, results or [clean], np.arange(n), (x, y), 0, 25, False)


def test_an_honest_network_passes_every_check() -> None:
    y = honest(X).numpy().argmax(axis=1)
    y[:5] = (y[:5] + 1) % 3  # wrong when clean: looked at by no check
    attack_list = [WHITE, ListedAttack(Square(queries=50), "Square")]
    results = evaluate(honest, X, y, THREAT, attack_list, check=False, progress=False).results
    result = checks(honest, X, y, THREAT, results, examples=40, progress=False)
    assert len(result) == len(CHECKS) and len({check.name for check in result}) == len(CHECKS)
    assert [check.name for check in result if check.warns] == []
    by_name = {check.name: check for check in result}
    assert by_name["huge eps"].value == 0 and by_name["random output"].value == 0
    assert by_name["zero gradients"].value == 0 and by_name["random noise"].value == 0
    assert by_name["black box against white box"].value <= 1 / 60  # chance, at the boundary
    assert all("40 images" in c.text or "40 clean images" in c.text for c in result[1:])
    # Both go straight to the worst corner.
    assert by_name["one step against many"].value == 0 and by_name["more steps"].value == 0


def test_nothing_is_measured_where_nothing_is_right() -> None:
    clean = Result("clean", np.zeros(60, bool), 0.0)
    assert checks(honest, X, np.zeros(60, int), THREAT, [clean]) == []


@pytest.mark.parametrize(("network", "share"), [(honest, 0), (rounded, 1), (saturated, 1)])
def test_zero_gradients(network: Any, share: float) -> None:
    check = zero_gradients(seen(network))
    assert (check.value, check.warns) == (share, share > 0)
    # The difference of two logits has a gradient where large logits alone are to blame.
    assert ("divide them" in check.text) == (network is saturated)


def test_gradients_that_are_not_finite() -> None:
    """sqrt(relu(x - 2)) is 0 in the box, and its derivative is infinity times 0."""
    check = zero_gradients(seen(lambda x: honest(x + tf.sqrt(tf.nn.relu(x - 2)))))
    assert check.value == 1 and check.warns


def test_random_output() -> None:
    check = random_output(seen(randomised))
    assert check.warns and check.value is not None and check.value > 0.1
    assert random_output(seen(honest)).value == 0


def test_probabilities() -> None:
    assert probabilities(seen(softmax)).warns and "not logits" in probabilities(seen(softmax)).text
    assert not probabilities(seen(honest)).warns


@pytest.mark.parametrize(
    ("scale", "offset", "layer"),
    [(1, 0, None), (2, -1, "Rescaling(2, offset=-1)"), (255, 0, "Rescaling(255, offset=0)")],
)
def test_a_network_of_images_in_another_range(scale: int, offset: int, layer: str | None) -> None:
    """The network is right on all images once they are scaled as it expects."""
    y = honest(X).numpy().argmax(axis=1)
    network = lambda x: honest((x - offset) / scale)  # noqa: E731
    check = scaling(dataclasses.replace(seen(network), first=(X, y)))
    right = int((network(X).numpy().argmax(axis=1) == y).sum())
    assert check.text.startswith(
        f"The network is right on {right} of the first 60 images in [0, 1]"
    )
    assert check.warns == (layer is not None) == (right < 60)
    assert (f"inside the network: keras.layers.{layer}." in check.text) == check.warns


def test_the_evaluation_tells_what_warns() -> None:
    y = rounded(X).numpy().argmax(axis=1)
    result = evaluate(rounded, X, y, THREAT, PGD(steps=2), progress=False)
    assert len(result.checks) == len(CHECKS)
    assert "\nwarning: zero gradients: The gradient" in str(result)


@pytest.mark.parametrize("check", [huge_eps, random_noise])
def test_an_attack_without_gradients_is_no_better_than_its_random_start(check: Any) -> None:
    result = check(seen(rounded))
    assert result.warns and result.value > 0.2


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.5), ("l2", 1), ("l1", 2)])
def test_huge_eps_reaches_grey_in_every_norm(norm: str, eps: float) -> None:
    """For four pixels the distance is 0.5 * 4^(1/p)."""
    check = huge_eps(seen(honest, threat=Threat(norm, 0.01)))
    assert check.text.startswith(f"At eps {eps},")
    assert (check.value, check.warns) == (0, False)


def test_one_step_and_few_steps_that_beat_many() -> None:
    result = seen(trap, GREY, Threat("linf", 0.1))
    few, one = more_steps(result), one_step(result)
    assert few.warns and one.warns
    assert "FGSM) leaves 0 of 60" in one.text
    assert one.value is not None and few.value is not None and one.value > few.value > 0.1


def test_a_larger_eps_that_breaks_fewer() -> None:
    check = larger_eps(seen(beyond, GREY, Threat("linf", 0.1)))
    assert (check.value, check.warns) == (1, True)
    assert check.text == "PGD-50 leaves 0 of 60 images right at eps 0.1, 60 at 0.2."


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_larger_eps_that_breaks_no_more(share: float) -> None:
    """A larger eps that breaks no more is a sign only if eps breaks some and leaves some.

    A second pixel says which images have no margin.
    """
    x = np.full((60, 1, 2, 1), 0.5, np.float32)
    x[:, 0, 1] = (np.arange(60) < 60 * share)[:, None]

    def network(x: Any) -> Any:
        margin = 0.05 - (x[:, 0, 0, 0] - 0.5) + tf.round(x[:, 0, 1, 0])
        return tf.stack([margin, 0 * margin], axis=1)

    check = larger_eps(seen(network, x, Threat("linf", 0.1)))
    assert (check.value, check.warns) == (0, share == 0.5)


class Failing:
    """A network that raises an error from some call on."""

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
        (
            tf.errors.ResourceExhaustedError(None, None, "OOM\nwhen"),
            "the memory does not suffice; ",
        ),
        (MemoryError("Unable to allocate 9 GiB"), "the memory does not suffice; lower the batch"),
        (RuntimeError("no\n  luck."), "RuntimeError: no luck."),
        (KeyError("w"), "KeyError: 'w'."),
        (ZeroDivisionError(), "ZeroDivisionError."),
    ],
)
def test_a_check_that_fails_costs_neither_the_others_nor_the_results(
    error: Exception, reason: str
) -> None:
    result = [check(seen(Failing(error))) for check in CHECKS]
    assert len({check.name for check in result}) == len(CHECKS)
    assert not any(check.warns or check.value is not None for check in result)
    # The first looks at results alone, and these lack an attack.
    assert all(c.text.startswith(f"Not measured: {reason}") for c in result[1:])
    assert all("\n" not in c.text for c in result)


def test_an_evaluation_ends_with_its_results_when_checks_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For instance, a Jacobian needs more memory than there is."""

    def greedy(*_: Any) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(checks_module, "first_order_distances", greedy)
    monkeypatch.setattr(checks_module, "CHECKS", CHECKS[-2:])
    y = honest(X).numpy().argmax(axis=1)
    signs = evaluate(honest, X, y, THREAT, PGD(steps=2), progress=False)
    assert [result.name for result in signs.results] == ["clean", "PGD-2"]
    other, last = signs.checks
    assert (last.name, last.value, last.warns) == ("first-order distance", None, False)
    assert last.text == "Not measured: the memory does not suffice; lower the batch size."
    assert "Not measured" not in other.text


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted(15, "")])
def test_a_stop_is_no_failing_check(stop: BaseException) -> None:
    with pytest.raises(type(stop)):
        random_output(seen(Failing(stop)))


def test_noise_that_leaves_the_ball_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of a check are checked like those of an attack."""
    monkeypatch.setattr(Threat, "random_start", lambda self, x, seed: 0 * x)
    result = random_noise(dataclasses.replace(seen(honest), x=X))
    assert result.value is None and "RuntimeError: uniform noise: made images at" in result.text


def test_noise_in_batches() -> None:
    """Each batch has its own noise; a single batch has that of all images."""
    one = random_noise(dataclasses.replace(seen(honest), batch_size=60))
    several = random_noise(dataclasses.replace(seen(honest), batch_size=7))
    assert one.value is not None and several.value == pytest.approx(one.value, abs=0.1)
    assert one.text != several.text


def made(listed: ListedAttack, attacked: int, broken: Sequence[int], n: int = 10) -> Result:
    """Return a result on n images, of which these are broken."""
    flags = ~np.isin(np.arange(n), broken)
    return Result(
        listed.name, flags, 0.0, listed, attacked, 9, 0 if listed.attack is BLACK.attack else 9
    )


@pytest.mark.parametrize(
    ("results", "value", "warns"),
    [
        # Each on all images: 4 and 5 fall to the black box alone.
        ([made(WHITE, 10, [0, 1]), made(BLACK, 10, [1, 4, 5])], 0.2, True),
        ([made(BLACK, 10, [1, 4, 5]), made(WHITE, 10, [0, 1])], 0.2, True),
        ([made(WHITE, 10, [0, 1, 4]), made(BLACK, 10, [1, 4])], 0, False),
        ([made(WHITE, 10, [0, 1]), made(BLACK, 10, [4])], 0.1, False),  # one may be chance
        # Common to both are the first five.
        ([made(WHITE, 10, [0]), made(BLACK, 5, [1, 2], 5)], 0.4, True),
        ([made(WHITE, 5, [0], 5), made(BLACK, 10, [1, 7, 8])], 0.2, False),
        # A cascade: the flags hold what fell before, too.
        ([made(WHITE, 10, [0, 1]), made(BLACK, 8, [0, 1])], 0, False),
        ([made(WHITE, 10, [0, 1]), made(BLACK, 8, [0, 1, 4, 5])], 0.2, True),
        ([made(WEAK, 10, [0]), made(WHITE, 9, [0, 1]), made(BLACK, 8, [0, 1, 4])], 0.1, False),
        # All on their own but the last, in a suite with the second.
        (
            [
                made(BLACK, 10, [0, 1, 2]),
                made(dataclasses.replace(WHITE, suite="both"), 10, [3, 4]),
                made(dataclasses.replace(BLACK, suite="both"), 8, [3, 4, 5]),
                Result("both", np.zeros(10, bool), 0.0),
            ],
            0.3,
            True,
        ),
        # No strong white-box attack met what the black box broke.
        ([made(BLACK, 10, [4, 5]), made(WHITE, 8, [0, 4, 5])], None, False),
        ([made(WEAK, 10, [0]), made(BLACK, 10, [4, 5])], None, False),
        ([made(WHITE, 10, [0])], None, False),
    ],
)
def test_black_box_against_white_box(
    results: list[Result], value: float | None, warns: bool
) -> None:
    check = black_box(seen(honest, X[:10], results=[seen(honest, X[:10]).results[0], *results]))
    assert (check.value, check.warns) == (value, warns)
    assert ("Not measured" in check.text) == (value is None)


def test_square_finds_what_gradients_do_not() -> None:
    y = rounded(X).numpy().argmax(axis=1)
    threat = Threat("linf", 0.2)
    attack_list = [WHITE, ListedAttack(Square(queries=100), "Square")]
    result = evaluate(rounded, X, y, threat, attack_list, check=False)
    check = black_box(seen(rounded, threat=threat, results=result.results))
    assert check.warns and "Square breaks" in check.text and WHITE.name in check.text


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [(0, 0, False), (6, 0, False), (7, 0, True), (4, 1, False), (12, 2, True), (0, 9, False)],
)
def test_a_sign_test_tells_chance(gained: int, lost: int, expected: bool) -> None:
    """Six images that all differ one way have 1/64, seven 1/128 < 1 %, and 12 of 14 106 / 2^14."""
    right, other = np.ones(200, bool), np.ones(200, bool)
    other[:gained] = False
    right[100 : 100 + lost] = False
    assert _more(right, other) is expected
