"""The settings by which an attack is known again, wherever the files that it reads lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PLACES = ("path", "source")  # settings that say where a file lies


def without_places(settings: Any) -> Any:
    """Return settings, or a list of them, without the places of files, at any depth."""
    if isinstance(settings, Mapping):
        kept = {key: value for key, value in settings.items() if key not in PLACES}
        return {key: without_places(value) for key, value in kept.items()}
    if isinstance(settings, list | tuple):
        return [without_places(item) for item in settings]
    return settings


def known_by(settings: Mapping[str, Any] | None, digests: Sequence[str]) -> Any:
    """Return settings that are equal only for attacks that do the same.

    Of the files that an attack reads, such as a surrogate, the content counts instead of the place.

    Args:
        settings: The settings as eval.json has them.
        digests: A digest of each file that the attack reads. Records of before there were any have
            none, and so the place counts.
    """
    if settings is None or not digests:
        return settings
    return {**without_places(settings), "files": list(digests)}


def digests_of(files: Iterable[Path]) -> list[str]:
    """Return the SHA-256 of each file."""
    sums = []
    for path in files:
        with path.open("rb") as content:
            sums.append(hashlib.file_digest(content, "sha256").hexdigest())
    return sums
