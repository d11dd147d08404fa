"""RayS as github.com/uclaml/RayS: the search is deterministic, so the distances are the same."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.parity.networks import REFERENCES, digits_network, images
from tfrobust.attacks import RayS

EXAMPLES = 50


@pytest.mark.parametrize("queries", [200, 1000])
def test_distances(queries: int) -> None:
    """The nearest misclassified image among the first queries. The reference asks nothing about
    the image itself, so we count one query more, and of no use where that is misclassified. On
    another processor rounding may turn one trial at the boundary, and the search after it: two
    examples may differ."""
    with np.load(REFERENCES / "rays.npz") as saved:
        expected = saved[f"distance_{queries}"]
    network, (x, y) = digits_network(), (array[:EXAMPLES] for array in images())
    search = tf.function(RayS(queries=queries).nearest, autograph=False)
    found = search(network, tf.constant(x), tf.constant(y, tf.int32), (0.0, 1.0))
    right = np.argmax(network(x), axis=1) == y
    assert right.sum() == 49
    np.testing.assert_array_equal(found.queries, np.where(right, queries + 1, 1))
    error = np.abs(found.distance - expected)
    assert np.sort(error)[-3] < 1e-3
    assert np.mean(found.distance) == pytest.approx(expected.mean(), abs=1e-3)  # the ADBD
