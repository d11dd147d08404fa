"""Former results in the folder of a run, which must not stand beside another network."""

from __future__ import annotations

from pipelines.run_folder import RunFolder
from tfrobust.evaluation.aside import FILES, move_aside
from tfrobust.exporting import FORMATS

# The exported networks, and what attacks on them left.
EXPORTS = ("exports", *(kind.file for kind in FORMATS.values()))


def has_exports(folder: RunFolder) -> bool:
    """Return whether there are exported networks in the folder."""
    return any((folder.path / name).exists() for name in EXPORTS)


def keep_aside(stage: str, folder: RunFolder) -> None:
    """Move all that was made from the former network aside, and print where it is kept.

    Args:
        stage: The stage that brings another network.
        folder: The folder of the run.
    """
    if former := [name for name in (*FILES, *EXPORTS) if (folder.path / name).exists()]:
        kept = move_aside(folder.path, former)
        print(f"{stage}: the former results are kept in {kept} (another network)", flush=True)
