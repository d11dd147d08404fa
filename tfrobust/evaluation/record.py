"""The record of an evaluation: eval.json and flags.npz, written here and read by the report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from tfrobust.errors import UserError
from tfrobust.io import UNREADABLE, write_atomically, write_text

# Raised whenever rows of before must not stand beside new ones, such as when the noise of the
# attacks changes. 0 is a file without a version.
SCHEMA = 1

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Count = Annotated[int, pydantic.Field(ge=0)]


class Part(pydantic.BaseModel):
    """A part of eval.json; keys that it does not name are kept as they are."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True, protected_namespaces=())


class Provenance(Part):
    """What a number was made with.

    precision: of the network. threads: of the CPU, for one operation. examples: the images that
    were looked at. when: the end of the measurement, UTC. tf32: whether attacks searched in
    TensorFloat-32, in which no verdict is computed. xla: whether XLA compiled them. replicas: the
    devices that computed. keras: Keras's settings that differ from its defaults.
    """

    version: str
    commit: str | None
    seed: int
    device: str
    precision: str
    threads: int
    examples: int
    when: str
    tf32: bool = False
    xla: bool = False
    replicas: int = 1
    keras: dict[str, str] = {}


class AttackRow(Part):
    """What an attack, or a suite of them, left standing.

    examples: it saw so many of the first images; robust_accuracy is the share of them still right.
    attacked: the images that it ran on. queries, gradients: its forward and backward passes over
    them all. config: its settings. suite: the one that it belongs to. files: digests of the files
    that it read.
    """

    name: str
    examples: pydantic.PositiveInt
    robust_accuracy: Share
    seconds: float | None = None
    attacked: Count | None = None
    queries: Count = 0
    gradients: Count = 0
    config: dict[str, Any] | None = None
    suite: str | None = None
    files: list[str] = []
    provenance: Provenance | None = None


class CheckRow(Part):
    """A check for a false sense of security. value: None where it was not measured."""

    name: str
    text: str
    warns: bool
    value: float | None = None


class ThreatRow(Part):
    """The threat."""

    norm: str
    eps: float
    box: list[float] | None = None


class DataRow(Part):
    """Which images."""

    name: str
    split: str = "test"


class NetworkRow(Part):
    """What tells the network from others: its logits of the first images, and a digest of its
    weights or files where it has them."""

    logits: list[list[float]]
    sha256: str | None = None


class CurveRow(Part):
    """A once-for-all network at one lambda and width."""

    strength: Share = pydantic.Field(alias="lambda")
    width: Share | None = None
    clean_accuracy: Share
    robust_accuracy: Share

    @property
    def point(self) -> dict[str, float]:
        """The lambda and, where the network has one, the width."""
        return self.model_dump(by_alias=True, include={"strength", "width"}, exclude_none=True)


class EpsRow(Part):
    """Robust accuracy at one eps."""

    eps: Annotated[float, pydantic.Field(ge=0)]
    robust_accuracy: Share
    examples: pydantic.PositiveInt


class SubsetRow(Part):
    """Robust accuracy on the first `examples` images, under all attacks that saw these."""

    examples: pydantic.PositiveInt
    robust_accuracy: Share


class Record(Part):
    """eval.json.

    examples: the images of the run; clean_accuracy is over them. robust_accuracy: the headline,
    over `worst_case_examples` images, under all attacks that saw so many; subsets: under all
    attacks that saw at least the first n, for each smaller n. craft_precision: in which the attacks
    searched; the network itself judged what they found. rounded_robust_accuracy: with the
    saved images rounded to 1/255. pending: attacks that did not run yet. provenance: of the clean
    accuracy, as are `versions` and `commit`; closing: of the checks and curves; training_commit: of
    the network's training.
    """

    schema_version: int = 0
    examples: pydantic.PositiveInt
    clean_accuracy: Share
    robust_accuracy: Share | None = None
    worst_case_examples: Count | None = None
    subsets: list[SubsetRow] = []
    rounded_robust_accuracy: Share | None = None
    mode: str | None = None
    craft_precision: str = "float32"
    attacks: list[AttackRow]
    pending: list[str] = []
    checks: list[CheckRow] = []
    curve: list[CurveRow] = []
    eps_curve: list[EpsRow] = []
    threat: ThreatRow
    seed: int | None = None
    data: DataRow | None = None
    model: dict[str, Any] | None = None
    network: NetworkRow | None = None
    versions: dict[str, str] | None = None
    commit: str | None = None
    training_commit: str | None = None
    provenance: Provenance | None = None
    closing: Provenance | None = None

    @classmethod
    def parse(cls, content: Any) -> Record:
        """Return the record that the content of an eval.json holds.

        The headline of a file of before this version, which took in attacks that saw fewer images,
        becomes a row of `subsets`; the headline itself is taken from the attacks that saw the
        most where their rows tell it. Raises ValueError, in one line, for what does not fit.
        """
        try:
            record = cls.model_validate(content)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "evaluation"
            raise ValueError(f"{where}: {first['input']!r}: {first['msg']}") from None
        if record.robust_accuracy is not None and record.worst_case_examples is None:
            raise ValueError("worst_case_examples: expected beside robust_accuracy")
        return record if record.schema_version else _without_fewer(record)

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Return the record of a folder. Raises UserError, in one line that names the file."""
        path = Path(folder) / "eval.json"
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(
                f"{path}: expected the result of the stage attack_eval, or of "
                "evaluate(..., folder=...), received no such file"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{path}: expected a readable file, received {line}") from None

    def save(self, folder: Path) -> None:
        """Write eval.json atomically."""
        write_text(Path(folder) / "eval.json", json.dumps(self.as_json(), indent=2) + "\n")

    def as_json(self) -> dict[str, Any]:
        """Return the content of eval.json: what was set, by the names of the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @property
    def suites(self) -> set[str]:
        """The names of the suites; each has a row of its own after those of its attacks."""
        return {attack.suite for attack in self.attacks if attack.suite}


