"""Catastrophic overfitting, seen in the accuracies that a training logs (Wong et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ROBUST, ONE_STEP = "val_robust_accuracy", "val_fgsm_accuracy"


class Overfitting:
    """Whether robust accuracy has fallen by more than `drop` below its best while FGSM's gap opens.

    The gap is FGSM accuracy minus multi-step accuracy on validation data: a network that has
    learnt to fool one-step attacks keeps the first and loses the second. best, gap_at_best: the
    highest robust accuracy so far and the gap there.
    """

    def __init__(self, drop: float = 0.10):
        self.drop = drop
        self.best, self.gap_at_best = 0.0, 0.0

    def shown_by(self, epoch: Mapping[str, float]) -> bool:
        """Of the next epoch, by its logs; one without validation shows nothing."""
        if ROBUST not in epoch or ONE_STEP not in epoch:
            return False
        robust = float(epoch[ROBUST])
        gap = float(epoch[ONE_STEP]) - robust
        if robust > self.best:
            self.best, self.gap_at_best = robust, gap
            return False
        return self.best - robust > self.drop and gap > self.gap_at_best


def overfitted(history: Iterable[Mapping[str, float]]) -> list[int]:
    """The epochs of a history that show it."""
    sign = Overfitting()
    return [int(row["epoch"]) for row in history if sign.shown_by(row)]
