"""ATLAS: adversarial training via local stability."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust.methods.local_global import LocalGlobal
from tfrobust.serialization import serializable


@serializable
class Atlas(LocalGlobal):
    """CE(f(x'), y) + alpha * ||J(x')||_F^2 + beta * KL(p(x') || p(x)), eq. 14 of the ATLAS paper.

    With alpha = 0 it is ATLAS-g (eq. 21), with beta = 0 ATLAS-l (eq. 20).
    """

    adversarial_centre = True
    example = {"alpha": 0.01, "beta": 1.0}

    def __init__(self, network: keras.Model, *, alpha: float, beta: float, **kwargs: Any):
        self.alpha, self.beta = alpha, beta
        super().__init__(network, **kwargs)
