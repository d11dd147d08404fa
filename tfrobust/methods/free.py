"""Free adversarial training (Shafahi et al., 2019, arXiv:1904.12843)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrobust.errors import require, require_at_least
from tfrobust.gate import demand
from tfrobust.methods.adv import Adv
from tfrobust.methods.base import Batch
from tfrobust.methods.table import Table
from tfrobust.serialization import serializable


@serializable
class Free(Adv):
    """CE(f(x + delta), y), `replays` times on each batch.

    One backward pass gives the gradients in the weights and in the image, and delta moves by eps in
    the steepest direction of the second. delta has a row for each place in a batch and is carried
    from batch to batch. x + delta stays in the box, and delta in the ball. Each replay is a step of
    the optimizer, so the papers divide their number of epochs by `replays`.

    Because one pass gives both gradients, delta ascends the loss with its label smoothing and mixed
    labels, which attacks of other methods do not see.

    Where x + delta leaves the box, delta moves by the gradient at the wall. In the authors' torch
    code this gradient is 0, because it passes through the clipping.

    A `clean_weight` other than 0 is refused.
    """

    default_attack = None
    one_threat = True
    differentiate = ("adv",)
    needs = ("batch_size",)

    def __init__(self, network: keras.Model, *, replays: int = 8, **kwargs: Any):
        self.replays = self.updates_per_batch = replays
        super().__init__(network, **kwargs)
        require_at_least(1, replays=replays)
        require(self.clean_weight == 0, "clean_weight", "0", self.clean_weight)
        assert self.batch_size is not None  # of `needs`
        shape: Any = self.signature.image_shape
        expected = "one with images of one size (Free keeps a delta for each place in a batch)"
        hint = "; x = keras.Input((H, W, C)); network = keras.Model(x, network(x)) is one"
        require(None not in shape, "network", expected + hint, shape)
        self.delta = Table(self.batch_size, shape)

    def perturb(self, batch: Batch) -> Batch:
        x, threat = batch["image"], self.threat_now
        delta = self.delta.read(self._places(batch))
        return {"adv": threat.project(x + delta, x)}

    def after_update(self, batch: Batch) -> None:
        threat, places = self.threat_now, self._places(batch)
        delta = self.delta.read(places) + threat.eps * threat.steepest(batch["d_adv"])
        self.delta.write(places, threat.shortened(delta))

    def train_step(self, data: Any) -> dict[str, Any]:
        batch, rows = self.as_batch(data), self.delta.table.shape[0]
        size = tf.shape(batch["label"])[0]
        most = -(-rows // tf.distribute.get_strategy().num_replicas_in_sync)
        line = f"batch: expected up to {most} examples (batch_size is {rows}), received"
        with tf.control_dependencies(demand(size <= most, line, size)):
            return super().train_step(batch | {"image": tf.identity(batch["image"])})

    def update(self, batch: Batch) -> dict[str, Any]:
        for _ in range(self.replays):
            logs = super().update(batch)
        return logs

    def _places(self, batch: Batch) -> tf.Tensor:
        """Return the rows of this replica in a full batch, [B].

        Replicas may have different numbers of examples in the last batch of an epoch.
        """
        context = tf.distribute.get_replica_context()
        first = context.replica_id_in_sync_group * self.batch_size // context.num_replicas_in_sync
        return first + tf.range(tf.shape(batch["label"])[0])
