"""The interface of a stage."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipelines.folder import Folder
from pipelines.spec import Spec


class Stage:
    """One step of a run. A stage has no state of its own: it reads a spec and a run folder.

    Attributes:
        name: The stage's name in a config and on the command line.
        reads_network: Whether the stage reads the network that is trained or evaluated, so that
            it has no inputs before that network exists.
    """

    name: str
    reads_network = False

    def inputs(self, spec: Spec, folder: Folder) -> str:
        """Return the fingerprint of everything that the stage's result depends on."""
        raise NotImplementedError

    def outputs(self, spec: Spec, folder: Folder) -> list[Path]:
        """Return the files that the stage leaves behind. It is done only while they all exist."""
        raise NotImplementedError

    def run(self, spec: Spec, folder: Folder) -> None:
        """Run the stage, or go on with it where an earlier process stopped."""
        raise NotImplementedError

    def check(self, spec: Spec, folder: Folder, planned: Collection[str]) -> None:
        """Raise a UserError if the stage cannot run. Nothing is written.

        Args:
            spec: The run.
            folder: The folder of the run, which need not exist yet.
            planned: The names of all stages that are about to run.
        """

    def done(self, spec: Spec, folder: Folder) -> bool:
        """Return whether the stage is finished with these inputs and has nothing more to do."""
        return folder.done(self.name, self.inputs(spec, folder), self.outputs(spec, folder))

    def skip(self, folder: Folder) -> None:
        """Print that the stage is skipped because it is done."""
        print(f"{self.name}: done before, skipped")
