"""Attacks: `attack(logits_fn, x, y, threat=..., seed=...)` gives adversarial images."""

from tfrobust.attacks.apgd import APGD
from tfrobust.attacks.base import Attack, LogitsFn, Outcome
from tfrobust.attacks.fab import FAB
from tfrobust.attacks.fgsm import FGSM
from tfrobust.attacks.multi_targeted import MultiTargeted
from tfrobust.attacks.pgd import PGD
from tfrobust.attacks.rays import RayS
from tfrobust.attacks.square import Square
from tfrobust.attacks.staged import Staged
from tfrobust.attacks.transfer import SavedImages, Transfer
from tfrobust.attacks.uniform_noise import UniformNoise

ATTACKS: dict[str, type[Attack]] = {
    "fab": FAB,
    "apgd": APGD,
    "fgsm": FGSM,
    "multi_targeted": MultiTargeted,
    "pgd": PGD,
    "rays": RayS,
    "saved_images": SavedImages,
    "square": Square,
    "transfer": Transfer,
    "uniform_noise": UniformNoise,
}


def registered_name(attack: Attack) -> str:
    """Return the name under which the attack's class is registered, or else the class's own."""
    names = {kind: name for name, kind in ATTACKS.items()}
    return names.get(type(attack), type(attack).__name__.lower())


__all__ = [
    "APGD",
    "ATTACKS",
    "FAB",
    "FGSM",
    "PGD",
    "Attack",
    "LogitsFn",
    "MultiTargeted",
    "Outcome",
    "RayS",
    "SavedImages",
    "Square",
    "Staged",
    "Transfer",
    "UniformNoise",
    "registered_name",
]
