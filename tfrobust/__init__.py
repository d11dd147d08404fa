"""Adversarially robust training and honest robustness evaluation for Keras 3 on TensorFlow.

model = tfrobust.Atlas(network, threat=tfrobust.Threat("linf", "8/255"), alpha=2e-4, beta=5.0)
model.compile("sgd")
model.fit(x, y)
"""

__version__ = "0.1.0"

import tfrobust.backend  # noqa: F401, refuses another one than TensorFlow
from tfrobust.attacks import FGSM, PGD, Attack
from tfrobust.methods import Adv, Atlas, Jac, Natural, RobustModel, Trades, TradesJac
from tfrobust.models import load_network  # Keras learns our layers here
from tfrobust.threat import Threat

__all__ = [
    "FGSM",
    "PGD",
    "Adv",
    "Atlas",
    "Attack",
    "Jac",
    "Natural",
    "RobustModel",
    "Threat",
    "Trades",
    "TradesJac",
    "__version__",
    "load_network",
]
