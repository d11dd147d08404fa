"""The record of an evaluation in a folder, from which an interrupted evaluation resumes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfrobust.attack_settings import digests_of, known_by
from tfrobust.distribution import count_shared, on_all_workers
from tfrobust.errors import UserError, require
from tfrobust.evaluation.aside import FILES, move_aside
from tfrobust.evaluation.attack_list import ListedAttack
from tfrobust.evaluation.crafting import Predict
from tfrobust.evaluation.details import Details
from tfrobust.evaluation.image_file import IMAGES, ImageFile
from tfrobust.evaluation.record_rows import data_row, threat_row
from tfrobust.evaluation.results import Result, by_norm, plain, row_of, worst_case
from tfrobust.flags import Flags, digests, same_images, subsets
from tfrobust.io import lock, remove_partial, writable
from tfrobust.provenance import commit, versions
from tfrobust.record import (
    SCHEMA,
    AttackRow,
    CorruptionRow,
    NetworkRow,
    NormRow,
    Record,
    SubsetRow,
)
from tfrobust.threat import Threat

LOCK = ".lock"  # held while an evaluation uses the folder
RESULTS = ("eval.json", "flags.npz")  # the files that `save` always writes
NEAR = 0.05  # relative to the largest gradient; rounding switches a few of many ReLUs
SIMILAR = 1e-4  # relative to the largest logit; another number of threads rounds differently


class Recorder:
    """The record of one evaluation in a folder.

    If network, images, threat, mode and seed are the same, the results in the folder are reused up
    to the first attack that differs; `finished` holds them. Several workers reuse what all of them
    have. All other results are moved to another folder when the first new result is saved, so a
    refused evaluation changes nothing. No other evaluation can use the folder until `close`.

    Args:
        folder: The folder.
        network: The logits and the digest that identify the network.
        x: Images [N, H, W, C].
        y: Labels [N].
        threats: The threats.
        attack_list: The attacks, fitted to the network.
        predict: Function from images to classes, which judges images that are saved as uint8.
        mode: The mode of the evaluation, as in `evaluate`.
        seed: The seed of all noise.
        details: Descriptions that are recorded.
        save: "float32" or "uint8" to save the adversarial images.
        rerun: Whether to reuse no result.
        craft_precision: The precision of the search, as in `evaluate`.

    Raises:
        UserError: If the folder cannot be written to or another evaluation uses it, or if the
            images cannot be saved as asked.
    """

    def __init__(
        self,
        folder: Path,
        network: NetworkRow,
        x: np.ndarray,
        y: np.ndarray,
        threats: Sequence[Threat],
        attack_list: Sequence[ListedAttack],
        predict: Predict,
        *,
        mode: str,
        seed: int,
        details: Details,
        save: str | None = None,
        rerun: bool = False,
        craft_precision: str = "float32",
    ):
        self.folder, self.details = folder, details
        self.threats, self.attack_list = threats, attack_list
        index = np.arange(len(x)) if details.index is None else details.index
        self.flags = Flags(index[: len(x)], y, {}, digests(x, y))
        self.images = None if save is None else ImageFile(folder, save, x, threats[0].box)
        self.predict = predict
        self.files = {each.name: digests_of(each.attack.files) for each in attack_list}
        rows = [threat_row(threat) for threat in threats]
        self.record = Record(
            schema_version=SCHEMA,
            examples=len(x),
            clean_accuracy=0.0,
            attacks=[],
            threat=rows if len(rows) > 1 else rows[0],
            seed=seed,
            mode=mode,
            craft_precision=craft_precision,
            data=data_row(details.data, details.split, details.class_names, x),
            model=details.model,
            network=network,
            training_commit=details.training_commit,
            training_hardware=details.training_hardware,
            training_settings=details.training_settings,
        )
        self.results: list[Result] = []
        self.finished: list[Result] = []
        self.former: dict[str, np.ndarray] = {}  # reused flags, by the names in the old eval.json
        self.aside: tuple[str, Sequence[str]] | None = None  # the reason, and the files to move
        require(writable(folder), "folder", "a folder that can be written to", str(folder))
        self.lock: int | None = None
        if (folder / LOCK).exists():
            self._take_folder()
        self.content = self._read_record()
        former = None if self.content is None else self._former(rerun)
        kept = self._kept(former)
        if former is not None and kept is not None:
            self._reuse(*former, kept)
        self.reused = {result.name for result in self.finished}
        self.waiting = set(self.reused)

    def add(self, result: Result) -> None:
        """Save a result unless it is a reused one. Its images do not stay in memory."""
        self.results.append(result)
        self.waiting.discard(result.name)
        new = result.name not in self.reused
        if result.name == "clean" and new:
            self.record.versions, self.record.commit = versions(), commit()
            self.record.provenance = result.provenance
        if new:
            if not self.waiting:  # else eval.json would lose the reused results that follow
                self.save()
            self.details.say(f"{result.name}: {result.accuracy:.2%} of {len(result.robust)}")
        self.results[-1] = dataclasses.replace(result, images=None)

    def save(self) -> None:
        """Write all results so far, eval.json last."""
        self._make_room()
        record, attacks = self.record, self.results[1:]
        worst = worst_case(self.results)
        record.clean_accuracy = self.results[0].accuracy
        norms = by_norm(self.results)
        # The union has a worst case once every norm has an attack on that many images.
        begun = [norm for norm, right in norms.items() if len(right) == len(worst)]
        complete = len(self.threats) in (1, len(begun))
        record.robust_accuracy = float(worst.mean()) if attacks and complete else None
        if norms:
            record.norms = [
                NormRow(norm=norm, robust_accuracy=float(right.mean()), examples=len(right))
                for norm, right in norms.items()
            ]
        record.worst_case_examples = len(worst)
        worst_cases = subsets([result.robust for result in attacks], self.results[0].robust)
        record.subsets = [
            SubsetRow(examples=n, robust_accuracy=float(right.mean()))
            for n, right in worst_cases.items()
        ]
        record.attacks = [
            row_of(result, self.threats[0], self.files.get(result.name, ())) for result in attacks
        ]
        done = {result.name for result in attacks}
        record.pending = [listed.name for listed in self.attack_list if listed.name not in done]
        new = any(result.images is not None for result in self.results)
        if self.images is not None and (new or not self.images.path.exists()):
            rounded = self.images.write(self.results, self.flags, self.predict)
            if rounded is not None:
                record.rounded_robust_accuracy = rounded
        right = {result.name: result.robust for result in self.results}
        flags = dataclasses.replace(self.flags, right=right)
        if self.former:
            dataclasses.replace(flags, right=self.former | right).save(self.folder)
            self.former = {}
            record.save(self.folder)
        flags.save(self.folder)
        record.save(self.folder)

    def close(self) -> None:
        """Release the folder for other evaluations."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    # ------------------------------------------------------- the former content of the folder
    def _make_room(self) -> None:
        """Lock the folder, unless it is locked, and move the files of other evaluations aside."""
        if self.lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_folder()
            expected = "a folder that no other evaluation has written to meanwhile"
            require(self._read_record() == self.content, "folder", expected, str(self.folder))
        if self.aside is not None:
            reason, names = self.aside
            # The results that are reused stay in the folder too: the disk may be full.
            kept, self.aside = move_aside(self.folder, names, copied=RESULTS), None
            self.details.say(f"the former results are kept in {kept} ({reason})")

    def _take_folder(self) -> None:
        """Lock the folder. Raises UserError if another evaluation has locked it."""
        try:
            self.lock = lock(self.folder / LOCK)
        except BlockingIOError:
            expected = "a folder that no other evaluation is at work in"
            raise UserError(f"folder: expected {expected}, received {str(self.folder)!r}") from None
        remove_partial(self.folder)

    def _read_record(self) -> bytes | None:
        """Return the bytes of eval.json; None without such a file."""
        path = self.folder / "eval.json"
        return path.read_bytes() if path.is_file() else None

    def _former(self, rerun: bool) -> tuple[Record, Flags] | None:
        """Return the record and the flags in the folder; None if they are not to be reused."""
        try:
            before, flags = Record.load(self.folder), Flags.load(self.folder)
        except UserError as error:
            self.aside = (f"damaged: {error}", FILES)
            return None
        reason = "computed again" if rerun else self._difference(before, flags)
        if reason is not None:
            self.aside = (reason, FILES)
            return None
        self._keep(before, "corruptions")  # they do not depend on the attacks
        return before, flags

    def _kept(self, former: tuple[Record, Flags] | None) -> list[AttackRow] | None:
        """Return the rows of attacks to reuse, and note why the files of others are moved aside.

        It is None if the clean result cannot be reused either. Workers keep the same rows, because
        they attack together what is left.
        """
        rows: Sequence[AttackRow] = []
        same: list[AttackRow] = []
        entries: list[bytes] = []
        if former is not None:
            before, flags = former
            rows = before.single_attacks
            same = self._same_rows(rows, flags)
            names = ["clean", *(row.name for row in same)]
            entries = [flags.right[name].tobytes() for name in names]
        count = count_shared(entries, 1 + len(self.attack_list))
        kept = same[: max(0, count - 1)]
        # A file of images may hold those of attacks that no longer count.
        whole = on_all_workers(self.images is None or len(kept) == len(rows))
        shared = count == len(entries)
        if shared and len(kept) < len(rows):
            self.aside = (f"another list of attacks from {rows[len(kept)].name} on", FILES)
        elif former is not None and not (shared and whole):
            self.aside = ("another worker has others", FILES)
        return kept if count and whole else None

    def _reuse(self, before: Record, flags: Flags, kept: Sequence[AttackRow]) -> None:
        """Fill `finished` with the results to reuse; `save` moves the other results aside."""
        rows = before.single_attacks
        if len(kept) == len(rows):
            if self.images is not None or len(kept) == len(self.attack_list):
                self._keep(before, "rounded_robust_accuracy")
            elif (self.folder / IMAGES).exists():
                self.aside = ("images of fewer attacks; evaluation.save adds to them", [IMAGES])
        if line := of_other_code([before, *kept]):
            self.details.say(line)
        if len(flags.label) == len(self.flags.label):
            self._keep(before, "versions", "commit", "provenance", "training_commit")
            self._keep(before, "training_hardware", "training_settings")
            right, provenance = flags.right["clean"], before.provenance
            self.finished.append(Result("clean", right, 0.0, provenance=provenance))
        for row, listed in zip(kept, self.attack_list, strict=False):
            counts = (row.attacked or 0, row.queries, row.gradients)
            right, seconds = flags.right[row.name], row.seconds or 0.0
            self.finished.append(
                Result(listed.name, right, seconds, listed, *counts, provenance=row.provenance)
            )
            self.former[row.name] = right
        names = [listed.name for listed in self.attack_list]
        whole = len(kept) == len(rows) and [row.name for row in rows] == names
        if whole and len(self.finished) > len(names):
            # After the same attacks on the same images the checks and curves are valid too.
            self._keep(before, "checks", "binarisation", "curve", "eps_curve", "closing")

    def _difference(self, before: Record, flags: Flags) -> str | None:
        """Return how the record differs from this evaluation; None if it does not."""
        if before.schema_version != SCHEMA:
            return f"of schema {before.schema_version}, this version writes schema {SCHEMA}"
        if not same_images(flags.digest, self.flags.digest):
            return "other images"
        if not _same_network(before.network, self.record.network):
            return "another network"
        for name in ("threat", "mode", "seed", "craft_precision"):
            if getattr(before, name) != getattr(self.record, name):
                return f"another {name}"
        if self.images is not None and not self.images.complete():
            return f"no adversarial images as {self.images.kind}"
        return None

    def _same_rows(self, rows: Sequence[AttackRow], flags: Flags) -> list[AttackRow]:
        """Return the rows, from the first on, that have the attacks of the list and all flags.

        The labels of attacks and suites may differ, but suites must begin at the same places.
        """
        kept: list[AttackRow] = []
        row_suite = listed_suite = None
        for row, listed in zip(rows, self.attack_list, strict=False):
            begins = row.suite != row_suite, listed.suite != listed_suite
            if begins[0] != begins[1] or bool(row.suite) != bool(listed.suite):
                break
            if not self._is_row_of(row, listed) or not _has_flags(row, flags):
                break
            kept.append(row)
            row_suite, listed_suite = row.suite, listed.suite
        return kept

    def _is_row_of(self, row: AttackRow, listed: ListedAttack) -> bool:
        """Return whether a row has the norm, settings, number of images and files of an attack."""
        norm = listed.threat.norm if listed.threat else None
        settings = plain(listed.attack.settings(listed.threat or self.threats[0]))
        count = min(listed.examples or self.record.examples, self.record.examples)
        expected = (norm, known_by(settings, self.files[listed.name]), count)
        return (row.norm, known_by(row.config, row.files), row.examples) == expected

    def _keep(self, before: Record, *names: str) -> None:
        """Copy those of the fields that the former record has set."""
        for name in names:
            if name in before.model_fields_set:
                setattr(self.record, name, getattr(before, name))


