"""Evaluation: a cascade of attacks over a test set, flags per example, the worst case."""

from tfrobust.evaluation.cascade import MODES, run
from tfrobust.evaluation.checks import checks
from tfrobust.evaluation.craft import Crafted, adversaries, craft, predictor
from tfrobust.evaluation.eps_curve import eps_curve, least_eps
from tfrobust.evaluation.evaluate import evaluate
from tfrobust.evaluation.landscape import Landscape, landscape
from tfrobust.evaluation.margins import margins
from tfrobust.evaluation.record import Flags, Record
from tfrobust.evaluation.recorder import Details
from tfrobust.evaluation.results import Check, Evaluation, Result, merged, worst_case
from tfrobust.evaluation.trials import SUITES, Trial, trials
from tfrobust.evaluation.valley import Valley, valley

__all__ = [
    "MODES",
    "SUITES",
    "Check",
    "Crafted",
    "Details",
    "Evaluation",
    "Flags",
    "Landscape",
    "Record",
    "Result",
    "Trial",
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
    "trials",
    "valley",
    "worst_case",
]
