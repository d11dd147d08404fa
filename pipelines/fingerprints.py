"""Fingerprints of a stage's inputs: one hash of sections of the config and contents of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

from tfrobust.data.folder import images_of, split_folders

# Keys that change no result: where files lie, whether they may be downloaded, how often a run is
# saved and how often it may go back to a checkpoint.
PLACES = ("dir", "download", "path", "init_from", "checkpoint_minutes", "rollbacks")
# Bytes: the largest image that is read, and the most that is read of a folder of images.
SMALL, MOST = 2**16, 2**28


def fingerprint(
    config: Mapping[str, Any], sections: Iterable[str] = (), files: Iterable[Path] = ()
) -> str:
    """Return a hash of sections of a config and of the contents of files.

    Nothing is cached between calls, because files may change.

    Args:
        config: The config.
        sections: The top-level keys that count.
        files: Files, through links. A missing file is skipped. A folder is one of images as
            `open_folder` reads it: its classes and images count.

    Returns:
        A SHA-256 hash in hexadecimal.
    """
    values = {section: _without_places(config.get(section)) for section in sections}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    for file in files:
        if file.is_dir():
            digest.update(_of_images(file))
            continue
        with contextlib.suppress(FileNotFoundError), file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _without_places(section: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    values = {key: value for key, value in section.items() if key not in PLACES}
    if "extra" in values:
        values["extra"] = _without_places(values["extra"])
    return values


def _of_images(folder: Path) -> bytes:
    """Return a hash of the classes of a folder of images, and of each image's name and content.

    Reading a million images would take minutes. For an image above 64 KiB, and for all images
    after the first 256 MiB that are read, size and time of the last change count instead of the
    content. So a copy that does not keep these times has another hash if the folder is large, and
    the same hash if its images are few and small.
    """
    digest, left = hashlib.sha256(), MOST
    for split, place in split_folders(folder).items():
        for name, images in images_of(place)[0].items():
            digest.update(_line(split, name))
            for image in images:
                size, identity = _identity(image, min(SMALL, left))
                left -= size
                digest.update(_line(os.path.basename(image), identity))
    return digest.digest()


def _identity(image: str, most: int) -> tuple[int, str]:
    """Return how many bytes of an image were read, and its hash, or its size and time of change.

    An image of more than `most` bytes is not read.
    """
    try:
        status = os.stat(image)
    except OSError:  # a link to nothing is an error where images are read, not here
        return 0, "none"
    if not S_ISREG(status.st_mode) or status.st_size > most:
        return 0, f"{status.st_size} bytes, changed at {status.st_mtime_ns}"
    return status.st_size, hashlib.sha256(Path(image).read_bytes()).hexdigest()


def _line(*names: str) -> bytes:
    return b"/".join(os.fsencode(name) for name in names) + b"\0"
