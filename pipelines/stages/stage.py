"""The interface of a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from pipelines.run_folder import RunFolder
from pipelines.spec import Spec


class Stage(ABC):
    """One step of a run. A stage has no state: it reads a spec and a run folder.

    Attributes:
        name: The stage's name in a config and on the command line.
        reads_network: Whether the stage reads the network of the run. Such a stage has no inputs
            before that network exists.
    """

    name: str
    reads_network = False

    @abstractmethod
    def inputs(self, spec: Spec, folder: RunFolder) -> str:
        """Return the fingerprint of everything that the stage's result depends on."""

    @abstractmethod
    def outputs(self, spec: Spec, folder: RunFolder) -> list[Path]:
        """Return the files that the stage leaves behind. It is done only while they all exist."""

    @abstractmethod
    def run(self, spec: Spec, folder: RunFolder) -> None:
        """Run the stage, or go on with it where an earlier process stopped."""

    def check(  # noqa: B027, as some stages can always run
        self, spec: Spec, folder: RunFolder, planned: Collection[str]
    ) -> None:
        """Raise a UserError if the stage cannot run. Nothing is written.

        Args:
            spec: The run.
            folder: The folder of the run, which need not exist yet.
            planned: The names of all stages that will run now.
        """

    def sizes(self, spec: Spec, folder: RunFolder) -> dict[str, int]:
        """Return the sizes in bytes of written files that nobody edits, by their places.

        A stage is done only while they have these sizes: a copy of a folder may be cut off.
        """
        return {}

    def done(self, spec: Spec, folder: RunFolder) -> bool:
        """Return whether the stage is finished with these inputs and has nothing more to do."""
        if not folder.done(self.name, self.inputs(spec, folder), self.outputs(spec, folder)):
            return False
        return folder.sizes(self.name).items() <= self.sizes(spec, folder).items()

    def skip(self, folder: RunFolder) -> None:
        """Print that the stage is skipped because it is done."""
        print(f"{self.name}: done before, skipped")
