"""Results of former evaluations, which are kept in folders of their own."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from tfrobust.evaluation.image_file import IMAGES

# The files of an evaluation, and those that are made from it.
FILES = (
    "eval.json",
    "flags.npz",
    IMAGES,
    *("probes.npz", "valley.npz", "landscape.npz"),
    *("junit.xml", "exports.json", "report", "MODEL_CARD.md"),
    "tensorboard/attack_eval",
)


def move_aside(folder: Path, names: Sequence[str], copied: Collection[str] = ()) -> Path:
    """Move files of an evaluation to the first free folder evaluation.1, evaluation.2, ...

    eval.json is moved last. After an interruption, the next evaluation moves the rest.

    Args:
        folder: The folder of the evaluation.
        names: The names of the files and folders in it, some of FILES.
        copied: The names of files that are copied, and stay until others replace them.

    Returns:
        The folder in which they are now, with a copy of config.yaml.
    """
    number = 1
    while (aside := folder / f"evaluation.{number}").exists():
        number += 1
    for name in reversed(names):
        if (folder / name).exists():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            if name in copied:
                shutil.copy2(folder / name, aside / name)
            else:
                (folder / name).rename(aside / name)
    config = folder / "config.yaml"
    if config.is_file():
        (aside / config.name).write_bytes(config.read_bytes())
    return aside
