"""What a stage was run with, in one hash: sections of the config and what its files hold."""

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

# Where files lie, whether they may be fetched, how often a run is saved and how often it may go
# back changes nothing that it has done.
PLACES = ("dir", "download", "path", "init_from", "checkpoint_minutes", "rollbacks")
SMALL, MOST = 2**16, 2**28  # bytes of a file, and of all files of a folder, that are read


def fingerprint(
    config: Mapping[str, Any], sections: Iterable[str] = (), files: Iterable[Path] = ()
) -> str:
    """A hash of sections of the config and of the content of files; links are followed.

    files: a folder among them is one of images (`open_folder`), and all that is read of it counts,
    by `_of_images`. Nothing is remembered from one call to the next: files may have changed.
    """
    chosen = {s: _without_places(config.get(s)) for s in sections}
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode())
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
    kept = {key: value for key, value in section.items() if key not in PLACES}
    return {key: _without_places(value) if key == "extra" else value for key, value in kept.items()}


def _of_images(folder: Path) -> bytes:
    """A hash of the classes of a folder of images, and of the name, size and content of each image.

    To read a million images would take minutes: of one above 64 KiB, and of all after the first
    256 MiB that are read, the time of the last change counts instead. A copy of a large folder that
    does not keep the times is therefore another folder; one of small images is the same.
    """
    digest, left = hashlib.sha256(), MOST
    for split, place in split_folders(folder).items():
        for name, images in images_of(place)[0].items():
            digest.update(_line(split, name))
            for image in images:
                size, told = _told(image, min(SMALL, left))
                left -= size
                digest.update(_line(os.path.basename(image), told))
    return digest.digest()


def _told(image: str, most: int) -> tuple[int, str]:
    """What tells an image from others of its name; and the bytes that were read of it."""
    try:
        status = os.stat(image)
    except OSError:  # a link to nothing: told when it is read
        return 0, "none"
    if not S_ISREG(status.st_mode) or status.st_size > most:
        return 0, f"{status.st_size} bytes, changed at {status.st_mtime_ns}"
    return status.st_size, hashlib.sha256(Path(image).read_bytes()).hexdigest()


def _line(*names: str) -> bytes:
    return b"/".join(os.fsencode(name) for name in names) + b"\0"
