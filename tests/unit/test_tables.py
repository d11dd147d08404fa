"""Tables with a row for each training example, and the index that names the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tests.unit.test_robust_model import THREAT, NeedsIndex, W, X, Y
from tfrobust.methods.table import Table


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_an_index_may_be_a_column_and_of_any_integer(
    linear: Callable[..., Any], dtype: str
) -> None:
    """A column would broadcast the radii of the examples to [B, B], as a column of weights."""
    model = NeedsIndex(linear(W), threat=THREAT, num_examples=60_000)
    index = np.arange(8, dtype=dtype)
    batch = model.as_batch({"image": X, "label": Y, "index": index[:, None]}, model.requires)
    assert batch["index"].dtype == tf.int64
    np.testing.assert_array_equal(batch["index"], index)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (np.arange(8.0), "index: expected whole numbers [B], one for each example, received 'floa"),
        (np.zeros((8, 2), int), "one for each example, received 'int64 of shape (8, 2)'"),
        (np.arange(1, 9), "index: expected rows 0 to 7 (num_examples is 8), received 1 to 8"),
    ],
)
def test_an_index_that_names_no_rows_is_refused(
    linear: Callable[..., Any], index: np.ndarray, message: str
) -> None:
    model = NeedsIndex(linear(W), threat=THREAT, num_examples=8)
    data = {"image": X, "label": Y, "index": index}
    assert message in error_line(lambda: model.as_batch(data, model.requires))


@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_a_row_that_occurs_twice_in_a_batch_gets_the_mean(shape: tuple[int, ...]) -> None:
    """Such batches come from data that are shuffled, repeated and then batched."""
    table = Table(4, shape, fill=1.0)
    values, expected = (np.multiply.outer(v, np.ones(shape)) for v in ([2, 4, 7], [1, 3, 7, 1]))
    table.write(tf.constant([1, 1, 2]), tf.constant(values, tf.float32))
    table.write(tf.constant([-1]), 9 * tf.ones((1, *shape)))  # an example without a row
    np.testing.assert_allclose(table.read(tf.range(4)), expected)
