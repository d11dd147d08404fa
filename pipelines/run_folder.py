"""The folder of a run: the paths of its files, and which stages are done with which inputs."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfrobust.errors import UserError
from tfrobust.io import remove_partial, write_text
from tfrobust.provenance import commit, hardware


class RunFolder:
    """The folder WORKDIR/NAME of a run and the paths in it.

    Args:
        path: The folder, which need not exist yet.
        config_text: The text that `write_config` writes to config.yaml.
    """

    def __init__(self, path: Path, config_text: str = ""):
        self.path, self.config_text = path, config_text
        self.config = path / "config.yaml"
        self.history = path / "history.csv"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model.keras"
        self.evaluation = path / "eval.json"
        self.flags = path / "flags.npz"
        self.junit = path / "junit.xml"
        self.adversarial = path / "adversarial.npz"
        self.probes = path / "probes.npz"
        self.valley = path / "valley.npz"
        self.landscape = path / "landscape.npz"
        self.extremes = path / "extremes.npz"
        self.exports = path / "exports.json"
        self.tensorboard = path / "tensorboard"
        self.before = path / "before"
        self.search = path / "search"
        self.oracle = self.search / "oracle.json"
        self.trials = self.search / "trials.csv"
        self.best = self.search / "best.yaml"
        self.report = path / "report" / "index.html"
        self.tracked = path / "tracked.json"
        self.card = path / "MODEL_CARD.md"
        real = path.resolve()  # of a link to the folder too
        self.lock = real.with_name(f".{real.name}.lock")
        self._stages = path / "stages.json"

    @contextlib.contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Keep other processes from working in the folder inside the context.

        The lock is a file beside the folder, because the folder may be moved aside. It also ends
        with the process.

        Args:
            wait: Whether to wait until no other process works in the folder.

        Raises:
            UserError: If another process works in the folder and `wait` is false.
        """
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        operation = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
        with self.lock.open("w") as lock:
            try:
                fcntl.flock(lock, operation)
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: expected a folder that no other run is at work in"
                ) from None
            remove_partial(self.path)
            yield

    def begun(self, stage: str) -> str | None:
        """Return the fingerprint with which a stage last began here; None if it never did."""
        return self._entry(stage).get("fingerprint")

    def finished(self, stage: str) -> bool:
        """Return whether a stage has ended since it last began here."""
        return bool(self._entry(stage).get("done"))

    def done(self, stage: str, fingerprint: str, outputs: Iterable[Path]) -> bool:
        """Return whether a stage was finished with these inputs and its outputs still exist."""
        entry = self._entry(stage)
        finished = entry.get("fingerprint") == fingerprint and entry.get("done")
        return bool(finished) and all(path.exists() for path in outputs)

    def mark(
        self, stage: str, fingerprint: str, done: bool, sizes: Mapping[str, int] | None = None
    ) -> None:
        """Record that a stage begins or is done, with its inputs, our commit and the hardware.

        `sizes` are the bytes of the files that it has written, by their places in the folder.
        """
        entry: dict[str, Any] = self._entry(stage) if done else {}
        entry |= {"fingerprint": fingerprint, "done": done}
        entry |= {"commit": commit(), "hardware": hardware()}
        if sizes:
            entry["sizes"] = dict(sizes)
        self._write(stage, entry)

    def keep_settings(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Record the settings, defaults included, of what a stage that has begun here made."""
        self._write(stage, self._entry(stage) | {"settings": dict(settings)})

    def commit(self, stage: str) -> str | None:
        """Return the commit of the code that last ran a stage here; None if it is not known."""
        return self._entry(stage).get("commit")

    def hardware(self, stage: str) -> str | None:
        """Return the hardware that last ran a stage here; None if it is not known."""
        return self._entry(stage).get("hardware")

    def settings(self, stage: str) -> dict[str, Any] | None:
        """Return the settings that `keep_settings` recorded; None of a stage that has none."""
        return self._entry(stage).get("settings")

    def is_new(self) -> bool:
        """Return whether no stage has begun here."""
        return not self._stages.exists()

    def sizes(self, stage: str) -> dict[str, int]:
        """Return the sizes with which a stage was marked; none for a stage of earlier versions."""
        return dict(self._entry(stage).get("sizes", {}))

    def used(self) -> bool:
        """Return whether a training or a search has left files here."""
        traces = (self.history, self.model, self.checkpoints, self.oracle)
        return any(path.exists() for path in traces)

    def write_config(self) -> None:
        """Write config.yaml, from which the other files in the folder are made."""
        write_text(self.config, self.config_text)

    def move_aside(self) -> Path:
        """Rename the folder to the first free one of NAME.1, NAME.2, ... and return that path."""
        number = 1
        while (free := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        return self.path.rename(free)

    def _entry(self, stage: str) -> dict[str, Any]:
        return self._read().get(stage, {})

    def _write(self, stage: str, entry: Mapping[str, Any]) -> None:
        text = json.dumps(self._read() | {stage: entry}, indent=2)
        write_text(self._stages, text + "\n")

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._stages.is_file():
            return {}
        try:
            stages = json.loads(self._stages.read_text(encoding="utf-8-sig"))
            return {stage: dict(entry) for stage, entry in stages.items()}
        except (ValueError, AttributeError, TypeError):
            raise UserError(
                f"{self._stages}: expected JSON, it is damaged; remove the folder, or only this "
                "file to have the folder kept aside and all stages run again"
            ) from None
