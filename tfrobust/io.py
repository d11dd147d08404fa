"""Files that are either complete or absent: each is written under another name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import lzma
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

# The errors that reading a damaged .npz file, or a file of another kind, may raise. RuntimeError is
# that of an encrypted one, and of one that is compressed in a way that Python does not know.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)

# The errors of a place that cannot be written to. TensorFlow's own errors have only their texts.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)

PARTIAL = ".partial-"  # begins the names of files that are being written


def unwritable(error: object, path: Path | None = None) -> OSError | None:
    """Return an OSError if the text of an error says that a place cannot be written to, else None.

    `path` is the place, for the message.
    """
    for number in UNWRITABLE:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number), None if path is None else str(path))
    return None


def in_home(path: str | Path) -> Path:
    """Return a path with the user's home in place of "~".

    Unlike Path.expanduser, it leaves the name of an unknown user as it is.
    """
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def literal(path: Path) -> Iterator[Path]:
    """Return a context with a path by which TensorFlow reads the files below `path`.

    It takes the path of a checkpoint or a SavedModel for a pattern, in which "[" begins a set of
    characters. A path with such a sign gets a link without it, which lives as long as the context.
    """
    if not re.search(r"[*?\[\\]", str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "link")
        link.symlink_to(path.resolve(), target_is_directory=True)
        yield link


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a temporary file beside `path`, which then replaces `path`.

    The temporary name has the same suffix, because writers may choose a format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove the temporary files that `write_atomically` left in a folder when it was killed."""
    for partial in folder.glob(f"{PARTIAL}[0-9]*-*"):
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. Bytes of a path that are not UTF-8 become escapes."""
    write_atomically(
        path, lambda temporary: temporary.write_text(text, "utf-8", errors="backslashreplace")
    )


def writable(folder: Path) -> bool:
    """Return whether a folder can be written to or, if it does not exist, be created."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def lock(path: Path) -> int:
    """Lock a file, which is created if it does not exist, and return its descriptor.

    Closing the descriptor releases the lock.
    Raises BlockingIOError if another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
