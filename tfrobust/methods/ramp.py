"""The growth of eps at the beginning of training."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def ramp(step: Any, warmup_steps: int, ramp_steps: int) -> tf.Tensor:
    """Return the eps of a step divided by the full eps.

    It is 0 for `warmup_steps`, grows linearly over the next `ramp_steps`, and then is 1.
    """
    steps = tf.cast(step - warmup_steps, tf.float32)  # since the ramp began
    if ramp_steps == 0:
        return tf.cast(steps >= 0, tf.float32)
    return tf.clip_by_value(steps / ramp_steps, 0.0, 1.0)
