"""How the adversarial images of batches are found: by an attack on each replica, or in a file."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfrobust import noise, xla
from tfrobust.attacks import Outcome, SavedImages, Staged
from tfrobust.distribution import local_replicas, strategy
from tfrobust.errors import UserError, require
from tfrobust.evaluation.image_checks import saved_images
from tfrobust.threat import Threat

Group = Sequence[tuple[np.ndarray, np.ndarray, int]]  # images, labels and number of each batch
ROWS = tf.TensorSpec([None], tf.int64)


class Lookup:
    """The images of batches from a file, in place of a search for them.

    It takes groups of batches as `Search` does. `places` are those of all images in their split.
    """

    xla = False

    def __init__(self, attack: SavedImages, threat: Threat, places: np.ndarray, batch_size: int):
        self.attack, self.threat, self.places, self.size = attack, threat, places, batch_size

    def __call__(self, group: Group) -> list[Outcome]:
        return [self._found(images, number) for images, _, number in group]

    def _found(self, clean: np.ndarray, number: int) -> Outcome:
        places = self.places[number * self.size :][: len(clean)]
        images = saved_images(self.attack, places, clean, self.threat)
        right, counts = np.zeros(len(images), bool), np.zeros(len(images), np.int32)
        return Outcome(images, right, counts, counts)


class Search:
    """The search of an attack on groups of batches, at most one for each replica.

    Attributes:
        xla: Whether XLA compiles the search.
    """

    def __init__(
        self,
        run: Callable[..., Outcome],
        title: str,
        image_shape: Any,
        batch_size: int,
        jit_compile: bool | str,
    ):
        self.title, self.jit_compile, self.xla = title, jit_compile, by_xla(jit_compile)
        self.plain = functools.partial(_on_replicas, run, image_shape)
        self.call = _compiled(run, image_shape, batch_size) if self.xla else self.plain()

    def __call__(self, group: Group) -> list[Outcome]:
        try:
            return self.call(group)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            if self.jit_compile != "auto" or "XLA" not in str(error):
                raise
            logging.warning("%s: not compiled: XLA does not take this network", self.title)
            self.xla, self.call = False, self.plain()
            return self.call(group)


def by_xla(jit_compile: bool | str) -> bool:
    """Return whether XLA compiles attacks; "auto" means on GPUs. Raises UserError for others."""
    require(xla.is_choice(jit_compile), "jit_compile", "true, false or auto", jit_compile)
    return xla.on_gpus(strategy()) if jit_compile == "auto" else bool(jit_compile)


def _compiled(run: Callable[..., Outcome], image_shape: Any, batch_size: int) -> Callable[..., Any]:
    """Return the function of `_on_replicas`, compiled by XLA; one device runs it in stages."""
    if local_replicas() > 1:
        return _on_replicas(xla.compiled(run), image_shape)
    staged = Staged(run, batch_size)

    def call(group: Group) -> list[Outcome]:
        with _without_gradients():
            return [staged(images, labels.astype(np.int32), n) for images, labels, n in group]

    return call


@contextlib.contextmanager
def _without_gradients() -> Iterator[None]:
    """Raise a UserError if an operation has no gradient."""
    try:
        yield
    except LookupError as error:
        if type(error) is not LookupError:  # it is a KeyError or an IndexError
            raise
        raise UserError(
            "logits_fn: expected operations that have gradients, received one that has none "
            f"({' '.join(str(error).split())[:160]}); attacks without gradients need none: "
            "square, rays, saved_images, uniform_noise"
        ) from error


def of_rows(run: Callable[..., Outcome], image_shape: Any) -> Callable[..., Outcome]:
    """Return a function that runs an attack on some rows of a batch.

    It takes (images, labels, number of the batch, rows [n]). The rows get the same noise as in an
    attack on all rows.
    """

    def part(images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor, rows: tf.Tensor) -> Outcome:
        with noise.of_one_replica(), noise.of_rows(tf.size(labels), rows):
            return run(tf.gather(images, rows), tf.gather(labels, rows), number)

    apart = xla.traced_apart(part)
    return tf.function(apart, input_signature=[*_specs(image_shape), ROWS], autograph=False)


def _specs(image_shape: Any) -> list[tf.TensorSpec]:
    """Return the signature (images, labels, number of the batch)."""
    return [
        tf.TensorSpec([None, *image_shape], tf.float32),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([], tf.int32),
    ]


def _on_replicas(run: Callable[..., Outcome], image_shape: Any) -> Callable[..., Any]:
    """Return a function that attacks several batches at once, at most one on each replica.

    It takes [(images, labels, number of the batch), ...] and returns [Outcome, ...]. The noise of a
    batch does not depend on its replica.
    """
    replicas = local_replicas()
    specs = _specs(image_shape) * replicas

    def everywhere(*values: tf.Tensor) -> Any:
        def replica() -> Outcome:
            replica_id = tf.distribute.get_replica_context().replica_id_in_sync_group
            number = int(tf.get_static_value(tf.convert_to_tensor(replica_id))) % replicas
            with noise.of_one_replica():
                return run(*values[3 * number : 3 * number + 3])

        return strategy().experimental_local_results(strategy().run(replica))

    traced = tf.function(everywhere, input_signature=specs, autograph=False)
    with _without_gradients():
        function = traced.get_concrete_function()

    def call(group: Group) -> list[Outcome]:
        images, labels, number = group[0]
        # Idle replicas get one image, because convolutions fail on an empty batch.
        idle = [(images[:1], labels[:1], number)] * (replicas - len(group))
        values = itertools.chain(*group, *idle)
        outcomes = function(*map(tf.constant, values, [spec.dtype for spec in specs]))
        return list(outcomes[: len(group)])

    return call
