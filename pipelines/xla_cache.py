"""A cache, in the user's home, of the programs that XLA compiles."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FLAGS = "TF_XLA_FLAGS"  # TensorFlow reads this variable when it first compiles
MOST = 2 * 2**30  # bytes of programs to keep; the oldest programs are deleted


def keep_programs() -> None:
    """Let TensorFlow keep compiled programs in `~/.cache/tfrobust/xla` for the next start.

    Nothing changes if the user has set flags for XLA, or if the folder cannot be written to.
    """
    if FLAGS in os.environ:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "tfrobust" / "xla" / _folder_name()
        folder.mkdir(parents=True, exist_ok=True)
        forget_old(folder)
    except (OSError, RuntimeError):  # there is no home, or no folder can be made in it
        return
    if os.access(folder, os.W_OK) and " " not in str(folder):  # TensorFlow splits flags at blanks
        os.environ[FLAGS] = f"--tf_xla_persistent_cache_directory={folder}"


def _folder_name() -> str:
    """Return TensorFlow's version and the machine's name, which the programs' file names lack."""
    tensorflow = "unknown"
    for name in ("tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            tensorflow = version(name)
            break
    return f"{tensorflow}-{platform.node() or 'unnamed'}"


def forget_old(folder: Path, most: int = MOST) -> None:
    """Delete the oldest files of a folder until it holds at most `most` bytes."""
    files = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another start deletes too
            files.append((file, file.stat()))
    left = most
    for file, stat in sorted(files, key=lambda pair: pair[1].st_mtime, reverse=True):
        left -= stat.st_size
        if left < 0:
            file.unlink(missing_ok=True)
