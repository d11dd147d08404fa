"""Files that are either complete or absent: each is written under another name, then renamed."""

from __future__ import annotations

import fcntl
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

# Errors of reading a damaged .npz file, or a file of another kind.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file by `write`, to a temporary file beside `path` that then replaces it.

    The temporary name has the same suffix, as writers may choose a format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def writable(folder: Path) -> bool:
    """Return whether a folder can be written to or, if it does not exist, be created."""
    place = Path(folder).absolute()
    place = next(path for path in (place, *place.parents) if path.exists())
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def lock(path: Path) -> int:
    """Lock a file, created if need be, and return its descriptor; closing it releases the lock.

    Raises BlockingIOError if another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
