"""Products of cases: the fast suite runs a few of them and the nightly suite all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Return the cases for `parametrize`, all but the `fast` ones marked slow."""
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]
