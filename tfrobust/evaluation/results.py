"""The results of an evaluation: flags per image for each attack, the worst case, and checks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tfrobust.evaluation.attack_list import ListedAttack
from tfrobust.record import AttackRow, Provenance, headline, subsets
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
        """Return the share of the n images that are still right."""
        return float(self.robust.mean())


@dataclasses.dataclass(frozen=True)
class Check:
    """A check for a false sense of security.

    Attributes:
        name: the name of the check.
        value: the measured number; None if it could not be measured or is not finite.
        text: a sentence that says what was measured, and on how many images.
        warns: whether the value is a sign that the robust accuracy is too high.
    """

    name: str
    value: float | None
    text: str
    warns: bool


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        results: the clean result, then one for each attack and suite.
        checks: the checks for a false sense of security; empty if none were made.
    """

    results: list[Result]
    checks: list[Check] = dataclasses.field(default_factory=list)

    @property
    def clean_accuracy(self) -> float:
        return self.results[0].accuracy

    @property
    def robust(self) -> np.ndarray:
        """bool [n], whether each image is right under every attack that saw the most images, n."""
        return worst_case(self.results)

    @property
    def robust_accuracy(self) -> float:
        """The headline: the worst case over the attacks that saw the most images."""
        return float(self.robust.mean())

    @property
    def subsets(self) -> dict[int, float]:
        """The robust accuracy on the first n images under all attacks that saw them, by n.

        There is an entry for each n that some attack saw and that is below the headline's.
        """
        clean, *attacks = (result.robust for result in self.results)
        return {n: float(right.mean()) for n, right in subsets(attacks, clean).items()}

    @property
    def images(self) -> np.ndarray | None:
        """The adversarial image that broke each image first, or else the last one tried, as
        [N, H, W, C]; None unless they were kept."""
        first = self.results[0].images
        return None if first is None else merged(first, self.results)

    def __str__(self) -> str:
        lines = [f"{r.name}: {r.accuracy:.2%} of {len(r.robust)}" for r in self.results]
        lines.append(f"worst case: {self.robust_accuracy:.2%} of {len(self.robust)}")
        lines += [f"worst case: {share:.2%} of the first {n}" for n, share in self.subsets.items()]
        lines += [f"warning: {c.name}: {c.text}" for c in self.checks if c.warns]
        return "\n".join(lines)


def worst_case(results: Sequence[Result]) -> np.ndarray:
    """Return bool [n], whether each image is right when clean and under every attack that saw the
    most images, n.

    results: the clean result, then those of the attacks.
    """
    clean, *attacks = (result.robust for result in results)
    return headline(attacks, clean)


def merged(images: np.ndarray, results: Iterable[Result]) -> np.ndarray:
    """Return a copy of images [N, H, W, C] overwritten with those of the results, in order; each
    image only up to the result that broke it."""
    images, standing = images.copy(), np.ones(len(images), bool)
    for result in results:
        n = len(result.robust)
        if result.images is not None:
            rows = np.flatnonzero(standing[:n])
            images[rows] = result.images[rows]
        standing[:n] &= result.robust
    return images


def row_of(result: Result, threat: Threat, files: Sequence[str] = ()) -> AttackRow:
    """Return the row of a result in eval.json. files: digests of the files its attack reads."""
    row = AttackRow(
        name=result.name,
        examples=len(result.robust),
        robust_accuracy=result.accuracy,
        seconds=round(result.seconds, 2),
        attacked=result.attacked,
        queries=result.queries,
        gradients=result.gradients,
    )
    # Only what is set is written to the file.
    if result.listed is not None:
        row.config = plain(result.listed.attack.settings(threat))
        row.suite = result.listed.suite
    if files:
        row.files = list(files)
    if result.provenance is not None:
        row.provenance = result.provenance
    return row


def plain(settings: Any) -> Any:
    """Return settings as JSON would give them back, with lists for tuples."""
    return json.loads(json.dumps(settings))
