"""Attacks: `attack(logits_fn, x, y, threat=..., seed=...)` returns adversarial images.

The import of a class registers it under the name of its file.
"""

from tfrobust.attacks.apgd import APGD as APGD
from tfrobust.attacks.base import Attack as Attack
from tfrobust.attacks.base import LogitsFn as LogitsFn
from tfrobust.attacks.base import Outcome as Outcome
from tfrobust.attacks.bpda import BPDA as BPDA
from tfrobust.attacks.eot import EOT as EOT
from tfrobust.attacks.fab import FAB as FAB
from tfrobust.attacks.fgsm import FGSM as FGSM
from tfrobust.attacks.multi_targeted import MultiTargeted as MultiTargeted
from tfrobust.attacks.pgd import PGD as PGD
from tfrobust.attacks.rays import RayS as RayS
from tfrobust.attacks.saved_images import SavedImages as SavedImages
from tfrobust.attacks.square import Square as Square
from tfrobust.attacks.staged import Staged as Staged
from tfrobust.attacks.transfer import Transfer as Transfer
from tfrobust.attacks.uniform_noise import UniformNoise as UniformNoise
from tfrobust.registry import by_file

ATTACKS = by_file(Attack, globals())


def registered_name(attack: Attack) -> str:
    """Return the registered name of an attack's class, or the name of a class without one."""
    names = {kind: name for name, kind in ATTACKS.items()}
    return names.get(type(attack), type(attack).__name__.lower())