def _has_flags(row: AttackRow, flags: Flags) -> bool:
    """Return whether the flags of a row are complete and agree with its accuracy."""
    right = flags.right.get(row.name)
    if right is None or len(right) != row.examples:
        return False
    return bool(right.mean() == row.robust_accuracy)


def of_other_code(rows: Sequence[Record | AttackRow | CorruptionRow]) -> str | None:
    """Return a line on the other versions of the code that made some of the rows, if any did."""
    codes = [(row.provenance.version, row.provenance.commit) for row in rows if row.provenance]
    now = _code(versions()["tfrobust"], commit())
    others = sorted({_code(*code) for code in codes} - {now})
    if not others:
        return None
    return (
        f"results of {', '.join(others)} are kept, this is {now}; evaluation.rerun=true (in "
        "Python rerun=True) computes them again"
    )


def _code(version: str, code: str | None) -> str:
    return f"tfrobust {version}" + (f" ({code})" if code else "")


def _same_network(first: NetworkRow | None, second: NetworkRow | None) -> bool:
    """Return whether two networks have the same logits, and no different digests or gradients."""
    if first is None or second is None:
        return False
    if first.sha256 and second.sha256 and first.sha256 != second.sha256:
        return False
    if first.slopes and second.slopes and not _near(first.slopes, second.slopes, NEAR):
        return False
    return _near(first.logits, second.logits, SIMILAR, least=1.0)


def _near(first: Sequence[Any], second: Sequence[Any], share: float, least: float = 0.0) -> bool:
    """Return whether two lists of equal numbers, or of rows of them, are equal as far as both go.

    They may differ by a share of the largest number of the first, which counts as `least` at least.
    """
    n = min(len(first), len(second))
    one, other = np.array(first[:n]), np.array(second[:n])
    if one.shape != other.shape:
        return False
    atol = share * max(least, np.nanmax(np.abs(one), initial=0.0))
    return np.allclose(one, other, rtol=0, atol=atol, equal_nan=True)
