"""JAC: Jacobian regularisation at clean images."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust.methods.local_global import LocalGlobal
from tfrobust.serialization import serializable


@serializable
class Jac(LocalGlobal):
    """CE(f(x), y) + alpha * ||J(x)||_F^2, without an adversary ("zero-step JAC").

    The papers are Jakubovitz and Giryes (2018, arXiv:1803.08680) and Hoffman et al. (2019,
    arXiv:1908.02729).
    """

    default_attack = None
    example = {"alpha": 0.01}

    def __init__(self, network: keras.Model, *, alpha: float, **kwargs: Any):
        self.alpha = alpha
        super().__init__(network, **kwargs)
