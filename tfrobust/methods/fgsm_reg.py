"""FGSM as a regulariser (Goodfellow et al., 2015, arXiv:1412.6572)."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust.attacks import FGSM
from tfrobust.methods.adv import Adv
from tfrobust.serialization import serializable


@serializable
class FgsmReg(Adv):
    """a * CE(f(x), y) + (1 - a) * CE(f(x'), y), where x' is one step of eps from x.

    a is `clean_weight`. Without a random start, the method is prone to catastrophic overfitting
    (Wong et al., 2020).
    """

    default_attack = FGSM(start="none", step_scale=1.0)

    def __init__(self, network: keras.Model, *, clean_weight: float = 0.5, **kwargs: Any):
        super().__init__(network, clean_weight=clean_weight, **kwargs)
