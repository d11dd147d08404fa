"""TradesJac: the sum of TRADES and JAC, with which the ATLAS paper compares (appendix D.1)."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust.attacks import PGD
from tfrobust.methods.local_global import LocalGlobal
from tfrobust.serialization import serializable


@serializable
class TradesJac(LocalGlobal):
    """CE(f(x), y) + alpha * ||J(x)||_F^2 + beta * KL(p(x) || p(x')): ATLAS with a clean centre."""

    default_attack = PGD(steps=10, start="normal")
    crafting_loss = "kl"
    example = {"alpha": 0.01, "beta": 1.0}

    def __init__(self, network: keras.Model, *, alpha: float, beta: float, **kwargs: Any):
        self.alpha, self.beta = alpha, beta
        super().__init__(network, **kwargs)
