"""The data for the pictures on an evaluation's page: loss valley, loss landscape, images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfrobust.evaluation.attack_list import ListedAttack
from tfrobust.evaluation.crafting import LogitsFn, craft, predictor
from tfrobust.evaluation.loss_landscape import landscape
from tfrobust.evaluation.loss_valley import valley
from tfrobust.evaluation.results import Result, worst_case
from tfrobust.flags import Flags
from tfrobust.io import write_atomically
from tfrobust.threat import Threat

PROBES, VALLEY = 8, 200  # numbers of images


class Pictures(NamedTuple):
    """Writes the data of the pictures to a folder."""

    folder: Path
    logits_fn: LogitsFn
    x: np.ndarray
    flags: Flags
    threat: Threat
    seed: int
    batch_size: int

    @property
    def _sizes(self) -> dict[str, Any]:
        return {"seed": self.seed, "batch_size": self.batch_size}

    def valley(self) -> None:
        """Write valley.npz: the losses around the first images."""
        x, y = self.x[:VALLEY], self.flags.label[:VALLEY]
        losses = valley(self.logits_fn, x, y, self.threat, **self._sizes)
        self._write("valley.npz", losses._asdict())

    def landscape(self, results: Sequence[Result]) -> None:
        """Write landscape.npz: the loss around the first image that stands and the first broken."""
        worst = worst_case(results)
        right = results[0].robust[: len(worst)]
        rows = np.concatenate([np.flatnonzero(worst)[:1], np.flatnonzero(right & ~worst)[:1]])
        if not len(rows):
            return
        x, y = self.x[rows], self.flags.label[rows]
        surroundings = landscape(self.logits_fn, x, y, self.threat, **self._sizes)
        facts = {"index": self.flags.index[rows], "label": y, "stands": worst[rows]}
        self._write("landscape.npz", surroundings._asdict() | facts)

    def probes(self, listed: ListedAttack, class_names: Sequence[str]) -> None:
        """Write probes.npz: a few images under an attack."""
        x, y = self.x[:PROBES], self.flags.label[:PROBES]
        predict = predictor(self.logits_fn)
        options: Any = {"rows": self.flags.index[:PROBES], "seed": self.seed}
        x_adv = craft(self.logits_fn, x, y, listed.attack, self.threat, **options).images
        arrays = {
            "image": x,
            "adversarial": x_adv,
            "label": y,
            "clean_prediction": predict(x),
            "adversarial_prediction": predict(x_adv),
            "index": self.flags.index[:PROBES],
            "attack": np.array(listed.name),
            "class_names": np.array(list(class_names), str),
        }
        self._write("probes.npz", arrays)

    def _write(self, name: str, arrays: dict[str, Any]) -> None:
        write_atomically(self.folder / name, lambda path: np.savez(path, **arrays))
