"""The checks of what a method declares, and of what its hooks return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfrobust.errors import is_int, require

# The attributes of a method that are sequences of names.
NAMES = ("network_inputs", "reports", "requires", "differentiate", "needs")


def check_names(method: type) -> None:
    """Raise a UserError if a class of methods has one text where it should have several names.

    The parentheses of ("kl") make no tuple, and Python would go through its letters.
    """
    for attribute in NAMES:
        value = vars(method).get(attribute, ())
        where = f"{method.__name__}.{attribute}"
        require(not isinstance(value, str), where, f"a tuple such as ({value!r},)", value)


def check_counts(needs: Iterable[str], **counts: int | None) -> None:
    """Raise a UserError for a count below 1, or for one that is needed and is None."""
    for argument, count in counts.items():
        if count is not None or argument in needs:
            fits = is_int(count) and int(count or 0) >= 1
            require(fits, argument, "int >= 1, of the training data", count)


def checked_entries(entries: Any, method: Any) -> dict[str, Any]:
    """Return the entries of a method's `perturb`. Raises a UserError unless they are a mapping."""
    where = f"{type(method).__name__}.perturb"
    is_mapping = isinstance(entries, Mapping)
    require(is_mapping, where, "a mapping such as {'adv': x_adv}", type(entries).__name__)
    return dict(entries)


def checked_terms(terms: Any, batch: Mapping[str, Any], method: Any) -> dict[str, Any]:
    """Return the terms of a method's `robust_loss`.

    Raises a UserError unless they have a loss, and it and the reported ones have one number for
    each example: with [B, B], [B, 1] or one number, the mean would not be that of the batch.
    """
    where = f"{type(method).__name__}.robust_loss"
    is_mapping, expected = isinstance(terms, Mapping), "a mapping with 'loss'"
    require(is_mapping, where, expected, type(terms).__name__)
    require("loss" in terms, where, expected, f"one with {', '.join(map(str, terms))}")
    for name in ("loss", *method.reported):
        values, place = terms.get(name), f"{where}[{name!r}]"
        expected = f"one number for each example, shape {batch['label'].shape}"
        if values is None or isinstance(values, tuple):
            # Another term may be missing, or be a pair with the examples that have it.
            require(name != "loss", place, expected, type(values).__name__)
            continue
        shape = tf.convert_to_tensor(values).shape
        require(shape.is_compatible_with(batch["label"].shape), place, expected, f"{shape}")
    return dict(terms)


def check_own_weights(method: Any) -> None:
    """Raise a UserError if a method has trainable weights beside the network's.

    The optimizer would not move them. A teacher, which is not to move, has none if it is frozen.
    """
    trained = {id(weight) for weight in method.network.trainable_variables}
    own = [weight.path for weight in method.trainable_variables if id(weight) not in trained]
    expected = "no trainable weights beside the network's (make them part of it, or set "
    expected += "`trainable = False` on the layer or network that has them)"
    require(not own, type(method).__name__, expected, ", ".join(own))


def argument_of(method: Any, name: str) -> Any:
    """Return an argument of a method's constructor, which must be kept under its own name."""
    kept = hasattr(method, name)
    where, expected = type(method).__name__, f"the argument {name} as self.{name}, to save it"
    require(kept, where, expected, "no such attribute")
    return getattr(method, name)
