"""Checks of the inputs of an evaluation, at the cost of a few forward passes.

A wrong scale, a softmax at the end or the labels of another data set would raise no error
elsewhere, but make every score meaningless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.errors import require, require_at_least
from tfrobust.gate.class_order import check_label_order
from tfrobust.gate.images import check_images, check_threat
from tfrobust.gate.labels import check_labels
from tfrobust.gate.networks import LogitsFn, check_network, inference, outputs
from tfrobust.gate.sample import representative
from tfrobust.gate.scaling import check_scaling
from tfrobust.threat import Threat, threats_of


def check_inputs(
    logits_fn: LogitsFn,
    x: Any,
    y: Any,
    threat: Threat | Sequence[Threat],
    batch_size: int = 250,
    layout: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return images, float32 [N, H, W, C], and labels, int32 [N], that are fit for an evaluation.

    The checks cost a forward pass of one image and one of up to 500 images, and three more of the
    latter for a network that misclassifies most of them. Of images that are sorted by class, 500
    others are needed too.

    Args:
        logits_fn: As in `check_network`.
        x: Images, as in `check_images`.
        y: Labels, as in `check_labels`.
        threat: A threat with eps > 0 in the units of the images, or several.
        batch_size: Number of images in one forward pass.
        layout: As in `check_images`.

    Raises:
        UserError: If any of them is not fit.
    """
    require_at_least(1, batch_size=batch_size)
    threats = threats_of(threat)
    for each in threats:
        positive = not tf.is_tensor(each.eps) and each.eps > 0
        require(positive, "threat.eps", "a number > 0", each.eps)
    box = threats[0].box
    images = check_images(x, "x", box, layout=layout)
    for each in threats:
        check_threat(each, images.shape[1:])
    logits = check_network(logits_fn, images, box, batch_size)
    labels = check_labels(y, len(images), logits.shape[1])
    few = representative(labels, len(logits))
    if not isinstance(few, slice):  # they are not the first, whose logits are known
        logits = outputs(inference(logits_fn), images[few], batch_size)
    check_scaling(logits_fn, images[few], labels[few], logits, box, batch_size)
    check_label_order(logits, labels[few])
    return images, labels
