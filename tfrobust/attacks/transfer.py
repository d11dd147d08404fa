"""Adversarial images made on another network."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks.base import LogitsFn, Outcome
from tfrobust.attacks.pgd import PGD
from tfrobust.attacks.wrapper import Wrapper
from tfrobust.errors import choose, path_text, require
from tfrobust.models import OUTPUTS, SavedNetwork, load_network, model_files
from tfrobust.registry import located
from tfrobust.serialization import serializable
from tfrobust.threat import Threat


@serializable
@dataclasses.dataclass(frozen=True)
class Transfer(Wrapper):
    """A transfer attack: adversarial images made on a surrogate network.

    It does not use the gradients of the attacked network, which may be useless. The attacked
    network is queried once for each example; passes of the surrogate are not counted.

    Args:
        source: The surrogate: a run folder, a .keras or .h5 file, or a SavedModel. It is loaded
            when it is first used.
        attack: The attack on the surrogate, an Attack, or its name and settings as in a config.
        outputs: The kind of the surrogate's outputs, "logits", "probabilities" or "sigmoids".
        output: The name of the output to use, if the surrogate has several.
        signature: The name of the signature to use, if the surrogate has several.
    """

    needs_gradients = False

    source: str
    attack: Any = PGD(steps=1000)
    outputs: str = "logits"
    output: str | None = None
    signature: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "source", path_text("source", self.source))
        choose("outputs", self.outputs, OUTPUTS)

    @property
    def title(self) -> str:
        path = Path(self.source)
        name = path.parent.name if path.name in ("model.keras", "saved_model") else path.name
        words = [f"Transfer {self.attack.title} from {name or self.source}"]
        words += [self.outputs] if self.outputs != "logits" else []
        words += [name for name in (self.output, self.signature) if name is not None]
        return " ".join(words)

    @property
    def differentiates(self) -> bool:
        return False

    def settings(self, threat: Threat) -> dict[str, Any]:
        """Return the settings that are not None, with those of the surrogate's attack."""
        return {k: value for k, value in super().settings(threat).items() if value is not None}

    @property
    def files(self) -> list[Path]:
        """The files of the surrogate and of the attack on it."""
        return [*model_files(self.source, "source"), *super().files]

    def check_network(self, logits_fn: LogitsFn, images: np.ndarray) -> None:
        """Raise a UserError unless the surrogate takes the images and has as many classes."""
        self.surrogate.check(images, "source")
        self._require_classes(logits_fn(tf.constant(images[:1])).shape[-1])
        located("attack", self.attack.check_network, self.surrogate, images)

    def _require_classes(self, classes: int) -> None:
        expected, received = f"a network of {classes} classes", self.surrogate.classes
        require(received == classes, "source", expected, received)

    def fitted(self, classes: int) -> Transfer:
        """Return this attack with the surrogate's attack fitted; a loaded surrogate is kept."""
        fitted: Transfer = super().fitted(classes)
        if "surrogate" in vars(self):
            vars(fitted)["surrogate"] = self.surrogate
        return fitted

    @cached_property
    def surrogate(self) -> SavedNetwork:
        """The surrogate, loaded once. Raises UserError if it cannot be loaded."""
        with tf.init_scope():  # the weights must not belong to the graph that calls it first
            return load_network(
                self.source, self.outputs, "source", output=self.output, signature=self.signature
            )

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        x, y, surrogate = tf.convert_to_tensor(x), tf.cast(y, tf.int32), self.surrogate
        surrogate.require_images(tuple(x.shape[1:]), "source")
        images = self.attack.images(surrogate, x, y, threat=threat, seed=seed)
        logits = tf.stop_gradient(logits_fn(images))
        self._require_classes(logits.shape[-1])
        zeros = tf.zeros_like(y)
        return Outcome(images, ~losses.correct(logits, y), zeros + 1, zeros)
