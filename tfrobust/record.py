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

from tfrobust.errors import UserError, nearest_path
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
    """The circumstances in which a number was measured.

    Attributes:
        version: the version of tfrobust.
        commit: its commit, if known.
        seed: the seed.
        device: the device.
        precision: the precision of the network.
        threads: CPU threads for one operation.
        examples: the number of images.
        when: the end of the measurement, UTC.
        tf32: whether attacks searched in TensorFloat-32; verdicts are never computed in it.
        xla: whether XLA compiled the attacks.
        replicas: the number of devices.
        keras: settings of Keras that differ from its defaults.
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
    """The result of an attack or of a suite.

    Attributes:
        name: the name of the attack or suite.
        examples: it saw this many of the first images.
        robust_accuracy: the share of them that are still right.
        seconds: its duration.
        attacked: the number of images that it ran on.
        queries: its forward passes over all images.
        gradients: its backward passes over all images.
        config: its settings.
        suite: the suite that it belongs to.
        norm: the norm of the threat it ran under, where there are several.
        files: digests of the files that it read.
        provenance: the circumstances.
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
    norm: str | None = None
    files: list[str] = []
    provenance: Provenance | None = None


class CheckRow(Part):
    """A check for a false sense of security. value: None if it was not measured."""

    name: str
    text: str
    warns: bool
    value: float | None = None


class ThreatRow(Part):
    """The threat under which the attacks ran."""

    norm: str
    eps: float
    box: list[float] | None = None


class NormRow(Part):
    """The robust accuracy under all attacks of one norm, of an evaluation with several."""

    norm: str
    robust_accuracy: Share
    examples: pydantic.PositiveInt


class DataRow(Part):
    """The names of the data set and the split."""

    name: str
    split: str = "test"


class NetworkRow(Part):
    """The fingerprint of a network: its logits at the first images, and a digest of its weights or
    files if it has any."""

    logits: list[list[float]]
    sha256: str | None = None


class CurveRow(Part):
    """The accuracy of a once-for-all network at one lambda and width."""

    strength: Share = pydantic.Field(alias="lambda")
    width: Share | None = None
    clean_accuracy: Share
    robust_accuracy: Share

    @property
    def point(self) -> dict[str, float]:
        """The lambda and, if the network has one, the width."""
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
    """The content of eval.json.

    Attributes:
        examples: the number of images, over which clean_accuracy is taken.
        robust_accuracy: the headline, over `worst_case_examples` images, under all attacks that saw
            that many. With several threats it is that of their union: an image counts if it is
            right under every norm.
        norms: the robust accuracy under each norm, if there are several threats.
        subsets: the robust accuracy on the first n images under all attacks that saw them, for each
            smaller n.
        rounded_robust_accuracy: the headline with the saved images rounded to 1/255.
        craft_precision: the precision in which the attacks searched; the network itself decided
            whether they succeeded.
        attacks: one row for each attack and suite.
        pending: the names of attacks that have not run yet.
        provenance: the circumstances of the clean accuracy, as are `versions` and `commit`.
        closing: the circumstances of the checks and curves.
        training_commit: the commit of the code that trained the network.
    """

    schema_version: int = 0
    examples: pydantic.PositiveInt
    clean_accuracy: Share
    robust_accuracy: Share | None = None
    worst_case_examples: Count | None = None
    norms: list[NormRow] = []
    subsets: list[SubsetRow] = []
    rounded_robust_accuracy: Share | None = None
    mode: str | None = None
    craft_precision: str = "float32"
    attacks: list[AttackRow]
    pending: list[str] = []
    checks: list[CheckRow] = []
    curve: list[CurveRow] = []
    eps_curve: list[EpsRow] = []
    threat: ThreatRow | list[ThreatRow]
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

        In files without a schema version the headline includes attacks that saw fewer images. It
        becomes a row of `subsets`, and the new headline is taken from the attacks that saw the most
        images if their rows determine it.

        Raises:
            ValueError: In one line, if the content is not that of an eval.json.
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
        """Return the record in a folder. Raises UserError, in one line that names the file."""
        path = Path(folder) / "eval.json"
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            hint = "" if path.parent.is_dir() else nearest_path(path.parent)
            raise UserError(
                f"{path}: expected the result of the stage attack_eval, or of "
                f"evaluate(..., folder=...), received no such file{hint}"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{path}: expected a readable file, received {line}") from None

    def save(self, folder: Path) -> None:
        """Write eval.json atomically."""
        write_text(Path(folder) / "eval.json", json.dumps(self.as_json(), indent=2) + "\n")

    def as_json(self) -> dict[str, Any]:
        """Return the content of eval.json: the values that were set, by their names in the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @property
    def threats(self) -> list[ThreatRow]:
        """The threats, usually one."""
        return self.threat if isinstance(self.threat, list) else [self.threat]

    @property
    def radii(self) -> list[tuple[str, float]]:
        """The norm and the eps of each threat."""
        return [(threat.norm, threat.eps) for threat in self.threats]

    @property
    def suites(self) -> set[str]:
        """The names of the suites; each has a row of its own after those of its attacks."""
        return {attack.suite for attack in self.attacks if attack.suite}


def _without_fewer(record: Record) -> Record:
    """Return the record with a headline over the attacks that saw the most images."""
    if record.robust_accuracy is None or not record.attacks:
        return record
    most = max(attack.examples for attack in record.attacks)
    fewer = record.worst_case_examples
    if not fewer or fewer >= most:
        return record
    shares = [attack.robust_accuracy for attack in record.attacks if attack.examples == most]
    # In a cascade the least share is what all attacks left. Of attacks that ran independently, the
    # rows determine the worst case only if there is a single one.
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
    """The content of flags.npz: the results of each image.

    Attributes:
        index: int [N], the place of each image in the split.
        label: int [N].
        right: name -> bool [n], for "clean" and each attack: whether the first n images are right.
        digest: uint64 [N], of each image with its label; None in files older than schema 1.
    """

    index: np.ndarray
    label: np.ndarray
    right: Mapping[str, np.ndarray]
    digest: np.ndarray | None = None

    @classmethod
    def load(cls, folder: Path) -> Flags:
        """Return the flags in a folder. Raises UserError, in one line that names the file."""
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
    """Return whether two evaluations saw the same images in the same order, as far as both go.

    first, second: their digests, uint64; the answer is False if one of them has none.
    """
    if first is None or second is None:
        return False
    n = min(len(first), len(second))
    return bool(np.array_equal(first[:n], second[:n]))


def headline(rights: Sequence[np.ndarray], clean: np.ndarray) -> np.ndarray:
    """Return bool [n], whether each image is right under every attack that saw the most images, n.

    rights: bool [n] of each attack. clean: bool [N], whether each clean image is right; also
    the result if there are no attacks.
    """
    n = max((len(right) for right in rights), default=len(clean))
    return np.logical_and.reduce([clean[:n], *(right for right in rights if len(right) == n)])


def subsets(rights: Sequence[np.ndarray], clean: np.ndarray) -> dict[int, np.ndarray]:
    """Return the worst case on the first n images, n -> bool [n], largest n first.

    It is taken over all attacks that saw at least n images. There is an entry for each n that some
    attack saw and that is below the largest.

    rights, clean: as in `headline`.
    """
    sizes = sorted({len(right) for right in rights}, reverse=True)[1:]
    return {
        n: np.logical_and.reduce([clean[:n], *(right[:n] for right in rights if len(right) >= n)])
        for n in sizes
    }
