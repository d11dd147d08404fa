"""Attacks: `attack(logits_fn, x, y, threat=..., seed=...)` gives adversarial images."""

from tfrobust.attacks.base import Attack, LogitsFn, Outcome
from tfrobust.attacks.fgsm import FGSM
from tfrobust.attacks.pgd import PGD

ATTACKS: dict[str, type[Attack]] = {"fgsm": FGSM, "pgd": PGD}

__all__ = ["ATTACKS", "FGSM", "PGD", "Attack", "LogitsFn", "Outcome"]
