"""Evaluation: a cascade of attacks over a test set, flags per example, the worst case."""

from tfrobust.evaluation.api import evaluate
from tfrobust.evaluation.attack_list import SUITES, ListedAttack, list_attacks
from tfrobust.evaluation.cascade import MODES, run
from tfrobust.evaluation.corruption_accuracy import Corruptions
from tfrobust.evaluation.crafting import Crafted, adversaries, craft, predictor
from tfrobust.evaluation.eps_curves import eps_curve, least_eps
from tfrobust.evaluation.loss_landscape import Landscape, landscape
from tfrobust.evaluation.loss_valley import Valley, valley
from tfrobust.evaluation.margin_estimates import margins
from tfrobust.evaluation.recorder import Details
from tfrobust.evaluation.results import Check, Evaluation, Result, merged, worst_case
from tfrobust.evaluation.sanity_checks import checks
from tfrobust.flags import Flags
from tfrobust.record import Record

__all__ = [
    "MODES",
    "SUITES",
    "Check",
    "Corruptions",
    "Crafted",
    "Details",
    "Evaluation",
    "Flags",
    "Landscape",
    "Record",
    "Result",
    "ListedAttack",
    "Valley",
    "adversaries",
    "checks",
    "craft",
    "eps_curve",
    "evaluate",
    "landscape",
    "least_eps",
    "margins",
    "merged",
    "predictor",
    "run",
    "list_attacks",
    "valley",
    "worst_case",
]
