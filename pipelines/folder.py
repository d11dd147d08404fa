"""A run's folder: where its files lie, and which stages are done with which inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfrobust.io import write_text
from tfrobust.registry import UserError

# Where the data lie, and whether they may be fetched, changes no result.
PLACES = ("dir", "download")


class Folder:
    """WORKDIR/NAME and the paths in it."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"
        self.history = path / "history.csv"
        self.checkpoints = path / "checkpoints"
        self.best = path / "checkpoints" / "best.weights.h5"
        self.model = path / "model.keras"
        self.evaluation = path / "eval.json"
        self.flags = path / "flags.npz"
        self.probes = path / "probes.npz"
        self.saved_model = path / "saved_model"
        self.tensorboard = path / "tensorboard"
        self.report = path / "report" / "index.html"
        self._stages = path / "stages.json"

    def begun(self, stage: str) -> str | None:
        """The fingerprint with which a stage was last begun here."""
        return self._read().get(stage, {}).get("fingerprint")

    def done(self, stage: str, fingerprint: str) -> bool:
        """Whether the stage was finished with these inputs."""
        return self._read().get(stage) == {"fingerprint": fingerprint, "done": True}

    def mark(self, stage: str, fingerprint: str, done: bool) -> None:
        """Note that a stage begins, or is done."""
        stages = self._read() | {stage: {"fingerprint": fingerprint, "done": done}}
        write_text(self._stages, json.dumps(stages, indent=2) + "\n")

    def move_aside(self) -> Path:
        """Rename the folder to the first free NAME.1, NAME.2, ... and return that path."""
        number = 1
        while (kept := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        return self.path.rename(kept)

    def _read(self) -> dict[str, Any]:
        if not self._stages.is_file():
            return {}
        try:
            return dict(json.loads(self._stages.read_text(encoding="utf-8")))
        except ValueError:
            raise UserError(
                f"{self._stages}: expected JSON, it is damaged; remove it to run all stages again"
            ) from None


def fingerprint(
    config: Mapping[str, Any], sections: Iterable[str] = (), files: Iterable[Path] = ()
) -> str:
    """A hash of sections of the config and of the content of files."""
    chosen = {
        s: {k: v for k, v in config[s].items() if not (s == "data" and k in PLACES)}
        if isinstance(config.get(s), Mapping)
        else config.get(s)
        for s in sections
    }
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode())
    for file in files:
        digest.update(file.read_bytes() if file.is_file() else b"absent")
    return digest.hexdigest()
