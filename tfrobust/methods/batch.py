"""What one training step is given, whatever form it came in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfrobust.registry import require

Batch = dict[str, Any]


def as_batch(data: Any, requires: Sequence[str], method: str) -> Batch:
    """A dict, (x, y) or (x, y, sample_weight), x an array or a dict, as a batch.

    Raises ValueError for one without what `method` requires, or that is no images and labels.
    """
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    batch = dict(x) if isinstance(x, Mapping) else {"image": x}
    batch |= {k: v for k, v in (("label", y), ("weight", weight)) if v is not None}
    missing = sorted({"image", "label", *requires} - batch.keys())
    if missing:
        raise ValueError(
            f"batch: {method} expected {', '.join(missing)} beside {', '.join(sorted(batch))}; "
            "tfrobust.data.from_arrays(x, y) makes such batches"
        )
    image, label = batch["image"], tf.convert_to_tensor(batch["label"])
    require(image.dtype.is_floating, "image", "float in [0, 1]", image.dtype.name)
    if label.shape.rank == 2 and label.shape[1] == 1:  # as Keras data sets give them
        label = label[:, 0]
    require(
        label.shape.rank == 1 and not label.dtype.is_bool,
        "label",
        "class numbers [B]",
        f"shape {label.shape}",
    )
    if weight is not None:  # [B, 1] would broadcast the losses to [B, B]
        batch["weight"] = tf.reshape(tf.cast(weight, tf.float32), [-1])
    return batch | {"image": tf.cast(image, tf.float32), "label": tf.cast(label, tf.int32)}
