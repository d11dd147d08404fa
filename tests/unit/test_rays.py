"""RayS against closed forms and searches traced by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfrobust import Threat, noise
from tfrobust.attacks import RayS
from tfrobust.errors import UserError

SEED = noise.seed_for(0, 0, "test")
WIDE = (-10.0, 10.0)
RNG = np.random.default_rng(3)
X = RNG.random((12, 4, 4, 1)).astype("float32")
W = RNG.normal(size=(16, 3)).astype("float32")
Y = ((X - 0.5).reshape(12, -1) @ W).argmax(1)
TOLERANCE = 1e-3 / 4  # of a bisection: 1e-3 in L2 length, 16 pixels


class Recorded:
    """A network that records the images, [pixels], of its queries about one example."""

    def __init__(self, network: Any):
        self.network, self.images = network, []

    def __call__(self, x: Any) -> Any:
        self.images.append(np.ravel(x))
        return self.network(x)


def wrong_where(condition: Callable[[Any], Any]) -> Recorded:
    """Return a network of class 0, and of class 1 where condition(flat images [B, D]) [B] holds."""

    def logits(x: Any) -> Any:
        one = tf.cast(condition(tf.reshape(x, [len(x), -1])), tf.float32)
        return tf.stack([1.0 - one, one], axis=1)

    return Recorded(logits)


def linear(weights: np.ndarray) -> Callable[[Any], Any]:
    """Return a linear network of equal logits at grey, so that [0, 1] has boundaries."""
    return lambda x: tf.reshape(x - 0.5, [-1, 16]) @ weights


def exact_distances(weights: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Linf distances of X to the boundaries, margin / ||w||_1, [12, C - 1]."""
    z = linear(weights)(X).numpy()
    away = np.abs(weights[:, None, :] - weights[:, :, None]).sum(0)
    distance = (z[np.arange(12), y][:, None] - z) / np.where(away == 0, np.inf, away)[y]
    return np.array([np.delete(row, label) for row, label in zip(distance, y, strict=True)])


def graph(function: Callable[..., Any], network: Any, **settings: Any) -> Callable[..., Any]:
    """Return (x, y) -> function(network, x, y, **settings), traced once for any batch size.

    The parts of its result are arrays.
    """
    images, labels = tf.TensorSpec([None, 4, 4, 1]), tf.TensorSpec([None], tf.int64)

    @tf.function(autograph=False, input_signature=[images, labels])
    def traced(x: Any, y: Any) -> Any:
        return function(network, x, y, **settings)

    def call(x: np.ndarray, y: np.ndarray) -> Any:
        result = traced(x, y)
        return type(result)(*(value.numpy() for value in result))

    return call


def nearest(queries: int, network: Any, x: Any, y: Any, box: Any = (0.0, 1.0)) -> Any:
    """Return the nearest misclassified images of a search without a threat."""
    return graph(RayS(queries=queries).nearest, network, box=box)(x, y)


def test_the_search_ends_at_the_boundary_of_two_linear_classes() -> None:
    """Every flip towards sign(w) reduces the distance by at least 2 |w_i| d / ||w||_1.

    The round over single pixels finds every reduction that is larger than the tolerance of a
    bisection. The queries suffice for this round: 1 + 2 + 4 + 8 + 16 trials, each with the query at
    its length and log2(60 * 4 / 1e-3) < 18 bisections. The images are in [0, 10], which makes the
    tolerance small.
    """
    weights = W[:, :2]
    logits = lambda x: linear(weights)(x / 10.0)  # noqa: E731
    y = logits(X * 10.0).numpy().argmax(1)
    result = nearest(31 * 19, logits, X * 10.0, y, (-30.0, 30.0))
    exact, w = 10.0 * exact_distances(weights, y)[:, 0], weights[:, 1] - weights[:, 0]
    assert (result.distance >= exact - 1e-5).all()
    np.testing.assert_allclose(result.distance, exact, atol=8 * TOLERANCE)
    moved = (result.images - X * 10.0).reshape(12, 16) * np.where(y == 0, 1, -1)[:, None]
    clear = 2 * np.abs(w) * exact[:, None] / np.abs(w).sum() > TOLERANCE
    assert clear.mean() > 0.8 and (np.sign(moved) == np.sign(w))[clear].all()


