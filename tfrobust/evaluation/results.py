"""The results of an evaluation: a flag for each image under each attack, worst cases, checks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tfrobust.evaluation.attack_list import ListedAttack
from tfrobust.flags import headline, subsets
from tfrobust.record import AttackRow, CorruptionTable, Provenance
from tfrobust.threat import Threat


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one attack or suite, or of the clean images, on the first n images.

    Attributes:
        name: "clean", or the name of the attack or the suite.
        robust: Whether each image is right when clean, under this attack and, in a cascade, under
            the attacks before it, bool [n].
        seconds: The time that the attack took.
        listed: The attack; None for the clean result and for suites.
        attacked: The number of images that the attack ran on.
        queries: The number of forward passes over all these images.
        gradients: The number of backward passes over all these images.
        images: The adversarial images [n, H, W, C], with the clean image if the attack did not run
            on it. None for suites, and unless images were requested.
        provenance: The version, device and precision of the computation.
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
        """The share of the n images that are still right."""
        return float(self.robust.mean())


@dataclasses.dataclass(frozen=True)
class Check:
    """A check for a false sense of security.

    Attributes:
        name: The name of the check.
        value: The measured number; None if it could not be measured or is not finite.
        text: A sentence that says what was measured, and on how many images.
        warns: Whether the value is a sign that the robust accuracy is too high.
    """

    name: str
    value: float | None
    text: str
    warns: bool


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        results: The clean result, then one for each attack and suite.
        checks: The checks for a false sense of security; empty if none were made.
        corruptions: The accuracy on corrupted images; None if it was not measured.
    """

    results: list[Result]
    checks: list[Check] = dataclasses.field(default_factory=list)
    corruptions: CorruptionTable | None = None

    @property
    def clean_accuracy(self) -> float:
        return self.results[0].accuracy

    @property
    def robust(self) -> np.ndarray:
        """Whether each image is right under every attack on the most images, bool [n]."""
        return worst_case(self.results)

    @property
    def robust_accuracy(self) -> float:
        """The worst case over the attacks on the most images."""
        return float(self.robust.mean())

    @property
    def norms(self) -> dict[str, float]:
        """The robust accuracy under each norm, on the images of `robust_accuracy`.

        It is empty unless the evaluation has several threats; `robust_accuracy` is then that in
        their union.
        """
        return {norm: float(right.mean()) for norm, right in by_norm(self.results).items()}

    @property
    def subsets(self) -> dict[int, float]:
        """The worst case over all attacks that ran on the first n images, n -> accuracy.

        Each n is the number of images of an attack, if smaller than that of `robust_accuracy`.
        """
        clean, *attacks = (result.robust for result in self.results)
        return {n: float(right.mean()) for n, right in subsets(attacks, clean).items()}

    @property
    def images(self) -> np.ndarray | None:
        """The adversarial images [N, H, W, C]; None unless they were kept.

        Each is the first that broke its image or, if none did, the last that was tried.
        """
        first = self.results[0].images
        return None if first is None else merged(first, self.results)

    def __str__(self) -> str:
        lines = [f"{r.name}: {r.accuracy:.2%} of {len(r.robust)}" for r in self.results]
        lines += [f"worst case in {norm}: {share:.2%}" for norm, share in self.norms.items()]
        lines.append(f"worst case: {self.robust_accuracy:.2%} of {len(self.robust)}")
        lines += [f"worst case: {share:.2%} of the first {n}" for n, share in self.subsets.items()]
        if (table := self.corruptions) is not None:
            lines.append(f"corruptions: {table.accuracy:.2%} of {table.examples}")
        lines += [f"warning: {c.name}: {c.text}" for c in self.checks if c.warns]
        return "\n".join(lines)


def worst_case(results: Sequence[Result]) -> np.ndarray:
    """Return whether each of n images is right when clean and under every attack, bool [n].

    n is the largest number of images of an attack; attacks on fewer images do not count.

    Args:
        results: The clean result, then those of the attacks.
    """
    clean, *attacks = (result.robust for result in results)
    return headline(attacks, clean)


def by_norm(results: Sequence[Result]) -> dict[str, np.ndarray]:
    """Return the worst case of the attacks under each norm, norm -> bool [n].

    It is empty unless the evaluation has several threats. The results are as for `worst_case`.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.listed is not None and result.listed.threat is not None:
            groups.setdefault(result.listed.threat.norm, []).append(result)
    return {norm: worst_case([results[0], *group]) for norm, group in groups.items()}


def merged(images: np.ndarray, results: Iterable[Result]) -> np.ndarray:
    """Return a copy of images [N, H, W, C] with the images of the results written over it in order.

    After the result that broke an image, it is not written over again.
    """
    images, standing = images.copy(), np.ones(len(images), bool)
    for result in results:
        n = len(result.robust)
        if result.images is not None:
            rows = np.flatnonzero(standing[:n])
            images[rows] = result.images[rows]
        standing[:n] &= result.robust
    return images


def row_of(result: Result, threat: Threat, files: Sequence[str] = ()) -> AttackRow:
    """Return the row of a result in eval.json, with digests of the files that its attack reads."""
    row = AttackRow(
        name=result.name,
        examples=len(result.robust),
        robust_accuracy=result.accuracy,
        seconds=round(result.seconds, 2),
        attacked=result.attacked,
        queries=result.queries,
        gradients=result.gradients,
    )
    # Fields that are not set are not written to the file.
    if result.listed is not None:
        row.config = plain(result.listed.attack.settings(result.listed.threat or threat))
        if result.listed.threat is not None:
            row.norm = result.listed.threat.norm
        row.suite = result.listed.suite
    if files:
        row.files = list(files)
    if result.provenance is not None:
        row.provenance = result.provenance
    return row


def plain(settings: Any) -> Any:
    """Return settings as JSON reads them back, with lists for tuples and numbers for tensors."""
    return json.loads(json.dumps(settings, default=lambda tensor: np.asarray(tensor).tolist()))
