"""A run's folder: where its files lie, and which stages are done with which inputs."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tfrobust.errors import UserError
from tfrobust.io import write_text


class Folder:
    """WORKDIR/NAME and the paths in it. config_text: the content of config.yaml, once written."""

    def __init__(self, path: Path, config_text: str = ""):
        self.path, self.config_text = path, config_text
        self.config = path / "config.yaml"
        self.history = path / "history.csv"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model.keras"
        self.evaluation = path / "eval.json"
        self.flags = path / "flags.npz"
        self.adversarial = path / "adversarial.npz"
        self.probes = path / "probes.npz"
        self.valley = path / "valley.npz"
        self.landscape = path / "landscape.npz"
        self.extremes = path / "extremes.npz"
        self.saved_model = path / "saved_model"
        self.tensorboard = path / "tensorboard"
        self.search = path / "search"
        self.oracle = self.search / "oracle.json"
        self.trials = self.search / "trials.csv"
        self.best = self.search / "best.yaml"
        self.report = path / "report" / "index.html"
        self._stages = path / "stages.json"

    @property
    def lock(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    @contextlib.contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Within, no other process works here. Raises UserError where one does, or waits for it.

        The lock lies beside the folder, which may be moved aside, and goes with the process.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: expected a folder that no other run is at work in"
                ) from None
            yield

    def begun(self, stage: str) -> str | None:
        """The fingerprint with which a stage was last begun here."""
        return self._read().get(stage, {}).get("fingerprint")

    def done(self, stage: str, fingerprint: str, outputs: Iterable[Path]) -> bool:
        """Whether the stage was finished with these inputs and what it made is still there."""
        entry = self._read().get(stage, {})
        finished = entry.get("fingerprint") == fingerprint and entry.get("done")
        return bool(finished) and all(path.exists() for path in outputs)

    def mark(self, stage: str, fingerprint: str, done: bool, commit: str | None) -> None:
        """Note that a stage begins, or is done, and the commit of the code."""
        entry = {"fingerprint": fingerprint, "done": done, "commit": commit}
        write_text(self._stages, json.dumps(self._read() | {stage: entry}, indent=2) + "\n")

    def commit(self, stage: str) -> str | None:
        """The commit with which a stage was last run here."""
        return self._read().get(stage, {}).get("commit")

    def used(self) -> bool:
        """Whether a training has left anything here."""
        traces = (self.history, self.model, self.checkpoints, self.oracle)
        return any(path.exists() for path in traces)

    def write_config(self) -> None:
        """Write config.yaml: the config that what is in the folder was made with."""
        write_text(self.config, self.config_text)

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
            stages = json.loads(self._stages.read_text(encoding="utf-8"))
            return {stage: dict(entry) for stage, entry in stages.items()}
        except (ValueError, AttributeError, TypeError):
            raise UserError(
                f"{self._stages}: expected JSON, it is damaged; remove the folder, or only this "
                "file to have the folder kept aside and all stages run again"
            ) from None
