"""State with one row per training example."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfrobust import norms


class Table(keras.layers.Layer):
    """Numbers [rows, ...] that are saved and restored with the model's weights.

    They are exact on any number of replicas: each writes the rows of its examples, and the changes
    are summed. A row that occurs several times in a global batch gets the mean of its values.
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
        return tf.gather(tf.convert_to_tensor(self.table), row)

    def write(self, row: tf.Tensor, values: tf.Tensor) -> None:
        """Set rows [B] to values [B, ...]."""
        indices, rows = tf.cast(row, tf.int32)[:, None], self.table.shape[0]
        counts = tf.scatter_nd(indices, tf.ones(tf.shape(row)), [rows])
        counts = tf.distribute.get_replica_context().all_reduce("SUM", counts)
        share = 1.0 / tf.gather(counts, row)
        change = (values - self.read(row)) * norms.rows(share, values)
        self.table.value.assign_add(tf.scatter_nd(indices, change, self.table.shape))
