"""Fingerprints of a stage's inputs: a hash of sections of the config and of the files it reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

from tfrobust.attack_settings import without_places
from tfrobust.data.folder import images_of, split_folders

# Keys that change no result: where files lie, whether they may be downloaded, how often a run is
# saved and how often it may go back to a checkpoint.
IRRELEVANT = ("dir", "download", "path", "init_from", "checkpoint_minutes", "rollbacks")
# Keys of attacks and lists of them, whose files are fingerprinted, too.
ATTACKS = ("attack", "attacks", "validation_attack")
LARGEST_IMAGE = 2**16  # bytes; of a larger image the content is not read
MOST_BYTES = 2**28  # the number of bytes that are read from one set of images


def fingerprint(
    config: Mapping[str, Any], sections: Iterable[str] = (), files: Iterable[Path] = ()
) -> str:
    """Return a hash of sections of a config and of the contents of files.

    Nothing is cached between calls, because files may change.

    Args:
        config: The config.
        sections: The top-level keys that count.
        files: Files, or links to them; missing ones are skipped. A directory stands for the classes
            and images that `open_folder` reads from it.

    Returns:
        A SHA-256 hash in hexadecimal.
    """
    values = {section: _relevant(section, config.get(section)) for section in sections}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    for file in files:
        if file.is_dir():
            digest.update(_of_images(file))
            continue
        with contextlib.suppress(FileNotFoundError), file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _relevant(name: str, section: Any) -> Any:
    """Return a section without the keys that change no result, here, in attacks and data.extra."""
    if name in ATTACKS:
        return without_places(section)
    if not isinstance(section, Mapping):
        return section
    values = {key: value for key, value in section.items() if key not in IRRELEVANT}
    nested = {key: _relevant(key, values[key]) for key in ("extra", *ATTACKS) if key in values}
    return values | nested


def _of_images(directory: Path) -> bytes:
    """Return a hash of the classes in a directory of images, and of each image's name and content.

    Reading a million images would take minutes. For an image above 64 KiB, and for all images
    after the first 256 MiB that are read, size and time of the last change count instead of the
    content. A copy with other times therefore has the same hash only if its images are few and
    small.
    """
    digest, left = hashlib.sha256(), MOST_BYTES
    for split, path in split_folders(directory).items():
        for name, images in images_of(path)[0].items():
            digest.update(_line(split, name))
            for image in images:
                size, identity = _identity(image, min(LARGEST_IMAGE, left))
                left -= size
                digest.update(_line(os.path.basename(image), identity))
    return digest.digest()


def _identity(image: str, most: int) -> tuple[int, str]:
    """Return the number of bytes read from an image, and its hash or else its size and time.

    An image of more than `most` bytes is not read: its size and time of change identify it.
    """
    try:
        status = os.stat(image)
    except OSError:  # a broken link is an error only when the images are read
        return 0, "none"
    if not S_ISREG(status.st_mode) or status.st_size > most:
        return 0, f"{status.st_size} bytes, changed at {status.st_mtime_ns}"
    return status.st_size, hashlib.sha256(Path(image).read_bytes()).hexdigest()


def _line(*names: str) -> bytes:
    return b"/".join(os.fsencode(name) for name in names) + b"\0"
