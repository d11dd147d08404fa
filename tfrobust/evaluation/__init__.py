"""Evaluation: a cascade of attacks over a test set, flags per example, the worst case."""

from tfrobust.evaluation.checks import Check, checks
from tfrobust.evaluation.craft import Crafted, adversaries, craft, predictor
from tfrobust.evaluation.evaluate import (
    MODES,
    Evaluation,
    Result,
    evaluate,
    merged,
    run,
    settings,
    worst_case,
)
from tfrobust.evaluation.inputs import check_inputs
from tfrobust.evaluation.trials import SUITES, Trial, trials

__all__ = [
    "MODES",
    "SUITES",
    "Check",
    "Crafted",
    "Evaluation",
    "Result",
    "Trial",
    "adversaries",
    "check_inputs",
    "checks",
    "craft",
    "evaluate",
    "merged",
    "predictor",
    "run",
    "settings",
    "trials",
    "worst_case",
]