def test_the_search_ends_at_a_boundary_of_three_linear_classes() -> None:
    """A sign vector that no flip improves is that of a rival, mostly of the nearer one."""
    result, exact = nearest(1500, linear(W), X, Y, WIDE), exact_distances(W, Y)
    assert (np.abs(result.distance[:, None] - exact).min(1) < 8 * TOLERANCE).all()
    assert (result.distance < exact.min(1) + 8 * TOLERANCE).mean() > 0.5


def test_the_flipped_blocks_halve_level_by_level() -> None:
    """An image that is never misclassified is queried at corners with one block at 0.

    Its five pixels make blocks of 5, 3, 2 and 1 = ceil(5 / 2^k) pixels, where the last block of a
    level may be shorter. After that they stay single pixels.
    """
    network = wrong_where(lambda z: z[:, 0] > 2.0)
    result = RayS(queries=14).nearest(network, np.full([1, 1, 5, 1], 0.5, np.float32), [0])
    blocks = ["00000", "00011", "11100", "00111", "11001", "11110"]
    blocks += ["01111", "10111", "11011", "11101", "11110", "01111", "10111", "11011"]
    queries = ["".join(str(int(pixel)) for pixel in image) for image in network.images[1:]]
    assert queries == blocks
    assert np.isinf(result.distance).all() and result.queries.numpy().tolist() == [15]
    np.testing.assert_array_equal(result.images, np.full([1, 1, 5, 1], 0.5))


def test_the_queries_of_a_bisection_by_hand() -> None:
    """One pixel at 0.5 is misclassified below 0.3.

    From the corner 0 the lengths are 1/2, 1/4, 1/8, ... until the gap 1 / 2^10 is below 1e-3. The
    queries that follow, of an upward pixel at the final length, always fail.
    """
    network = wrong_where(lambda z: z[:, 0] < 0.3)
    result = RayS(queries=13).nearest(network, np.full([1, 1, 1, 1], 0.5, np.float32), [0])
    queries = np.concatenate(network.images)
    expected = [0.5, 0.0, 0.0, 0.25, 0.375, 0.3125, 0.28125, 0.296875, 0.3046875]
    np.testing.assert_array_equal(queries[:9], expected)
    length = float(result.distance[0])
    assert 0.2 < length < 0.2 + 2**-10 and (length * 2**10).is_integer()
    np.testing.assert_allclose(queries[12:], 0.5 + length)
    assert len(queries) == 14


def test_a_flip_that_does_not_reduce_the_distance_is_undone() -> None:
    """Of two pixels at 0.5 only the first matters: below 0.3 the image is misclassified.

    To flip the second pixel leaves the distance equal, so it keeps its first sign and ends below
    0.5 too.
    """
    network = wrong_where(lambda z: z[:, 0] < 0.3)
    result = RayS(queries=100).nearest(network, np.full([1, 1, 2, 1], 0.5, np.float32), [0])
    flat = np.ravel(result.images)
    np.testing.assert_allclose(flat, 0.5 - result.distance[0], rtol=1e-6)
    assert 0.2 < result.distance[0] < 0.2 + 1e-3


def test_the_search_stops_once_an_image_within_eps_is_misclassified() -> None:
    """The pixel is queried at 0.5, at 0 twice, and at 0.25, which is within eps = 0.26."""
    network = wrong_where(lambda z: z[:, 0] < 0.3)
    x = np.full([1, 1, 1, 1], 0.5, np.float32)
    outcome = RayS().run(network, x, [0], threat=Threat("linf", 0.26), seed=SEED)
    assert outcome.success.numpy().all() and outcome.queries.numpy().tolist() == [4]
    assert outcome.images.numpy().item() == 0.25
    assert outcome.gradients.numpy().tolist() == [0]


