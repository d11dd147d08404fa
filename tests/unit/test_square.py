"""Square Attack against closed forms.

A linear network with w_j = W[:, j] - W[:, label] and margins m_j = z_label - z_j misclassifies no
image within eps* = min_j m_j / ||w_j||_q of x, where q is the dual norm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import Threat, losses, noise
from tfrobust.attacks import Square
from tfrobust.attacks.square_moves import Pyramids, Squares, pattern

SEED = noise.seed_for(0, 0, "test")
WIDE = (-10.0, 10.0)
SHAPE = (8, 8, 1)
RNG = np.random.default_rng(3)
W = RNG.normal(size=(64, 3)).astype("float32")
X = RNG.random((20, *SHAPE)).astype("float32")
LOGITS = X.reshape(20, -1) @ W
Y = LOGITS.argmax(1).astype("int32")
NORMS = ["linf", "l2", "l1"]


def least_eps(norm: str) -> np.ndarray:
    """Return eps* of each example, [20]."""
    order = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    sizes = np.linalg.norm(W[:, None, :] - W[:, :, None], order, axis=0)[Y]  # [20, rival]
    margins = LOGITS[np.arange(20), Y][:, None] - LOGITS
    is_label = np.eye(3, dtype=bool)[Y]
    return np.where(is_label, np.inf, margins / np.where(is_label, 1.0, sizes)).min(axis=1)


def network(x: Any) -> Any:
    """Return the logits, [B, 3]."""
    return tf.reshape(x, [-1, 64]) @ W


def run(
    attack: Any, threat: Threat, x: Any = X, y: Any = Y, logits: Any = network, graph: bool = False
) -> Any:
    """Return the outcome, its parts as arrays.

    Eager execution is faster for few queries. The graph is traced for any batch size.
    """

    def craft(images: Any) -> Any:
        return attack.run(logits, images, y, threat=threat, seed=SEED)

    if graph:
        images = tf.TensorSpec([None, *x.shape[1:]])
        craft = tf.function(craft, autograph=False, input_signature=[images])
    outcome = craft(tf.constant(x))
    return type(outcome)(*(value.numpy() for value in outcome))


def margin(images: Any, y: Any = Y) -> np.ndarray:
    """Return the margin loss, which is positive where an image is misclassified, [B]."""
    return losses.margin(network(images), tf.constant(y)).numpy()


@pytest.mark.parametrize("norm", NORMS)
def test_all_examples_are_broken_above_their_least_eps_and_none_below(norm: str) -> None:
    """Squares are slow on the white noise W, so the search has 200 windows at 4 eps*."""
    least = least_eps(norm)[:10]
    threat = Threat(norm, 4 * least.max(), WIDE)
    above = run(Square(queries=200), threat, X[:10], Y[:10], graph=True)
    assert above.success.all() and (margin(above.images, Y[:10]) > 0).all()
    below = run(Square(queries=30), Threat(norm, 0.99 * least.min(), WIDE))
    assert not below.success[:10].any() and (margin(below.images)[:10] < 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_more_queries_never_break_fewer_examples_or_lower_the_loss(norm: str) -> None:
    """The first windows do not depend on how many follow."""
    threat = Threat(norm, 1.2 * float(np.median(least_eps(norm))), WIDE)
    runs = [run(Square(queries=n), threat) for n in (1, 5, 30)]
    for few, more in zip(runs, runs[1:], strict=False):
        assert (more.success >= few.success).all()
        np.testing.assert_array_equal(more.images[few.success], few.images[few.success])
        assert (margin(more.images) >= margin(few.images) - 1e-5)[~more.success].all()
    assert runs[2].success.sum() > runs[0].success.sum()
    assert (margin(runs[0].images) >= margin(X) - 1e-5).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_search_of_an_example_does_not_depend_on_the_others(norm: str) -> None:
    """The noise depends on the place in the batch, not on which other examples are broken."""
    threat = Threat(norm, 1.2 * float(np.median(least_eps(norm))), WIDE)
    joint = run(Square(queries=20), threat)
    assert 0 < joint.success.sum() < 20
    labels = np.where(np.arange(20) % 2, Y, (Y + 1) % 3)  # half of the images are misclassified
    half = run(Square(queries=20), threat, y=labels)
    np.testing.assert_allclose(half.images[1::2], joint.images[1::2], atol=1e-5)
    np.testing.assert_array_equal(half.queries[1::2], joint.queries[1::2])
    assert (half.queries[::2] == 1).all() and half.success[::2].all()
    np.testing.assert_array_equal(half.images[::2], X[::2])


def test_a_graph_agrees_with_eager_mode() -> None:
    threat = Threat("l2", 1.2 * float(np.median(least_eps("l2"))), WIDE)
    eager, graph = (run(Square(queries=9), threat, graph=g) for g in (False, True))
    np.testing.assert_allclose(eager.images, graph.images, atol=1e-5)
    np.testing.assert_array_equal(eager.queries, graph.queries)


def test_every_example_has_its_own_noise() -> None:
    """Twenty copies of an image give twenty results at an eps that breaks none."""
    same, labels = np.repeat(X[:1], 20, axis=0), np.repeat(Y[:1], 20)
    outcome = run(Square(queries=20, p_init=0.05), Threat("linf", 1e-3), same, labels)
    assert not outcome.success.any() and len(np.unique(outcome.images, axis=0)) == 20


@pytest.mark.parametrize("norm", NORMS)
def test_queries_are_the_passes_through_the_network(norm: str) -> None:
    """The image takes one, each restart one for its start and one for each of four windows."""
    calls = []

    def constant(x: Any) -> Any:
        calls.append(len(x))
        return tf.stack([tf.ones(len(x)), tf.zeros(len(x))], axis=1)

    attack, threat = Square(queries=4, restarts=3), Threat(norm, 0.1)
    outcome = attack.run(constant, X[:2], [0, 0], threat=threat, seed=SEED)
    assert calls == [2] * (1 + 3 * (1 + 4))
    assert (outcome.queries.numpy() == 16).all() and not outcome.gradients.numpy().any()
    np.testing.assert_array_equal(outcome.images, X[:2])


def test_a_restart_begins_anew_and_the_best_image_of_all_is_returned() -> None:
    """The last row of a start stays, as no window of 7 x 7 pixels reaches it."""
    seen: list[np.ndarray] = []

    def recorded(x: Any) -> Any:
        seen.append(x.numpy())
        return network(x)

    outcome = run(Square(queries=3, restarts=4), Threat("linf", 1e-3, WIDE), logits=recorded)
    assert not outcome.success.any() and len(seen) == 1 + 4 * 4
    best = np.stack([margin(images) for images in seen]).argmax(axis=0)
    assert len({*best}) > 2
    np.testing.assert_array_equal(outcome.images, np.stack(seen)[best, np.arange(20)])
    restarts = [seen[first : first + 4] for first in range(1, 17, 4)]
    for start, *windows in restarts:
        np.testing.assert_allclose(np.abs(start - X), 1e-3, rtol=1e-3)
        for images in windows:
            np.testing.assert_allclose(images[:, -1], start[:, -1], atol=1e-6)
    starts = {images[0].tobytes() for images in restarts}
    assert len(starts) == 4


def test_a_window_that_does_not_raise_the_loss_is_not_kept() -> None:
    """So each image differs from the start in one window of 3 x 3 pixels."""
    seen: list[np.ndarray] = []

    def constant(x: Any) -> Any:
        seen.append(x.numpy())
        return tf.stack([tf.ones(len(x)), tf.zeros(len(x))], axis=1)

    run(Square(queries=6, p_init=0.1), Threat("linf", 0.1), y=np.zeros(20, int), logits=constant)
    _, start, *windows = seen
    assert len(windows) == 6
    for images in windows:
        assert 0 < (np.abs(images - start) > 1e-6).sum(axis=(1, 2, 3)).max() <= 9


def test_an_example_stops_at_its_first_success() -> None:
    """Two images stop at their start, and the third, which is misclassified itself, before."""

    def wrong_if_moved(x: Any) -> Any:
        moved = tf.reduce_max(tf.abs(x - 0.5), axis=(1, 2, 3)) > 0
        return tf.stack([tf.where(moved, -x[:, 0, 0, 0], 1.0), tf.zeros(tf.shape(x)[0])], axis=1)

    x = np.full([3, *SHAPE], 0.5, np.float32)
    outcome = run(Square(queries=5), Threat("linf", 0.1), x, np.array([0, 0, 1]), wrong_if_moved)
    assert outcome.queries.tolist() == [2, 2, 1] and outcome.success.all()
    np.testing.assert_array_equal(outcome.images[2], x[2])


def test_nan_logits_count_as_misclassified() -> None:
    nan = lambda x: network(x) * tf.where(tf.reduce_min(x) < 0.0, np.nan, 1.0)  # noqa: E731
    outcome = run(Square(queries=2), Threat("linf", 1.0, WIDE), logits=nan)
    assert outcome.success.all() and np.isfinite(outcome.images).all()


@pytest.mark.parametrize("norm", NORMS)
def test_more_restarts_never_break_fewer_examples_or_lower_the_loss(norm: str) -> None:
    threat = Threat(norm, 1.1 * float(np.median(least_eps(norm))), WIDE)
    one, four = (run(Square(queries=10, restarts=n), threat) for n in (1, 4))
    np.testing.assert_array_equal(four.images[one.success], one.images[one.success])
    assert (four.success >= one.success).all()
    before, after = margin(one.images), margin(four.images)
    assert (after >= before - 1e-5)[~four.success].all() and (after > before + 1e-3).any()


@pytest.mark.parametrize(("channels", "box"), [(1, (0.0, 1.0)), (3, (-1.0, 1.0))])
@pytest.mark.parametrize("norm", NORMS)
def test_images_stay_in_the_ball_and_the_box(norm: str, channels: int, box: Any) -> None:
    """Examples that are not broken end far from x, and two begin in corners of the box."""
    x = np.random.default_rng(1).uniform(*box, [6, 7, 9, channels]).astype("float32")
    x[0], x[1] = box
    weights = np.random.default_rng(2).normal(size=x[0].size).astype("float32")
    score = lambda z: tf.linalg.matvec(tf.reshape(z, [-1, x[0].size]), weights)  # noqa: E731
    logits = lambda z: tf.stack([tf.zeros(tf.shape(z)[0]), score(z) - 1e3], axis=1)  # noqa: E731
    threat, zeros = Threat(norm, 0.5, box), np.zeros(6, np.int32)
    outcome = run(Square(queries=20), threat, x, zeros, logits)
    assert not outcome.success.any()
    assert outcome.images.min() >= box[0] and outcome.images.max() <= box[1]
    distance = threat.distance(outcome.images.astype("float64"), x).numpy()
    assert (distance <= 0.5 + 1e-6).all() and (distance >= 0.2).all()
    at_zero = run(Square(queries=5), threat.at(0.0), x, zeros, logits)
    np.testing.assert_array_equal(at_zero.images, x)


def test_the_linf_start_is_vertical_stripes() -> None:
    x = np.full([50, 4, 5, 2], 0.5, np.float32)
    delta = Squares(Threat("linf", 0.25), [1]).start(tf.constant(x), SEED).numpy() - x
    assert (np.abs(delta) == 0.25).all()
    assert (delta == delta[:, :1]).all()
    assert abs((delta[:, 0] > 0).mean() - 0.5) < 0.1  # five standard errors of 500 signs


def test_the_place_of_a_window_comes_from_uniform_numbers() -> None:
    """u in [-1, 1) is one of 5 - 2 places: -1 is the first row or column, 0.99 the third."""
    x, u = np.full([2, 5, 5, 2], 0.5, np.float32), np.full([2, 7], -1.0, np.float32)
    u[1, :2], u[1, 5:] = (0.0, 0.99), (-1.0, 1.0)  # row int(1.5), column int(2.98)
    x_adv = x + np.where(np.arange(5) % 2, 0.125, -0.125).astype("float32")[:, None]
    moved = Squares(Threat("linf", 0.125), [3, 2]).propose(tf.constant(1), x, x_adv, u)
    expected = x_adv.copy()
    expected[0, 0:2, 0:2] = 0.375
    expected[1, 1:3, 2:4] = (0.375, 0.625)
    np.testing.assert_array_equal(moved, expected)


def test_the_pattern_of_side_3_by_hand() -> None:
    """The halves of 1 x 3 and 2 x 3 pixels have the norms sqrt(27)/4 and sqrt(30)/4.

    A square of 1 x 1 pixel and a quarter of one of 3 x 3 give (1/4, 5/4, 1/4) in the upper half. In
    the lower half 5/4 is in the middle of the second row, and 1/4 elsewhere.
    """
    up, down = np.array([[1, 5, 1]]) / np.sqrt(27), np.array([[1, 1, 1], [1, 5, 1]]) / np.sqrt(30)
    np.testing.assert_allclose(pattern(3, "l2"), np.concatenate([up, -down]) / np.sqrt(2), 1e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_moves_on_the_edge_of_the_ball(norm: str) -> None:
    """Far from the walls of the box start and moves have norm eps.

    Outside of both windows a move only scales the noise. It empties the second window, and the
    first one gets the norm that both had.
    """
    x = np.zeros([4, 9, 9, 1], np.float32)
    threat = Threat(norm, 2.0, WIDE)
    moves = Pyramids(threat, [3, 5])
    start = moves.start(tf.constant(x), SEED).numpy()
    u = np.full([4, 6], -1.0, np.float32)
    u[:, 2:4] = 0.99  # the second window: rows and columns 5 to 7, int(0.995 * (9 - 3))
    u[2:, 4], u[1::2, 5] = 1.0, 1.0
    moved = moves.propose(tf.constant(0), tf.constant(x), start, u).numpy()
    for images in (start, moved):
        np.testing.assert_allclose(threat.distance(images, x), 2.0, rtol=1e-5)
    assert not moved[:, 5:8, 5:8].any()
    outside = np.ones([9, 9, 1], bool)
    outside[:3, :3] = outside[5:8, 5:8] = False
    np.testing.assert_allclose(moved[:, outside], start[:, outside], rtol=1e-4, atol=1e-6)
    size = lambda d: np.linalg.norm(d.reshape(4, -1), 2 if norm == "l2" else 1, axis=1)  # noqa: E731
    expected = size(np.where(outside, 0.0, start))
    np.testing.assert_allclose(size(moved[:, :3, :3]), expected, rtol=1e-4)
    old, upright = start[:, :3, :3, 0], pattern(3, norm)
    old = old / size(old)[:, None, None]
    for row, (sign, turned) in enumerate([(-1, 0), (1, 0), (-1, 1), (1, 1)]):
        new = old[row] + sign * (upright.T if turned else upright)
        scale = expected[row] / size(np.repeat(new[None], 4, 0))[0]
        np.testing.assert_allclose(moved[row, :3, :3, 0], scale * new, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_free_norm_is_shared_by_the_channels(norm: str) -> None:
    """eps is 2, of which the second window has a = 1, in the first of two channels.

    L2: each channel gets half of the free 2^2 - 1, and the first the square of a too. L1: each gets
    2 - 1, the first also 2 a, and the projection then cuts the sum to 2.
    """
    x, start = np.zeros([1, 9, 9, 2], np.float32), np.zeros([1, 9, 9, 2], np.float32)
    start[0, 6, 6, 0] = 1.0
    u = np.array([[-1, -1, 0.99, 0.99, -1, 1, 1]], np.float32)
    threat = Threat(norm, 2.0, WIDE)
    moved = Pyramids(threat, [3]).propose(tf.constant(0), tf.constant(x), start, u)
    expected = np.zeros_like(x)
    sizes = np.sqrt([2.5, 1.5]) if norm == "l2" else np.array([3.0, 1.0])
    expected[0, :3, :3] = pattern(3, norm)[..., None] * sizes
    np.testing.assert_allclose(moved, threat.project(expected, tf.constant(x)), atol=1e-5)


def test_the_sides_of_windows_follow_the_schedule() -> None:
    """For 28 x 28 pixels they are sqrt(627.2 / 2^k): 25.04, 17.7, 12.5, 8.9, 6.3, ..."""
    attack, first = Square(), (0, 11, 51, 201, 501, 1001, 2001, 4001)
    assert [attack.share(i) for i in (10, 11, 4999)] == [0.8, 0.4, 0.8 / 128]
    sides = {n: [attack.side(i, 28, 28, n) for i in first] for n in NORMS}
    assert sides["linf"] == [25, 18, 13, 9, 6, 4, 3, 2]
    assert sides["l2"] == sides["l1"] == [25, 19, 13, 9, 7, 5, 3, 3]
    assert attack.side(4999, 8, 8, "linf") == 1  # sqrt(0.4) rounds to 1
    assert attack.side(0, 3, 50, "linf") == attack.side(0, 3, 50, "l2") == 3
    assert attack.side(0, 4, 4, "l2") == 4  # an odd 5 would not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "queries: expected int >= 1, received 0"),
        ({"restarts": 0}, "restarts: expected int >= 1, received 0"),
        ({"p_init": 0.0}, "p_init: expected a number in (0, 1], received 0.0"),
        ({"p_init": 1.5}, "p_init: expected a number in (0, 1], received 1.5"),
    ],
)
def test_a_mistaken_argument_is_named(options: dict[str, Any], message: str) -> None:
    assert error_line(lambda: Square(**options)) == message


def test_title_and_settings_hold_queries_restarts_and_p_init() -> None:
    assert Square().title == "Square-5000"
    assert Square(queries=100, restarts=2, p_init=0.3).title == "Square-100x2 p 0.3"
    expected = {"name": "square", "queries": 5000, "p_init": 0.8, "restarts": 1}
    assert Square().settings(Threat("linf", 0.1)) == expected
