"""ADV: adversarial training."""

from __future__ import annotations

from typing import Any

import keras

from tfrobust.errors import number
from tfrobust.methods.local_global import LocalGlobal
from tfrobust.serialization import serializable


@serializable
class Adv(LocalGlobal):
    """(1 - w) * CE(f(x'), y) + w * CE(f(x), y) at an adversary x', where w is `clean_weight`.

    With `FGSM()`, the default, this is the one-step training of Wong et al. (2020,
    arXiv:2001.03994); with `PGD(steps)` it is that of Madry et al. (2018, arXiv:1706.06083). With
    w > 0 it trains for one fixed trade-off, the baseline of once-for-all training, whose lambda is
    1 - w.
    """

    adversarial_centre = True

    def __init__(self, network: keras.Model, *, clean_weight: float = 0.0, **kwargs: Any):
        self.clean_weight = number("clean_weight", clean_weight, at_least=0, at_most=1)
        super().__init__(network, **kwargs)
