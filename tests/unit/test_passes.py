"""A training step makes the passes that its formula needs, and no more."""

from __future__ import annotations

import pytest

from tools.passes import passes

K = 3  # steps of the attack

# Forward and backward passes, as in tools/passes.py. A method without a row is not tested.
PASSES = {
    "natural": (1, 1),
    "adv": (K + 1, K + 1),
    "jac": (1, 2),
    "trades": (1 + K + 2, K + 2),  # the clean prediction, the attack, both images
    "atlas": (K + 2, K + 3),
    "trades_jac": (1 + K + 2, K + 3),
    "alp": (K + 2, K + 2),  # the last two are one pass of twice as many images
    "awp": (K + 2, K + 2),
    "fat": (K + 1, K + 1),
    "fgsm_pgi": (1 + 2, 1 + 2),
    "fgsm_reg": (1 + 2, 1 + 2),
    "free": (8, 8),  # replays
    "gkl": (1 + K + 2, K + 2),
    "gradalign": (1 + 2, 1 + 1 + 2),
    "iaat": (1 + 2 * (K + 1) + K + 1, 3 * K + 1),  # two probes, each evaluated at its end
    "llr": (1 + K + 2, 1 + K + 1 + 2),
    "mart": (K + 2, K + 2),
    "mma": (K + 10 + 2, K + 2),  # ten halvings of the bisection
    "nfgsm": (1 + 1, 1 + 1),
    "nuat": (2 + 2, 1 + 2),
    "oat": (K + 2, K + 2),
    "squeeze": (3 * K + 3, 3 * K + 3),  # of the image and the two points of its search
}


@pytest.mark.parametrize("name", PASSES)
def test_a_step_takes_the_passes_of_its_formula(name: str) -> None:
    assert passes(name, K) == PASSES[name]
