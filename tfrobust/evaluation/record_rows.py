"""Rows of eval.json about what an evaluation was given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfrobust.evaluation.results import plain
from tfrobust.record import DataRow, ThreatRow
from tfrobust.threat import Threat


def threat_row(threat: Threat) -> ThreatRow:
    """Return the row about a threat."""
    factors = {} if threat.per_feature is None else {"per_feature": plain(threat.per_feature)}
    return ThreatRow(norm=threat.norm, eps=threat.eps, box=list(threat.box), **factors)


def data_row(name: str, split: str, class_names: Sequence[str], x: np.ndarray) -> DataRow:
    """Return the row about the data set and the split from which inputs x [N, ...] come."""
    row = DataRow(name=name, split=split)
    if x.ndim != 4:  # fields that are not set are not written to the file
        row.shape = list(x.shape[1:])
    if class_names:
        row.class_names = list(class_names)
    return row
