"""ADV: adversarial training."""

from __future__ import annotations

from tfrobust.methods.local_global import LocalGlobal
from tfrobust.registry import serializable


@serializable
class Adv(LocalGlobal):
    """CE(f(x'), y) at an adversary x'.

    With `FGSM()`, the default, the one-step training of Wong et al. (2020, arXiv:2001.03994); with
    `PGD(steps)` that of Madry et al. (2018, arXiv:1706.06083).
    """

    adversarial_centre = True
