"""What an evaluation is given, checked at the cost of a few passes: a wrong scale, a softmax or
labels of another data set would make any score, and none of them an error."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfrobust.errors import require
from tfrobust.gate.images import check_images, check_threat
from tfrobust.gate.labels import check_labels
from tfrobust.gate.networks import LogitsFn, check_network, check_scaling
from tfrobust.threat import Threat


def check_inputs(
    logits_fn: LogitsFn,
    x: Any,
    y: Any,
    threat: Threat,
    batch_size: int = 250,
    layout: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return images float32 [N, H, W, C] and labels int32 [N] that can be evaluated.

    Costs one pass of a single image and one of up to 500 images; three more of these where the
    network is wrong on most of them.

    Args:
        logits_fn, x, y, layout: as of `check_network`, `check_images` and `check_labels`.
        threat: of an eps > 0, in the units of the images.

    Raises:
        UserError: one line, for what is not fit.
    """
    require(batch_size >= 1, "batch_size", "int >= 1", batch_size)
    require(threat.eps > 0, "threat.eps", "a number > 0", threat.eps)
    images = check_images(x, "x", threat.box, layout=layout)
    check_threat(threat, images.shape[1:])
    logits = check_network(logits_fn, images, threat.box, batch_size)
    labels = check_labels(y, len(images), logits.shape[1])
    check_scaling(logits_fn, images, labels, logits, threat.box, batch_size)
    return images, labels
