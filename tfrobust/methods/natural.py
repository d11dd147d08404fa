"""Natural training: the baseline without defence."""

from __future__ import annotations

from tfrobust.methods.local_global import LocalGlobal
from tfrobust.serialization import serializable


@serializable
class Natural(LocalGlobal):
    """CE(f(x), y), without an adversary. Its robust accuracy shows how strong an attack is."""

    default_attack = None