def test_the_last_query_is_at_the_edge_of_the_ball() -> None:
    """The nearest image of the search, just below 0.3, is 0.2 away, and eps is 0.1.

    No bisection queries the misclassified window around 0.4, which lies at the edge.
    """
    x, threat = np.full([1, 1, 1, 1], 0.5, np.float32), Threat("linf", 0.1)
    for lowest, success in ((0.39, True), (0.5, False)):
        network = wrong_where(
            lambda z, low=lowest: (z[:, 0] < 0.3) | ((z[:, 0] > low) & (z[:, 0] < 0.41))
        )
        outcome = RayS(queries=20).run(network, x, [0], threat=threat, seed=SEED)
        assert outcome.images.numpy().item() == pytest.approx(0.4)
        assert network.images[-1].item() == outcome.images.numpy().item()
        assert outcome.success.numpy().tolist() == [success]
        assert outcome.queries.numpy().tolist() == [21]


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_the_search_in_another_box_is_shifted_and_scaled(box: tuple[float, float]) -> None:
    """The tolerance of a bisection, 1e-3, is not scaled."""
    low, width = box[0], box[1] - box[0]
    x = (X * width + low).astype("float32")
    logits = lambda z: linear(W)((z - low) / width)  # noqa: E731
    result, plain = nearest(400, logits, x, Y, box), nearest(400, linear(W), X, Y)
    assert result.images.min() >= box[0] and result.images.max() <= box[1]
    np.testing.assert_allclose(np.median(result.distance / width / plain.distance), 1.0, atol=0.1)
    assert (linear(W)((result.images - low) / width).numpy().argmax(1) != Y).all()
    for eps in (0.0, 0.02 * width):
        threat = Threat("linf", eps, box)
        outcome = graph(RayS(queries=100).run, logits, threat=threat, seed=SEED)(x, Y)
        assert np.abs(outcome.images - x).max() <= eps + 1e-6 * width
        predicted = np.argmax(logits(outcome.images), axis=1)
        np.testing.assert_array_equal(predicted != Y, outcome.success)


def test_an_image_alone_ends_as_it_does_in_the_batch() -> None:
    """It ends within eps or at its last query."""
    y = np.where(np.arange(12) == 3, (Y + 1) % 3, Y)  # the fourth image is misclassified
    threat = Threat("linf", float(np.median(nearest(100, linear(W), X, y).distance)))
    attack = graph(RayS(queries=100).run, linear(W), threat=threat, seed=SEED)
    joint = attack(X, y)
    assert 2 < joint.success.sum() < 10
    for i in range(12):
        single = attack(X[i : i + 1], y[i : i + 1])
        np.testing.assert_array_equal(single.images[0], joint.images[i])
        assert single.queries[0] == joint.queries[i]
    assert joint.queries[3] == 1 and nearest(9, linear(W), X, y).distance[3] == 0.0
    np.testing.assert_array_equal(joint.images[3], X[3])


def test_more_queries_never_end_further_away() -> None:
    distances = [nearest(n, linear(W), X, Y).distance for n in (5, 50, 500)]
    assert (distances[0] >= distances[1]).all() and (distances[1] >= distances[2]).all()
    assert distances[2].mean() < 0.8 * distances[1].mean() < distances[0].mean()


def test_the_search_uses_nothing_but_the_predicted_class() -> None:
    plain = nearest(100, linear(W), X, Y)
    same_classes = nearest(100, lambda x: tf.sinh(3.0 * linear(W)(x)) - 7.0, X, Y)
    np.testing.assert_array_equal(plain.images, same_classes.images)


def test_nan_logits_count_as_misclassified() -> None:
    nan = lambda x: tf.where(tf.reduce_min(x) < 0.0, np.nan, linear(W)(x))  # noqa: E731
    outcome = RayS(queries=30).run(nan, X, Y, threat=Threat("linf", 2.0, WIDE), seed=SEED)
    assert outcome.success.numpy().all() and np.isfinite(outcome.images).all()


def test_no_queries_and_another_norm_are_refused() -> None:
    with pytest.raises(UserError, match=r"^queries: expected int >= 1, received 0$"):
        RayS(queries=0)
    with pytest.raises(UserError, match=r"^threat.norm: expected linf for RayS, received 'l2'$"):
        RayS()(linear(W), X, np.zeros(12, int), threat=Threat("l2", 1.0), seed=SEED)


def test_title_and_settings_hold_the_number_of_queries() -> None:
    assert RayS().title == "RayS-10000"
    assert RayS(queries=50).settings(Threat("linf", 0.1)) == {"name": "rays", "queries": 50}
