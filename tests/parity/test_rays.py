"""RayS against github.com/uclaml/RayS; the search is deterministic."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.parity.networks import digits_network, images, reference
from tfrobust.attacks import RayS

EXAMPLES = 50


@pytest.mark.parametrize("queries", [200, 1000])
def test_distances_and_queries_are_those_of_the_reference(queries: int) -> None:
    """The nearest misclassified image within the first queries is as far as in the reference.

    The reference does not query the image itself. We do, and count one query more, or only this one
    if the image is misclassified. On another processor, rounding may change one trial at the
    boundary and the search after it, so two examples may differ.
    """
    expected = reference("rays")[f"distance_{queries}"]
    network, (x, y) = digits_network(), (array[:EXAMPLES] for array in images())
    search = tf.function(RayS(queries=queries).nearest, autograph=False)
    result = search(network, tf.constant(x), tf.constant(y, tf.int32), (0.0, 1.0))
    right = np.argmax(network(x), axis=1) == y
    assert right.sum() == 49
    np.testing.assert_array_equal(result.queries, np.where(right, queries + 1, 1))
    error = np.abs(result.distance - expected)
    assert np.sort(error)[-3] < 1e-3
    assert np.mean(result.distance) == pytest.approx(expected.mean(), abs=1e-3)  # the ADBD
