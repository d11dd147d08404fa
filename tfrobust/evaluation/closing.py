"""The checks, curves and pictures that follow the attacks. An error in them loses no result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from tfrobust.distribution import on_all_workers, worker
from tfrobust.evaluation.attack_list import ListedAttack
from tfrobust.evaluation.binarisation import binarised
from tfrobust.evaluation.cascade import run_all
from tfrobust.evaluation.crafting import LogitsFn, computed_by
from tfrobust.evaluation.eps_curves import eps_curve, least_eps
from tfrobust.evaluation.pictures import Pictures
from tfrobust.evaluation.recorder import Recorder
from tfrobust.evaluation.results import Check, Result, worst_case
from tfrobust.evaluation.sample import reason
from tfrobust.evaluation.sanity_checks import checks
from tfrobust.gate import representative
from tfrobust.io import unwritable
from tfrobust.models import in_precision
from tfrobust.provenance import circumstances
from tfrobust.record import CheckRow, CurveRow, EpsRow, Provenance
from tfrobust.threat import Threat

T = TypeVar("T")
BLACK_BOX = (
    "{0} computes the network without gradients, so only attacks without them were tried: the "
    "robust accuracy is an upper bound, and an attack on the network before its export may do more."
)
CURVE = 500  # the number of images of the curve over eps


@dataclasses.dataclass(frozen=True, eq=False)
class Closing:
    """The checks, curves and pictures of an evaluation.

    Attributes that are not described here are the arguments of `evaluate`.

    Attributes:
        results: The clean result, and then those of the attacks.
        runtime: The runtime outside TensorFlow that computes the network; None for TensorFlow. With
            one, nothing that takes gradients is measured.
        features: The function from images to the features of the binarisation test.
    """

    logits_fn: LogitsFn
    x: np.ndarray
    y: np.ndarray
    threats: Sequence[Threat]
    attack_list: Sequence[ListedAttack]
    results: Sequence[Result]
    runtime: str | None
    seed: int
    batch_size: int
    progress: bool
    features: LogitsFn
    binarisation: int
    mode: str
    craft_precision: str
    jit_compile: bool | str

    def checks(self) -> list[Check]:
        """Return the checks for a false sense of security under each threat."""
        if self.runtime is not None:
            return [Check("gradients", None, BLACK_BOX.format(self.runtime), warns=True)]
        options: Any = {**self._sizes, "progress": self.progress}
        if self.binarisation:
            options["more"] = [binarised(self.features, self.binarisation)]
        checks_of_threats = []
        for threat in self.threats:
            results = self._under(threat)
            for check in checks(self.logits_fn, self.x, self.y, threat, results, **options):
                prefix = f"{threat.norm}: " if len(self.threats) > 1 else ""
                checks_of_threats.append(dataclasses.replace(check, name=prefix + check.name))
        return checks_of_threats

    def _under(self, threat: Threat) -> Sequence[Result]:
        """Return the clean result, and the results of the attacks under a threat."""
        if len(self.threats) == 1:
            return self.results
        clean, *attacks = self.results
        return [clean, *(r for r in attacks if r.listed and r.listed.threat == threat)]

    def write(self, recorder: Recorder) -> None:
        """Make the checks, curves and pictures, and write each as soon as it is finished.

        If one fails, a check "Not measured" gives the reason; only a full disk is an error. With
        several threats the pictures are those of the first, and there is no curve over eps, because
        each threat has another eps. Inputs that are no images have no pictures under attack.
        """
        record, details = recorder.record, recorder.details
        recorder.save()
        points = [point for point, _ in details.curve]
        same = [row.point for row in record.curve] == points
        same &= record.binarisation == self.binarisation
        if on_all_workers(record.closing is not None and same):
            return  # the record has them, and nothing has changed
        record.checks = [CheckRow(**dataclasses.asdict(check)) for check in self.checks()]
        record.binarisation = self.binarisation
        recorder.save()
        for check in record.checks:
            if check.warns:
                details.say(f"warning: {check.name}: {check.text}")

        def attempt(name: str, function: Callable[[], T]) -> T | None:
            try:
                return function()
            except Exception as error:
                # Workers compute together, so an error stops all of them. After a full disk the
                # next evaluation goes on here.
                if worker()[1] > 1 or unwritable(error):
                    raise
                text = f"Not measured: {reason(error)}."
                record.checks = [*record.checks, CheckRow(name=name, text=text, warns=False)]
                details.say(f"warning: {name}: {text}")
                return None

        attempt("trade-off", lambda: self._curve(recorder))
        if self.runtime is None:
            record.eps_curve = attempt("accuracy against eps", self._eps_curve) or []
            recorder.save()
        first = self.threats[0]
        pictures = Pictures(
            recorder.folder, self.logits_fn, self.x, recorder.flags, first, **self._sizes
        )
        if self.runtime is None:
            attempt("loss valley", pictures.valley)
            attempt("loss landscape", lambda: pictures.landscape(self._under(first)))
        if self.x.ndim == 4:
            attempt("images", lambda: pictures.probes(self.attack_list[0], details.class_names))
        made_with: Any = {"seed": self.seed, "examples": len(self.x), **circumstances()}
        precision = record.provenance.precision if record.provenance else "float32"
        record.closing = Provenance(**made_with, **computed_by(), precision=precision)
        recorder.save()

    @property
    def _sizes(self) -> dict[str, Any]:
        return {"seed": self.seed, "batch_size": self.batch_size}

    def _eps_curve(self) -> list[EpsRow]:
        if len(self.threats) > 1:
            return []
        few = representative(self.y, CURVE)
        options: Any = {"clean": self.results[0].robust[few], **self._sizes}
        least = least_eps(self.logits_fn, self.x[few], self.y[few], self.threats[0], **options)
        return eps_curve(least, self.threats[0])

    def _curve(self, recorder: Recorder) -> None:
        """Measure clean and worst-case accuracy at each point of a once-for-all network."""
        record, details = recorder.record, recorder.details
        for place, (point, network) in enumerate(details.curve):
            measured = place < len(record.curve) and record.curve[place].point == point
            if on_all_workers(measured):
                continue
            results = self.results
            if place:
                options: Any = {**self._sizes, "progress": self.progress, "index": details.index}
                options |= {"mode": self.mode, "jit_compile": self.jit_compile}
                if self.craft_precision != "float32":
                    copy = in_precision(network, self.craft_precision, "craft_precision")
                    options["search"] = copy
                results = list(
                    run_all(network, self.x, self.y, self.threats, self.attack_list, **options)
                )
            worst = worst_case(results)
            clean, robust = float(results[0].robust[: len(worst)].mean()), float(worst.mean())
            where = ", ".join(f"{name} {value:g}" for name, value in point.items())
            details.say(f"{where}: {clean:.2%} clean, {robust:.2%} robust")
            row = CurveRow(**point, clean_accuracy=clean, robust_accuracy=robust)
            record.curve = [*record.curve[:place], row]
            recorder.save()
        record.curve = record.curve[: len(details.curve)]
