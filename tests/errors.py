"""The line in which a mistake of the user is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tfrobust.errors import UserError


def error_line(call: Callable[[], Any]) -> str:
    """Return the message of the `UserError` that a call raises; assert that it is one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
