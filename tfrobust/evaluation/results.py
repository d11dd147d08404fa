"""What an evaluation finds: flags per example for each attack, the worst case, and checks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tfrobust.evaluation.attack_list import ListedAttack
from tfrobust.evaluation.record import AttackRow, Provenance, headline, subsets
from tfrobust.threat import Threat


@dataclasses.dataclass(frozen=True)
class Result:
    """What an attack left standing.

    name: "clean", the listed's or the suite's. robust: bool [n] of the first n images: right on
    the clean image, under this attack, and in a cascade under those before it. attacked: how many
    images the attack ran on; queries, gradients: its forward and backward passes over them all.
    images: the adversarial images [n, H, W, C], the clean one where the attack did not run; only
    on demand, and not for a suite. provenance: what it was made with.
    """

    name: str
    robust: np.ndarray
    seconds: float
    listed: ListedAttack | None = None
    attacked: int = 0
    queries: int = 0
    gradients: int = 0
    images: np.ndarray | None = None
    provenance: Provenance | None = None

    @property
    def accuracy(self) -> float:
        """The fraction of the n images still right."""
        return float(self.robust.mean())


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of a report.

    value: the measured number, None where it could not be measured or is not finite. text: what
    was measured on how many images, in a sentence. warns: whether it is a sign that the robust
    accuracy is too high.
    """

    name: str
    value: float | None
    text: str
    warns: bool


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: the clean result first, then one for each attack and suite.

    checks: the signs of a false sense of security that were looked for; none where they were not.
    """

    results: list[Result]
    checks: list[Check] = dataclasses.field(default_factory=list)

    @property
    def clean_accuracy(self) -> float:
        return self.results[0].accuracy

    @property
    def robust(self) -> np.ndarray:
        """bool [n]: right under every attack that saw the most images, n of them."""
        return worst_case(self.results)

    @property
    def robust_accuracy(self) -> float:
        """The headline: the worst case over the attacks that saw the most images."""
        return float(self.robust.mean())

    @property
    def subsets(self) -> dict[int, float]:
        """n -> the robust accuracy on the first n images under all attacks that saw these, for
        each n that is smaller than the headline's."""
        clean, *attacks = (result.robust for result in self.results)
        return {n: float(right.mean()) for n, right in subsets(attacks, clean).items()}

    @property
    def images(self) -> np.ndarray | None:
        """Of each image the adversary that broke it first, else the last that was tried; None
        unless they were kept."""
        first = self.results[0].images
        return None if first is None else merged(first, self.results)

    def __str__(self) -> str:
        lines = [f"{r.name}: {r.accuracy:.2%} of {len(r.robust)}" for r in self.results]
        lines.append(f"worst case: {self.robust_accuracy:.2%} of {len(self.robust)}")
        lines += [f"worst case: {share:.2%} of the first {n}" for n, share in self.subsets.items()]
        lines += [f"warning: {c.name}: {c.text}" for c in self.checks if c.warns]
        return "\n".join(lines)


def worst_case(results: Sequence[Result]) -> np.ndarray:
    """Return bool [n]: right when clean and under every attack that saw the most images, n.

    results: the clean one first.
    """
    clean, *attacks = (result.robust for result in results)
    return headline(attacks, clean)


def merged(images: np.ndarray, results: Iterable[Result]) -> np.ndarray:
    """`images` [N, H, W, C] with those that the results hold in their place, up to the one that
    broke each."""
    images, standing = images.copy(), np.ones(len(images), bool)
    for result in results:
        n = len(result.robust)
        if result.images is not None:
            rows = np.flatnonzero(standing[:n])
            images[rows] = result.images[rows]
        standing[:n] &= result.robust
    return images


def row_of(result: Result, threat: Threat, files: Sequence[str] = ()) -> AttackRow:
    """Return the row of a result in eval.json. files: digests of those that its attack reads."""
    values: dict[str, Any] = {
        "name": result.name,
        "examples": len(result.robust),
        "robust_accuracy": result.accuracy,
        "seconds": round(result.seconds, 2),
        "attacked": result.attacked,
        "queries": result.queries,
        "gradients": result.gradients,
    }
    if result.listed is not None:
        values["config"] = plain(result.listed.attack.settings(threat))
        values["suite"] = result.listed.suite
    if files:
        values["files"] = list(files)
    if result.provenance is not None:
        values["provenance"] = result.provenance
    return AttackRow(**values)


def plain(settings: Any) -> Any:
    """Return settings as JSON gives them back: lists for tuples."""
    return json.loads(json.dumps(settings))
