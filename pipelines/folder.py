"""A run's folder: where its files lie, and which stages are done with which inputs."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfrobust.io import write_text
from tfrobust.registry import UserError

# Where files lie, whether they may be fetched, how often a run is saved and how often it may go
# back changes nothing that it has done.
PLACES = ("dir", "download", "path", "init_from", "checkpoint_minutes", "rollbacks")


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

    @contextlib.contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Within, no other process works here. Raises UserError where one does, or waits for it.

        The lock lies beside the folder, which may be moved aside, and goes with the process.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
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


def fingerprint(
    config: Mapping[str, Any], sections: Iterable[str] = (), files: Iterable[Path] = ()
) -> str:
    """A hash of sections of the config and of the content of files."""
    chosen = {s: _without_places(config.get(s)) for s in sections}
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode())
    for file in files:
        if file.is_dir():
            digest.update(_listing(file))
            continue
        with contextlib.suppress(FileNotFoundError), file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _without_places(section: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    kept = {key: value for key, value in section.items() if key not in PLACES}
    return {key: _without_places(value) if key == "extra" else value for key, value in kept.items()}


@functools.cache
def _listing(folder: Path) -> bytes:
    """A hash of the names and sizes of all files below: to read them all would take too long."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    told = [f"{file.relative_to(folder)} {file.stat().st_size}" for file in files]
    return hashlib.sha256("\n".join(told).encode()).digest()
