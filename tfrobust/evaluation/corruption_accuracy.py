"""The accuracy of a network on corrupted images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from tfrobust.corruptions import CORRUPTIONS, SEVERITIES, corrupted, require_channels_last
from tfrobust.distribution import on_all_workers, stack_workers
from tfrobust.errors import choose, is_int, require, require_at_least
from tfrobust.evaluation.batching import batches
from tfrobust.evaluation.crafting import Predict, computed_by
from tfrobust.evaluation.progress import progress_bar
from tfrobust.evaluation.recorder import Recorder, of_other_code
from tfrobust.provenance import circumstances
from tfrobust.record import CorruptionRow, CorruptionTable, Provenance

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Corruptions:
    """Corruptions whose images an evaluation classifies too (arXiv:1903.12261).

    Args:
        names: The corruptions, by their names in `tfrobust.corruptions.CORRUPTIONS`, or all.
        severities: The severities, from 1 to 5.
        examples: The number of images, from the first on; None for all that are evaluated.
    """

    names: tuple[str, ...] | str = ALL
    severities: tuple[int, ...] = SEVERITIES
    examples: int | None = None

    def __post_init__(self) -> None:
        for name in [self.names] if isinstance(self.names, str) else self.names:
            choose("names", name, [ALL, *CORRUPTIONS])
        require(self.chosen, "names", "at least one corruption, or all", list(self.names))
        whole = all(map(is_int, self.severities))
        valid = whole and len(self.severities) and {*self.severities} <= {*SEVERITIES}
        require(valid, "severities", "ints from 1 to 5", list(self.severities))
        object.__setattr__(self, "severities", tuple(map(int, self.severities)))
        if self.examples is not None:
            require_at_least(1, examples=self.examples)
            object.__setattr__(self, "examples", int(self.examples))

    @property
    def chosen(self) -> list[str]:
        """The names of the corruptions, each once and in the order of CORRUPTIONS."""
        names = [self.names] if isinstance(self.names, str) else self.names
        return [name for name in CORRUPTIONS if ALL in names or name in names]


def require_images(corruptions: Corruptions | bool, shape: Sequence[int]) -> None:
    """Raise a UserError if there are corruptions and the inputs of this shape are no images."""
    fits = len(shape) == 3 or not corruptions
    require(fits, "corruptions", f"false for inputs {tuple(shape)}, which are no images", True)
    if corruptions:
        require_channels_last("corruptions", shape)


@dataclasses.dataclass(frozen=True, eq=False)
class OnCorruptedImages:
    """The predictions on corrupted images.

    Attributes:
        predict: A function from images to classes.
        x: The clean images, float32 [N, H, W, C] in the box.
        y: The labels [N].
        box: The lowest and the highest value of an image.
        precision: The precision of the network.
        seed: The seed of the noise.
        batch_size: The number of images that are corrupted and classified together.
        progress: Whether to show a bar on a terminal.
    """

    predict: Predict
    x: np.ndarray
    y: np.ndarray
    box: tuple[float, float]
    precision: str
    seed: int
    batch_size: int
    progress: bool

    def measure(self, corruptions: Corruptions, recorder: Recorder | None) -> CorruptionTable:
        """Return the accuracy under each corruption at each severity.

        With a recorder the table is saved after each corruption, and rows that it holds already are
        not computed again. A table of other images or severities, or of more corruptions, is kept
        in a copy of eval.json.
        """
        names, severities = corruptions.chosen, sorted(set(corruptions.severities))
        examples = min(corruptions.examples or len(self.x), len(self.x))
        rows: dict[str, CorruptionRow] = {}

        def save() -> CorruptionTable:
            table = _table(names, rows, severities, examples)
            if recorder is not None and recorder.record.corruptions != table:
                recorder.record.corruptions = table
                recorder.save()
            return table

        if recorder is not None and recorder.record.corruptions is not None:
            rows |= _reused(recorder, recorder.record.corruptions, names, severities, examples)
        rows = {name: rows[name] for name in names if on_all_workers(name in rows)}
        waiting = [name for name in names if name not in rows]
        total = len(waiting) * len(severities) * examples
        with progress_bar("corruptions" if self.progress else None, total=total) as bar:
            for name in waiting:
                bar.set_postfix_str(name, refresh=False)
                rows[name] = self._row(name, severities, examples, bar)
                save()
        table = save()
        if recorder is not None:
            recorder.details.say(f"corruptions: {table.accuracy:.2%} of {examples}")
        return table

    def _row(
        self, name: str, severities: Sequence[int], examples: int, bar: tqdm[Any]
    ) -> CorruptionRow:
        begun, (low, high) = time.perf_counter(), self.box
        right = np.zeros(len(severities), np.int32)
        for place, severity in enumerate(severities):
            for rows in batches(examples, self.batch_size):
                clean = self.x[rows.start : min(rows.stop, examples)]
                unit = np.clip((clean - low) / (high - low), 0, 1)
                images = low + (high - low) * corrupted(unit, name, severity, self.seed, rows.start)
                classes = self.predict(np.clip(images, low, high))
                right[place] += (classes == self.y[rows.start : rows.start + len(clean)]).sum()
                bar.update(len(clean))
        # All workers take the first one's predictions, as another may round a tie differently.
        right = stack_workers(right)[0]
        made_with: Any = {**circumstances(), **computed_by(), "precision": self.precision}
        return CorruptionRow(
            name=name,
            accuracy=[int(count) / examples for count in right],
            seconds=round(time.perf_counter() - begun, 2),
            provenance=Provenance(seed=self.seed, examples=examples, **made_with),
        )


def _table(
    names: Sequence[str],
    rows: Mapping[str, CorruptionRow],
    severities: list[int],
    examples: int,
) -> CorruptionTable:
    """Return the table of the rows so far, which has a mean once it is complete."""
    accuracies = [rows[name].accuracy for name in names if name in rows]
    return CorruptionTable(
        accuracy=float(np.mean(accuracies)) if len(accuracies) == len(names) else None,
        examples=examples,
        severities=severities,
        rows=[rows[name] for name in names if name in rows],
        pending=[name for name in names if name not in rows],
    )


def _reused(
    recorder: Recorder,
    before: CorruptionTable,
    names: Sequence[str],
    severities: list[int],
    examples: int,
) -> dict[str, CorruptionRow]:
    """Return the rows of a former table that need not be computed again, by name."""
    same = (before.severities, before.examples) == (severities, examples)
    rows = {row.name: row for row in before.rows if same and row.name in names}
    if len(rows) < len(before.rows):
        recorder.aside = ("other corruptions", ["eval.json"])
    if line := of_other_code(list(rows.values())):
        recorder.details.say(line)
    return rows
