"""TradesJac: TRADES and JAC added up, the ATLAS paper's comparison (appendix D.1)."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust.methods.local_global import LocalGlobal
from tfrobust.serialization import serializable


@serializable
class TradesJac(LocalGlobal):
    """CE(f(x), y) + alpha * ||J(x)||_F^2 + beta * KL(p(x) || p(x')): ATLAS with a clean centre."""

    crafting_loss = "kl"

    def __init__(self, network: keras.Model, *, alpha: float, beta: float, **kwargs: Any):
        self.alpha, self.beta = alpha, beta
        super().__init__(network, **kwargs)
