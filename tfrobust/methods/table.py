"""State with one row per training example."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfrobust import norms


class Table(keras.layers.Layer):
    """Numbers [rows, ...] that are saved and restored with the model's weights.

    They are exact on any number of replicas: each writes the rows of its examples, and the changes
    are summed. A row that occurs several times in a global batch gets the mean of its values. The
    row -1 stands for no row: nothing is written to it.
    """

    def __init__(self, rows: int, shape: tuple[int, ...] = (), fill: float = 0.0):
        super().__init__(trainable=False, dtype="float32")
        self.table = self.add_weight(
            shape=(rows, *shape),
            initializer=keras.initializers.Constant(fill),
            trainable=False,
            aggregation="sum",
            name="table",
        )
        self.built = True

    def read(self, row: tf.Tensor) -> tf.Tensor:
        """Return the numbers [B, ...] in rows [B]."""
        return tf.gather(tf.convert_to_tensor(self.table), tf.maximum(row, 0))

    def write(self, row: tf.Tensor, values: tf.Tensor) -> None:
        """Set rows [B] to values [B, ...]."""
        counted, row = tf.cast(row >= 0, tf.float32), tf.maximum(row, 0)
        indices, rows = tf.cast(row, tf.int32)[:, None], self.table.shape[0]
        counts = tf.scatter_nd(indices, counted, [rows])
        counts = tf.distribute.get_replica_context().all_reduce("SUM", counts)
        share = tf.math.divide_no_nan(counted, tf.gather(counts, row))
        change = (values - self.read(row)) * norms.rows(share, values)
        self.table.value.assign_add(tf.scatter_nd(indices, change, self.table.shape))
