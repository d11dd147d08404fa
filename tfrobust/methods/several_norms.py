"""Training against several threats, with a random one for each batch or the worst of all."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfrobust.attacks import Attack
from tfrobust.attacks.wrapper import check_relative
from tfrobust.errors import require
from tfrobust.methods import hooks
from tfrobust.methods.batch import Batch
from tfrobust.registry import located
from tfrobust.threat import Threat

WAYS = ("sample", "max")
LEAST = 1e-6  # the least share of errors, so that a threat without errors can still be drawn


class Errors(keras.layers.Layer):
    """The robust error under each of several threats, over the training so far.

    As in the authors' code of E-AT (Croce and Hein, 2022, arXiv:2105.12508), it is the share of all
    attacked examples that are misclassified, and 1/2 for every threat until each was drawn once.
    Examples count by their weights.
    """

    def __init__(self, threats: int):
        super().__init__(trainable=False, dtype="float32")
        zeros: Any = {"shape": (threats,), "initializer": "zeros", "aggregation": "sum"}
        self.right = self.add_weight(**zeros, trainable=False, name="right")
        self.seen = self.add_weight(**zeros, trainable=False, name="seen")
        self.built = True

    def shares(self) -> tf.Tensor:
        """Return the share of errors under each threat, [threats]."""
        right, seen = tf.convert_to_tensor(self.right), tf.convert_to_tensor(self.seen)
        errors = 1.0 - tf.math.divide_no_nan(right, seen)
        return tf.where(tf.reduce_all(seen > 0), errors, 0.5)

    def draw(self, seed: tf.Tensor) -> tf.Tensor:
        """Return the place of a threat, int32, drawn in proportion to the errors."""
        logits = tf.math.log(tf.maximum(self.shares(), LEAST))
        return tf.random.stateless_categorical(logits[None], 1, seed, tf.int32)[0, 0]

    def count(self, place: tf.Tensor, right: Any, weight: Any = 1.0) -> None:
        """Add a batch that was attacked under the threat at a place in the list.

        `right` is whether each example is right, [B], or a pair of this and of whether the example
        was attacked, 1 or 0. `weight` is as in `Means.measure`.
        """
        values, attacked = right if isinstance(right, tuple) else (right, 1.0)
        values = tf.cast(values, tf.float32)
        counted = tf.ones_like(values) * attacked * weight
        chosen = tf.one_hot(place, self.seen.shape[0])
        self.right.value.assign_add(chosen * tf.reduce_sum(values * counted))
        self.seen.value.assign_add(chosen * tf.reduce_sum(counted))


def perturbed(model: Any, batch: Batch) -> Batch:
    """Return the new entries of a training batch under the threats of a `RobustModel`.

    With several threats and `norms` "sample", one threat is drawn, and the entry "norm" is its
    place in the list. With "max", each example gets the entries under the threat of its greatest
    loss, as in MAX of Tramèr and Boneh (2019, arXiv:1904.13000). BatchNorm's averages do not move
    in that comparison.
    """
    if len(model.threats) == 1:
        return model.perturb_under(model.threat, batch)
    branches = [functools.partial(model.perturb_under, threat, batch) for threat in model.threats]
    if model.errors is not None:
        place = model.errors.draw(model.seed_for("norm"))
        return tf.switch_case(place, branches) | {"norm": place}
    entries = [branch() for branch in branches]
    with model.substituted({}):
        values = [
            hooks.checked_terms(model.robust_loss(batch | each), batch, model)["loss"]
            for each in entries
        ]
    place = tf.argmax(tf.stack(values))

    def chosen(*values: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.stack(values, axis=1), place, axis=1, batch_dims=1)

    return tf.nest.map_structure(chosen, *entries)


def check_attack(
    where: str,
    attack: Attack | None,
    threats: Sequence[Threat],
    image_shape: tuple[int, ...] | None,
) -> None:
    """Raise a UserError if an argument is not an attack that works under every threat.

    Args:
        where: The name of the argument.
        attack: The argument; None, for a method without an attack, is accepted.
        threats: The threats. A step size in image units fits only one.
        image_shape: The shape of the images, (H, W, C), if it is known.
    """
    if attack is None:
        return
    require(isinstance(attack, Attack), where, "an attack, such as PGD()", attack)
    if len(threats) > 1:
        check_relative(attack, where, "none, a fraction of each eps (threat is a list)")
    for threat in threats:
        located(where, attack.check, threat, image_shape)
