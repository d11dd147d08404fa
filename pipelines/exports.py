"""The section `export` of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tfrobust.errors import choose, require, require_at_least
from tfrobust.evaluation import ListedAttack, list_attacks
from tfrobust.evaluation.attack_list import check_gradients
from tfrobust.exporting import FORMATS
from tfrobust.threat import Threat


@dataclasses.dataclass(frozen=True)
class Exports:
    """The section `export`: the formats of the network, each compared with it and attacked.

    Args:
        formats: Some of saved_model, onnx, litert and litert_int8.
        attacks: Attacks without gradients on each exported network, by default Square and, under
            Linf, RayS. They follow the adversarial images of the network itself, which
            evaluation.save keeps. [] is no attack at all.
        calibration: The number of training images from which litert_int8 takes its ranges.
    """

    formats: tuple[str, ...] = ("saved_model",)
    attacks: list[Any] | None = None
    calibration: int = 500

    def __post_init__(self) -> None:
        require(self.formats, "formats", "at least one format", list(self.formats))
        for name in self.formats:
            choose("formats", name, FORMATS)
        require_at_least(1, calibration=self.calibration)

    def attack_list(self, threats: Sequence[Threat], save: str | None) -> list[ListedAttack]:
        """Return the attacks on each exported network.

        Args:
            threats: The threats of the evaluation.
            save: `evaluation.save`.

        Raises:
            UserError: An attack needs gradients, there are several threats, or the evaluation keeps
                no adversarial images of the network.
        """
        names = ["square", "rays"] if threats[0].norm == "linf" else ["square"]
        entries = names if self.attacks is None else self.attacks
        if not entries:
            return []
        expected = "[] (there are several threats, whose images are not kept)"
        require(len(threats) == 1, "export.attacks", expected, entries)
        expected = "float32 or uint8, to try the network's adversarial images on its exports"
        require(save, "evaluation.save", expected, save)
        attack_list = list_attacks(entries, threats, "export.attacks")
        check_gradients(attack_list, "an exported network", "export.attacks")
        return attack_list
