"""What the numbers in a column of a comparison were measured with."""

import json
from collections.abc import Iterable, Sequence

from tfrobust.attack_settings import known_by
from tfrobust.record import AttackRow, Record
from tfrobust.report.record import RunRecord
from tfrobust.report.summary import FEWER, WORST

MISSED = " †"  # follows the label of runs of which one missed a requirement
UNFINISHED = " ‡"  # follows the label of runs of which the evaluation of one is not finished

Measure = tuple[int, tuple[str, ...]]


def marks(records: Iterable[RunRecord]) -> str:
    """Return the marks that follow the label of runs; with a mark they are never the best."""
    runs = list(records)
    pending = any(run.evaluation.pending for run in runs)
    return MISSED * any(run.missed for run in runs) + UNFINISHED * pending


def comparable(records: Sequence[Record], name: str) -> bool:
    """Return whether a row of `accuracy_rows` has the same meaning in all evaluations that have it.

    The number of images has to be the same, and so have the attacks behind it, in their settings.
    """
    measures = {measure(record, name) for record in records} - {None}
    return len(measures) <= 1


def measure(record: Record, name: str) -> Measure | None:
    """Return the number of images of a row and the attacks behind it; None without such a row."""
    if name == "clean":
        return record.examples, ()
    table = record.corruptions
    if name.startswith("corruptions"):
        return None if table is None else (table.examples, ())
    named = [row for row in record.attacks if row.name == name]
    if named:
        rows, examples = _up_to(record, named[0]), named[0].examples
    else:
        examples, norm = _worst_case(record, name)
        rows = [row for row in record.single_attacks if norm in (None, row.norm)]
        if record.mode == "each" or name.startswith(FEWER):
            rows = [row for row in rows if row.examples >= examples]
        else:  # in a cascade, an image that an attack broke is broken for every later one
            last = max((n for n, row in enumerate(rows) if row.examples == examples), default=-1)
            rows = rows[: last + 1]
    parts = [(row.norm, known_by(row.config, row.files), row.examples) for row in rows]
    attacks = sorted(json.dumps(part, sort_keys=True) for part in parts)
    return (examples, tuple(attacks)) if examples else None


def _up_to(record: Record, row: AttackRow) -> list[AttackRow]:
    """Return the attacks on which the row of an attack or a suite depends."""
    suite = row.name if row.name in record.suites else row.suite
    singles = record.single_attacks
    members = [other for other in singles if suite is not None and other.suite == suite]
    last = members[-1] if row.name == suite else row
    before = [other for other in singles[: singles.index(last) + 1] if other.norm == last.norm]
    if record.mode == "each":
        return [other for other in before if other is last or other in members]
    return before


def _worst_case(record: Record, name: str) -> tuple[int, str | None]:
    """Return the number of images of a worst case, 0 without it, and its norm or None for all."""
    if name == WORST:
        return record.worst_case_examples or 0, None
    for norm in record.norms:
        if name == f"{norm.norm}: {WORST}":
            return norm.examples, norm.norm
    sizes = [subset.examples for subset in record.subsets]
    return next((n for n in sizes if name == f"{FEWER}{n}"), 0), None
