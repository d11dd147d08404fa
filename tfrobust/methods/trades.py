"""TRADES (Zhang et al., 2019, arXiv:1901.08573)."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust.attacks import PGD
from tfrobust.methods.local_global import LocalGlobal
from tfrobust.serialization import serializable


@serializable
class Trades(LocalGlobal):
    """CE(f(x), y) + beta * KL(p(x) || p(x')), where x' maximises the KL divergence.

    The default attack is the authors': ten steps from x + 0.001 * N(0, 1).
    """

    default_attack = PGD(steps=10, start="normal")
    crafting_loss = "kl"
    example = {"beta": 1.0}

    def __init__(self, network: keras.Model, *, beta: float, **kwargs: Any):
        self.beta = beta
        super().__init__(network, **kwargs)
