"""What attacks and checks say about a network; run as a module it prints the tables.

    python -m tests.defences.judge > table.md

The tables are those of docs/evaluation.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tests.defences.defences import DEFENCES, digits, natural, refusal_is_right
from tests.defences.honest import HONEST, honest
from tfrobust.attacks import PGD, Attack
from tfrobust.evaluation import Evaluation, craft, evaluate
from tfrobust.threat import Threat

THREAT = Threat("linf", 0.15)
EXAMPLES = 200


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The clean accuracy, the accuracies under attacks, and the names of the checks that warn.

    `attack` broke the most images among those of AutoAttack. `adaptive` is the accuracy under
    `own`, the attack that was made for a defence.
    """

    clean: float
    pgd: float
    autoattack: float
    attack: str
    warnings: list[str]
    own: str = ""
    adaptive: float | None = None


def images() -> tuple[np.ndarray, np.ndarray]:
    """Return the test images that networks are judged on, and their labels."""
    _, _, x, y = digits()
    return x[:EXAMPLES], y[:EXAMPLES]


def judge(network: Any, own: Attack | None = None) -> Verdict:
    """Return the verdict on a network, and on a defence also that of its own attack."""
    x, y = images()
    evaluation = evaluate(network, x, y, THREAT, progress=False)
    clean = evaluation.results[0].robust

    def accuracy(attack: Attack) -> float:
        return float(craft(network, x[clean], y[clean], attack, THREAT).right.sum() / len(x))

    return Verdict(
        evaluation.clean_accuracy,
        accuracy(PGD(steps=20)),
        evaluation.robust_accuracy,
        _strongest(evaluation),
        [check.name for check in evaluation.checks if check.warns],
        *(() if own is None else (own.title, accuracy(own))),
    )


def _strongest(evaluation: Evaluation) -> str:
    """Return the attack of the cascade that broke the most images."""
    standing, most = evaluation.results[0].robust, ("none", 0)
    for result in evaluation.results[1:]:
        if result.listed is not None:
            broken = int((standing & ~result.robust).sum())
            standing = result.robust
            most = max(most, (result.listed.attack.title, broken), key=lambda pair: pair[1])
    return most[0]


def judge_defence(name: str) -> Verdict:
    """Return the verdict on a defence. Where it refuses an image, this counts as right."""
    network, attack, refuses = DEFENCES[name]()
    return judge(refusal_is_right(network, *images()) if refuses else network, attack)


def line(*cells: Any) -> str:
    """Return a row of a table, with numbers in per cent."""
    texts = (f"{100 * cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(texts)} |"


def row(verdict: Verdict) -> list[Any]:
    """Return the cells that both tables have."""
    warnings = ", ".join(verdict.warnings) or "none"
    return [verdict.clean, verdict.pgd, verdict.autoattack, verdict.attack, warnings]


def main() -> None:
    """Print the tables of the defences and of the honest networks."""
    print(line("undefended", *row(judge(natural())), "", ""), flush=True)
    for name in DEFENCES:
        verdict = judge_defence(name)
        print(line(name, *row(verdict), verdict.own, verdict.adaptive), flush=True)
    for name in HONEST:
        print(line(*name, *row(judge(honest(*name, THREAT)))), flush=True)


if __name__ == "__main__":
    main()
