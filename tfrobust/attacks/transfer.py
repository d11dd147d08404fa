"""Adversarial images made on another network."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfrobust import losses
from tfrobust.attacks.base import Attack, LogitsFn, Outcome
from tfrobust.attacks.pgd import PGD
from tfrobust.errors import choose, require
from tfrobust.models import OUTPUTS, SavedNetwork, load_network, model_files
from tfrobust.registry import build, located
from tfrobust.serialization import serializable
from tfrobust.threat import Threat


@serializable
@dataclasses.dataclass(frozen=True)
class Transfer(Attack):
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

    source: str
    attack: Any = PGD(steps=1000)
    outputs: str = "logits"
    output: str | None = None
    signature: str | None = None

    def __post_init__(self) -> None:
        choose("outputs", self.outputs, OUTPUTS)
        if not isinstance(self.attack, Attack):
            from tfrobust.attacks import ATTACKS  # not above, as the registry imports this file

            object.__setattr__(self, "attack", build(ATTACKS, self.attack, "attack"))

    @property
    def title(self) -> str:
        path = Path(self.source)
        name = path.parent.name if path.name in ("model.keras", "saved_model") else path.name
        words = [f"Transfer {self.attack.title} from {name or self.source}"]
        words += [self.outputs] if self.outputs != "logits" else []
        words += [name for name in (self.output, self.signature) if name is not None]
        return " ".join(words)

    def settings(self, threat: Threat) -> dict[str, Any]:
        """Return the settings, with those of the surrogate's attack."""
        settings = super().settings(threat) | {"attack": self.attack.settings(threat)}
        return {key: value for key, value in settings.items() if value is not None}

    @property
    def files(self) -> list[Path]:
        """The files of the surrogate and of the attack on it."""
        return [*model_files(self.source, "source"), *self.attack.files]

    def check(self, threat: Threat, image_shape: tuple[int, ...] | None = None) -> None:
        """Check the attack on the surrogate."""
        located("attack", self.attack.check, threat, image_shape)

    def fitted(self, classes: int) -> Transfer:
        """Return this attack with the surrogate's attack fitted; a loaded surrogate is kept."""
        fitted = dataclasses.replace(self, attack=self.attack.fitted(classes))
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
        images = self.attack(surrogate, x, y, threat=threat, seed=seed)
        logits = tf.stop_gradient(logits_fn(images))
        classes = logits.shape[-1]
        expected = f"a network of {classes} classes"
        require(surrogate.classes == classes, "source", expected, surrogate.classes)
        zeros = tf.zeros_like(y)
        return Outcome(images, ~losses.correct(logits, y), zeros + 1, zeros)
