"""Evaluation: attacks over a test set, flags per example, the worst case."""

from tfrobust.evaluation.evaluate import (
    Result,
    Trial,
    adversaries,
    evaluate,
    predictor,
    worst_case,
)

__all__ = ["Result", "Trial", "adversaries", "evaluate", "predictor", "worst_case"]
