"""Files that are whole or absent: written aside, then renamed."""

from __future__ import annotations

import fcntl
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

# What reading an .npz file or an entry of it raises where it is damaged, or something else.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, its name ending alike, then put it in its place."""
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
    """Return whether a folder can be written to or, where there is none yet, be made."""
    place = Path(folder).absolute()
    place = next(path for path in (place, *place.parents) if path.exists())
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def lock(path: Path) -> int:
    """Return the descriptor of a file, made if need be, that no other holds until it is closed.

    Raises BlockingIOError where another does.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