def _without_fewer(record: Record) -> Record:
    """The record with a headline over the attacks that saw the most images."""
    if record.robust_accuracy is None or not record.attacks:
        return record
    most = max(attack.examples for attack in record.attacks)
    fewer = record.worst_case_examples
    if not fewer or fewer >= most:
        return record
    shares = [attack.robust_accuracy for attack in record.attacks if attack.examples == most]
    # In a cascade the last row is what all left; of attacks that ran each by itself only one
    # tells by itself what all of them leave.
    nested = record.mode == "cascade" or len(shares) == 1
    return record.model_copy(
        update={
            "robust_accuracy": min(shares) if nested else None,
            "worst_case_examples": most if nested else None,
            "subsets": [SubsetRow(examples=fewer, robust_accuracy=record.robust_accuracy)],
        }
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Flags:
    """flags.npz: what became of each image.

    index: int [N], its place in the split. label: int [N]. right: name -> bool [n], for "clean" and
    each attack, whether the first n are right. digest: uint64 [N], of the image and its label; None
    in files of before schema 1.
    """

    index: np.ndarray
    label: np.ndarray
    right: Mapping[str, np.ndarray]
    digest: np.ndarray | None = None

    @classmethod
    def load(cls, folder: Path) -> Flags:
        """Return the flags of a folder. Raises UserError, in one line that names the file."""
        path = Path(folder) / "flags.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file.items())
            index, label, digest = (
                arrays.pop("index"),
                arrays.pop("label"),
                arrays.pop(DIGEST, None),
            )
            for key, array in {"index": index, "clean": arrays["clean"], DIGEST: digest}.items():
                if array is not None and array.shape != label.shape:
                    raise ValueError(f"{key} of shape {array.shape} for labels {label.shape}")
            for key, array in arrays.items():
                if array.ndim != 1 or len(array) > len(label):
                    raise ValueError(f"{key} of shape {array.shape} for labels {label.shape}")
        except FileNotFoundError:
            raise UserError(f"{path}: expected flags, received no such file") from None
        except UNREADABLE as error:
            line = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{path}: expected a readable file, received {line}") from None
        return cls(index, label, arrays, digest)

    def save(self, folder: Path) -> None:
        """Write flags.npz atomically."""
        arrays: dict[str, Any] = {"index": self.index, "label": self.label, **self.right}
        if self.digest is not None:
            arrays[DIGEST] = self.digest
        write_atomically(Path(folder) / "flags.npz", lambda path: np.savez(path, **arrays))


DIGEST = "digest"


def digests(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a digest, uint64 [N], of each image of x [N, H, W, C] float32 with its label."""

    def digest(image: np.ndarray, label: int) -> bytes:
        content = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8)
        content.update(str((image.shape, label)).encode())
        return content.digest()

    parts = [digest(image, int(label)) for image, label in zip(x, y, strict=True)]
    return np.frombuffer(b"".join(parts), np.uint64)


def same_images(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Return whether two runs saw the same images in the same order, as far as both go.

    first, second: their digests; without digests nobody knows.
    """
    if first is None or second is None:
        return False
    n = min(len(first), len(second))
    return bool(np.array_equal(first[:n], second[:n]))


def headline(rights: Sequence[np.ndarray], clean: np.ndarray) -> np.ndarray:
    """Return which of the first n images are right under every attack that saw the most images.

    rights: bool [n] of each attack; clean: bool [N], right when clean. Without attacks `clean`.
    """
    n = max((len(right) for right in rights), default=len(clean))
    return np.logical_and.reduce([clean[:n], *(right for right in rights if len(right) == n)])


def subsets(rights: Sequence[np.ndarray], clean: np.ndarray) -> dict[int, np.ndarray]:
    """Return, for each number n of images that some attacks saw and others saw more than, which of
    the first n are right under all attacks that saw them: n -> bool [n], the largest n first."""
    sizes = sorted({len(right) for right in rights}, reverse=True)[1:]
    return {
        n: np.logical_and.reduce([clean[:n], *(right[:n] for right in rights if len(right) >= n)])
        for n in sizes
    }
