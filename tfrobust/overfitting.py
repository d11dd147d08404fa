"""The detection of catastrophic overfitting (Wong et al., 2020) in the logs of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ROBUST, ONE_STEP = "val_robust_accuracy", "val_fgsm_accuracy"


class Overfitting:
    """A detector of catastrophic overfitting, epoch by epoch.

    The gap is FGSM accuracy minus multi-step robust accuracy on validation data. A network that
    has learnt to fool one-step attacks keeps its FGSM accuracy, loses its robust accuracy, and does
    not recover within an epoch. So an epoch is low if robust accuracy is more than `drop` below its
    best and the gap has widened by more than `drop` since then; two low epochs in a row are
    overfitting. A single one may be the noise of few validation examples or of a high learning
    rate. Epochs in which eps still grows do not count, because accuracies waver there.

    Attributes:
        best: The highest robust accuracy so far.
        gap_at_best: The gap in that epoch.
        last_eps: The eps of the last epoch; of several threats, the sum.
        fallen: Whether the last epoch was low.
    """

    def __init__(self, drop: float = 0.10):
        super().__init__()  # this class is one of the bases of a callback
        self.drop = drop
        self.best, self.gap_at_best, self.last_eps = 0.0, 0.0, 0.0
        self.fallen = False

    def shown_by(self, epoch: Mapping[str, float]) -> bool:
        """Take in the logs of the next epoch, and return whether it shows overfitting.

        An epoch without validation shows none.
        """
        if ROBUST not in epoch or ONE_STEP not in epoch:
            return False
        robust = float(epoch[ROBUST])
        gap = float(epoch[ONE_STEP]) - robust
        eps = [float(value) for name, value in epoch.items() if name.partition("_")[0] == "eps"]
        before, self.last_eps = self.last_eps, sum(eps)
        if robust > self.best:
            self.best, self.gap_at_best = robust, gap
        low = min(self.best - robust, gap - self.gap_at_best) > self.drop
        fell, self.fallen = self.fallen, low and self.last_eps <= before
        return fell and self.fallen


def overfitted(history: Iterable[Mapping[str, float]]) -> list[int]:
    """Return the epochs of a history that show catastrophic overfitting."""
    detector = Overfitting()
    return [int(row["epoch"]) for row in history if detector.shown_by(row)]
