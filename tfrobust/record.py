"""The record of an evaluation, eval.json: written here and read by the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pydantic

from tfrobust.errors import UserError, nearest_path, one_line, user_path
from tfrobust.io import write_text

# The version of the files. It is raised when old rows must not stand beside new ones, as after a
# change of the attacks' noise. A file without a version has version 0.
SCHEMA = 1
AUTOATTACK = "AutoAttack"  # the name of the suite by which the field judges a network
# How the name of a suite ends whose accuracy is an upper bound of that under AutoAttack.
UPPER_BOUND = " (upper bound)"


def is_autoattack(name: str) -> bool:
    """Return whether a suite is the whole AutoAttack, standard or plus, by its name or label."""
    return name.removesuffix(")").split(" (")[-1] in (AUTOATTACK, f"{AUTOATTACK} plus")


Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Count = Annotated[int, pydantic.Field(ge=0)]


class Part(pydantic.BaseModel):
    """A part of eval.json. Keys beside its fields are kept as they are."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True, protected_namespaces=())


class Provenance(Part):
    """The circumstances in which a number was measured.

    Attributes:
        version: The version of tfrobust.
        commit: The commit of tfrobust, if it is known.
        seed: The seed of the noise.
        device: The name of the device.
        precision: The precision of the network.
        threads: The number of CPU threads for one operation.
        examples: The number of images.
        when: The time when the measurement ended, UTC.
        tf32: Whether attacks searched in TensorFloat-32. Verdicts are never computed in it.
        xla: Whether XLA compiled the attacks.
        replicas: The number of devices.
        keras: The settings of Keras that differ from its defaults.
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
        name: The name of the attack or suite.
        examples: The number n of images: the attack was given the first n.
        robust_accuracy: The share of the n images that are still classified correctly.
        seconds: The duration of the attack.
        attacked: The number of images that were not misclassified before, and so were attacked.
        queries: The number of forward passes, summed over the images.
        gradients: The number of backward passes, summed over the images.
        config: The settings of the attack.
        suite: The suite that the attack belongs to.
        norm: The norm of the threat, if there are several threats.
        files: The digests of the files that the attack read.
        provenance: The circumstances of the row.
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
    """A check for a false sense of security. Its value is None if it was not measured."""

    name: str
    text: str
    warns: bool
    value: float | None = None


class ThreatRow(Part):
    """The threat under which the attacks ran."""

    norm: str
    eps: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
    box: list[float] | None = None
    per_feature: list[Any] | dict[str, float] | None = None


class NormRow(Part):
    """The robust accuracy under all attacks of one norm, in an evaluation with several norms."""

    norm: str
    robust_accuracy: Share
    examples: pydantic.PositiveInt


class DataRow(Part):
    """The names of the data set, split and classes, and the shape of inputs that are no images."""

    name: str
    split: str = "test"
    shape: list[int] | None = None
    class_names: list[str] = []


class NetworkRow(Part):
    """The fingerprint of a network: its logits at the first images, the lengths of the gradients of
    the largest of them, and a digest of weights or files. The last two may be missing.
    """

    logits: list[list[float]]
    sha256: str | None = None
    slopes: list[float] | None = None


class CurveRow(Part):
    """The accuracy of a once-for-all network at one lambda and width."""

    strength: Share = pydantic.Field(alias="lambda")
    width: Share | None = None
    clean_accuracy: Share
    robust_accuracy: Share

    @property
    def point(self) -> dict[str, float]:
        """The lambda and, for a network with widths, the width."""
        return self.model_dump(by_alias=True, include={"strength", "width"}, exclude_none=True)


class EpsRow(Part):
    """Robust accuracy at one eps."""

    eps: Annotated[float, pydantic.Field(ge=0)]
    robust_accuracy: Share
    examples: pydantic.PositiveInt


class SubsetRow(Part):
    """Robust accuracy on the first `examples` images, under all attacks that saw them."""

    examples: pydantic.PositiveInt
    robust_accuracy: Share


class CorruptionRow(Part):
    """The accuracy under one corruption, at each severity of its table."""

    name: str
    accuracy: list[Share]
    seconds: float | None = None
    provenance: Provenance | None = None


class CorruptionTable(Part):
    """The accuracy on corrupted images.

    Attributes:
        accuracy: The mean over all corruptions and severities; None until all are measured.
        examples: The number of images.
        severities: The severities, from 1 to 5.
        rows: One row for each corruption.
        pending: The corruptions that are still to be measured.
    """

    accuracy: Share | None = None
    examples: pydantic.PositiveInt
    severities: list[int]
    rows: list[CorruptionRow]
    pending: list[str] = []


class RequirementRow(Part):
    """The verdict on a requirement.

    Attributes:
        name: Its name.
        met: The verdict.
        text: What was measured and required.
        value: The accuracy, or the difference to that of the baseline, as a fraction; or minutes.
        bound: The end of the one-sided interval of the value, which decides. Minutes have none.
        required: The least that the bound may be; the most that minutes may be.
        level: The confidence of the interval.
        examples: The number of images.
    """

    name: str
    met: bool
    text: str
    value: float
    bound: float | None = None
    required: float
    level: float | None = None
    examples: pydantic.PositiveInt | None = None


class ExportRow(Part):
    """An exported network, or first the network itself, on the same images.

    Attributes:
        name: The format; "network" for the network itself.
        file: The file or folder in the run folder.
        runtime: The name and version of the runtime that computed it.
        examples: The number of images.
        largest_difference: The largest difference of a logit, where all are finite, or None.
        equal_predictions: The share of the images that it predicts as the network does.
        clean_accuracy: The accuracy without an attack.
        attacks: The accuracy after each attack and those before it, by the name of the attack.
        robust_accuracy: The accuracy under all attacks that saw the most images.
        difference: That accuracy minus the network's under the same attacks.
        p: The p-value of McNemar's exact test of the difference.
    """

    name: str
    file: str
    runtime: str
    examples: pydantic.PositiveInt
    largest_difference: float | None
    equal_predictions: Share
    clean_accuracy: Share
    attacks: dict[str, Share] = {}
    robust_accuracy: Share | None = None
    difference: float | None = None
    p: float | None = None


class ExportTable(Part):
    """The content of exports.json."""

    rows: list[ExportRow]

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_text(path, self.model_dump_json(indent=2) + "\n")


class Record(Part):
    """The content of eval.json.

    Attributes:
        examples: The number of images, over which clean_accuracy is taken.
        robust_accuracy: The headline: the accuracy on the first `worst_case_examples` images under
            all attacks that saw that many, of every norm.
        norms: The robust accuracy under each norm, if there are several threats.
        subsets: The robust accuracy on the first n images under all attacks that saw them, for each
            smaller n.
        rounded_robust_accuracy: The headline with the saved images rounded to 1/255.
        craft_precision: The precision in which the attacks searched, but not of their verdicts.
        attacks: One row for each attack and suite.
        binarisation: The number of images of the binarisation test among the checks.
        pending: The names of the attacks that have not been made yet.
        corruptions: The accuracy on corrupted images, if it was measured.
        requirements: The verdicts on what the config last required.
        provenance: The circumstances of the clean accuracy. So are `versions` and `commit`.
        closing: The circumstances of the checks and curves.
        training_commit: The commit of the code that trained the network.
        training_hardware: The device and the CPU threads that trained it.
        training_settings: The settings of the training and of its parts, with their defaults.
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
    binarisation: Count = 0
    curve: list[CurveRow] = []
    eps_curve: list[EpsRow] = []
    corruptions: CorruptionTable | None = None
    requirements: list[RequirementRow] = []
    threat: ThreatRow | Annotated[list[ThreatRow], pydantic.Field(min_length=1)]
    seed: int | None = None
    data: DataRow | None = None
    model: dict[str, Any] | None = None
    network: NetworkRow | None = None
    versions: dict[str, str] | None = None
    commit: str | None = None
    training_commit: str | None = None
    training_hardware: str | None = None
    training_settings: dict[str, dict[str, Any]] | None = None
    provenance: Provenance | None = None
    closing: Provenance | None = None

    @classmethod
    def parse(cls, content: Any) -> Record:
        """Return the record that the content of an eval.json holds.

        In files without a schema version the headline includes attacks that saw fewer images. It
        becomes a row of `subsets`. The new headline is that of the attacks that saw the most
        images, if their rows determine it.

        Raises:
            ValueError: The content is not that of an eval.json. The message is one line.
        """
        try:
            record = cls.model_validate(content)
        except pydantic.ValidationError as error:
            worst = max(error.errors(), key=lambda each: len(each["loc"]))  # of the form meant
            where = ".".join(map(str, worst["loc"])) or "evaluation"
            raise ValueError(f"{where}: {worst['input']!r}: {worst['msg']}") from None
        if record.robust_accuracy is not None and record.worst_case_examples is None:
            raise ValueError("worst_case_examples: expected beside robust_accuracy")
        return record if record.schema_version else _with_new_headline(record)

    @classmethod
    def load(cls, folder: str | Path) -> Record:
        """Return the record in a folder. Raises a UserError that names the file."""
        path = user_path("folder", folder) / "eval.json"
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8-sig")))
        except FileNotFoundError:
            hint = "" if path.parent.is_dir() else nearest_path(path.parent)
            raise UserError(
                f"{path}: expected the result of the stage attack_eval, or of "
                f"evaluate(..., folder=...), received no such file{hint}"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            line = one_line(error, None)
            raise UserError(f"{path}: expected a readable file, received {line}") from None

    def save(self, folder: Path) -> None:
        """Write eval.json atomically."""
        write_text(Path(folder) / "eval.json", json.dumps(self.as_json(), indent=2) + "\n")

    def as_json(self) -> dict[str, Any]:
        """Return the content of eval.json, which is the values that were set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @property
    def threats(self) -> list[ThreatRow]:
        """The threats, usually one."""
        return self.threat if isinstance(self.threat, list) else [self.threat]

    @property
    def balls(self) -> list[tuple[str, float, Any]]:
        """The norm, the eps and the factors of features, usually None, of each threat."""
        return [(threat.norm, threat.eps, threat.per_feature) for threat in self.threats]

    @property
    def suites(self) -> set[str]:
        """The names of the suites; each has a row of its own after those of its attacks."""
        return {attack.suite for attack in self.attacks if attack.suite}

    @property
    def single_attacks(self) -> list[AttackRow]:
        """The rows of attacks, without those of suites."""
        return [row for row in self.attacks if row.name not in self.suites]


def _with_new_headline(record: Record) -> Record:
    """Return a record of schema version 0 with the new headline that `parse` describes."""
    most = max((attack.examples for attack in record.attacks), default=0)
    fewer = record.worst_case_examples
    if record.robust_accuracy is None or not fewer or fewer >= most:
        return record
    shares = [attack.robust_accuracy for attack in record.attacks if attack.examples == most]
    # In a cascade the least share is what all attacks left. For independent attacks, the rows
    # determine the worst case only if there is a single attack.
    nested = record.mode == "cascade" or len(shares) == 1
    accuracy, examples = (min(shares), most) if nested else (None, None)
    subset = SubsetRow(examples=fewer, robust_accuracy=record.robust_accuracy)
    headline = {"robust_accuracy": accuracy, "worst_case_examples": examples}
    return record.model_copy(update={**headline, "subsets": [subset]})
