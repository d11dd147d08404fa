"""An evaluation in a folder: resumed from its files, saved after every result."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfrobust.errors import UserError, require
from tfrobust.evaluation.attack_list import ListedAttack
from tfrobust.evaluation.crafting import LogitsFn, Predict
from tfrobust.evaluation.image_file import IMAGES, ImageFile
from tfrobust.evaluation.results import Result, plain, row_of, worst_case
from tfrobust.io import lock, writable
from tfrobust.provenance import commit, versions
from tfrobust.record import (
    SCHEMA,
    AttackRow,
    DataRow,
    Flags,
    NetworkRow,
    Record,
    SubsetRow,
    ThreatRow,
    digests,
    same_images,
    subsets,
)
from tfrobust.threat import Threat

# What an evaluation leaves in its folder, and what is made from it.
FILES = (
    "eval.json",
    "flags.npz",
    IMAGES,
    "probes.npz",
    "valley.npz",
    "landscape.npz",
    "report",
    "tensorboard/attack_eval",
)
LOCK = ".lock"  # held by the evaluation that is at work
SIMILAR = 1e-4  # of the largest logit: rounding by other threads


@dataclasses.dataclass(frozen=True)
class Details:
    """Descriptions that a record keeps beside its numbers.

    Args:
        data: the name of the data set.
        split: the name of the split.
        index: int [N], the places of the images in the split, 0 to N - 1 by default.
        class_names: the names of the classes.
        model: the evaluated network, as a config describes it.
        digest: a digest of the network's files.
        training_commit: the commit of the code that trained the network.
        curve: a once-for-all network at each of its points, such as {"lambda": 0.5}; the first is
            the evaluated network itself.
        say: called with each line about the progress.
    """

    data: str = "arrays"
    split: str = "test"
    index: np.ndarray | None = None
    class_names: Sequence[str] = ()
    model: dict[str, Any] | None = None
    digest: str | None = None
    training_commit: str | None = None
    curve: Sequence[tuple[dict[str, float], LogitsFn]] = ()
    say: Callable[[str], None] = print


class Recorder:
    """The record of one evaluation in a folder.

    Results in the folder are reused if the network, images, threat, mode and seed are the same, up
    to the first attack that differs; `finished` holds them. All other results are moved aside, not
    overwritten, and not before there is something to save, so that an evaluation that is refused
    changes nothing. No other evaluation may use the folder until `close`.

    network: what tells the network from others. attack_list: fitted to it. save: keep the
    adversarial images, as "float32" or "uint8"; predict judges rounded ones. rerun: take up
    nothing.
    """

    def __init__(
        self,
        folder: Path,
        network: NetworkRow,
        x: np.ndarray,
        y: np.ndarray,
        threat: Threat,
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
        self.folder, self.threat, self.attack_list, self.details = (
            folder,
            threat,
            attack_list,
            details,
        )
        index = np.arange(len(x)) if details.index is None else np.asarray(details.index)
        require(len(index) >= len(x), "details.index", f"a place for {len(x)} images", len(index))
        self.flags = Flags(index[: len(x)], y, {}, digests(x, y))
        self.images = None if save is None else ImageFile(folder, save, x)
        self.predict = predict
        self.files = {listed.name: _digests(listed) for listed in attack_list}
        self.record = Record(
            schema_version=SCHEMA,
            examples=len(x),
            clean_accuracy=0.0,
            attacks=[],
            threat=ThreatRow(norm=threat.norm, eps=threat.eps, box=list(threat.box)),
            seed=seed,
            mode=mode,
            craft_precision=craft_precision,
            data=DataRow(name=details.data, split=details.split),
            model=details.model,
            network=network,
            training_commit=details.training_commit,
        )
        self.results: list[Result] = []
        self.finished: list[Result] = []
        self.former: dict[str, np.ndarray] = {}  # flags by the names that eval.json has until saved
        self.aside: tuple[str, Sequence[str]] | None = None  # what `save` moves aside, and why
        require(writable(folder), "folder", "a folder that can be written to", str(folder))
        self.lock: int | None = None
        if (folder / LOCK).exists():
            self._take_folder()
        self.seen = self._content()
        if self.seen is not None:
            self._take_up(rerun)
        self.taken_up = {result.name for result in self.finished}
        self.waiting = set(self.taken_up)

    def add(self, result: Result) -> None:
        """Save a result, unless it was taken up; its images are not kept in memory."""
        self.results.append(result)
        self.waiting.discard(result.name)
        new = result.name not in self.taken_up
        if result.name == "clean" and new:
            self.record.versions, self.record.commit = versions(), commit()
            self.record.provenance = result.provenance
        if new:
            if not self.waiting:  # else eval.json would lose what is still to come
                self.save()
            self.details.say(f"{result.name}: {result.accuracy:.2%} of {len(result.robust)}")
        self.results[-1] = dataclasses.replace(result, images=None)

    def save(self) -> None:
        """Write all results so far, eval.json last."""
        self._make_room()
        record, attacks = self.record, self.results[1:]
        worst = worst_case(self.results)
        record.clean_accuracy = self.results[0].accuracy
        record.robust_accuracy = float(worst.mean()) if attacks else None
        record.worst_case_examples = len(worst)
        rights = subsets([result.robust for result in attacks], self.results[0].robust)
        record.subsets = [
            SubsetRow(examples=n, robust_accuracy=float(right.mean()))
            for n, right in rights.items()
        ]
        record.attacks = [
            row_of(result, self.threat, self.files.get(result.name, ())) for result in attacks
        ]
        done = {result.name for result in attacks}
        record.pending = [listed.name for listed in self.attack_list if listed.name not in done]
        if self.images is not None:
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

    # ------------------------------------------------------------------------ what is there
    def _make_room(self) -> None:
        """Lock the folder, unless this is done, and move aside the files of other evaluations."""
        if self.lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_folder()
            expected = "a folder that no other evaluation has written to meanwhile"
            require(self._content() == self.seen, "folder", expected, str(self.folder))
        if self.aside is not None:
            self._move_aside(*self.aside)
            self.aside = None

    def _take_folder(self) -> None:
        try:
            self.lock = lock(self.folder / LOCK)
        except BlockingIOError:
            expected = "a folder that no other evaluation is at work in"
            raise UserError(f"folder: expected {expected}, received {str(self.folder)!r}") from None

    def _content(self) -> bytes | None:
        path = self.folder / "eval.json"
        return path.read_bytes() if path.is_file() else None

    def _take_up(self, rerun: bool) -> None:
        """Fill `finished` with the results that can be reused; others are moved aside later."""
        try:
            before, flags = Record.load(self.folder), Flags.load(self.folder)
        except UserError as error:
            self.aside = (f"damaged: {error}", FILES)
            return
        rows = [row for row in before.attacks if row.name not in before.suites]
        reason = "computed again" if rerun else self._difference(before, flags)
        if reason is not None:
            self.aside = (reason, FILES)
            return
        kept = self._same_rows(rows, flags)
        if len(kept) < len(rows):
            reason = f"another list of attacks from {rows[len(kept)].name} on"
            self.aside = (reason, FILES)
            if self.images is not None:  # the file may hold images of attacks that are gone
                return
        elif self.images is None and len(kept) < len(self.attack_list):
            if (self.folder / IMAGES).exists():
                self.aside = ("images of fewer attacks; evaluation.save adds to them", [IMAGES])
        else:
            self._keep(before, "rounded_robust_accuracy")
        if line := of_other_code([before, *kept]):
            self.details.say(line)
        if len(flags.label) == len(self.flags.label):
            self._keep(before, "versions", "commit", "provenance", "training_commit")
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
        if not reason and [row.name for row in rows] == names and len(self.finished) > len(names):
            # Nothing was moved aside, nothing is new, and the clean result stands too.
            self._keep(before, "checks", "curve", "eps_curve", "closing")

    def _difference(self, before: Record, flags: Flags) -> str | None:
        """Return how the record differs from this evaluation; None if it belongs to it."""
        if before.schema_version != SCHEMA:
            return f"of schema {before.schema_version}, this version writes schema {SCHEMA}"
        if not same_images(flags.digest, self.flags.digest):
            return "other images"
        if not _same_network(before.network, self.record.network):
            return "another network"
        for name in ("threat", "mode", "seed", "craft_precision"):
            if getattr(before, name) != getattr(self.record, name):
                return f"another {name}"
        if self.images is not None and not self.images.whole():
            return f"no adversarial images as {self.images.kind}"
        return None

    def _same_rows(self, rows: Sequence[AttackRow], flags: Flags) -> list[AttackRow]:
        """Return the rows, from the first on, that are those of the attack_list."""
        kept: list[AttackRow] = []
        suites: tuple[str | None, str | None] = (None, None)
        for row, listed in zip(rows, self.attack_list, strict=False):
            count = min(listed.examples or self.record.examples, self.record.examples)
            right = flags.right.get(row.name, np.zeros(0))
            same = (
                row.config == plain(listed.attack.settings(self.threat)),
                row.examples == count,
                bool(row.suite) == bool(listed.suite),
                (row.suite == suites[0]) == (listed.suite == suites[1]),
                row.files == self.files[listed.name],
                len(right) == count and right.mean() == row.robust_accuracy,
            )
            if not all(same):
                break
            kept.append(row)
            suites = (row.suite, listed.suite)
        return kept

    def _keep(self, before: Record, *names: str) -> None:
        for name in names:
            if name in before.model_fields_set:
                setattr(self.record, name, getattr(before, name))

    def _move_aside(self, reason: str, names: Sequence[str]) -> None:
        """Move files of an evaluation to the first free folder evaluation.1, evaluation.2, ...

        eval.json is moved last, so that after an interruption the rest is still seen as results.
        """
        number = 1
        while (aside := self.folder / f"evaluation.{number}").exists():
            number += 1
        for name in reversed(names):
            if (self.folder / name).exists():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).rename(aside / name)
        config = self.folder / "config.yaml"
        if config.is_file():
            (aside / config.name).write_bytes(config.read_bytes())
        self.details.say(f"the former results are kept in {aside} ({reason})")


def of_other_code(rows: Sequence[Record | AttackRow]) -> str | None:
    """Return a line that names other versions of the code that made some of these rows, if any."""
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


def _digests(listed: ListedAttack) -> list[str]:
    """Return the SHA-256 of each file that the attack reads."""
    sums = []
    for path in listed.attack.files:
        with path.open("rb") as content:
            sums.append(hashlib.file_digest(content, "sha256").hexdigest())
    return sums


def _same_network(first: NetworkRow | None, second: NetworkRow | None) -> bool:
    if first is None or second is None:
        return False
    if first.sha256 and second.sha256 and first.sha256 != second.sha256:
        return False
    n = min(len(first.logits), len(second.logits))
    one, other = np.array(first.logits[:n]), np.array(second.logits[:n])
    if one.shape != other.shape:
        return False
    atol = SIMILAR * max(1.0, np.nanmax(np.abs(one), initial=0.0))
    return np.allclose(one, other, rtol=0, atol=atol, equal_nan=True)
