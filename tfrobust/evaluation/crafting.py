"""Run a network or an attack over many images in batches, and check what the attack made."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from tfrobust import losses, noise, tf32, xla
from tfrobust.attacks import Attack, Outcome, SavedImages, Staged, registered_name
from tfrobust.distribution import added, local_replicas, strategy, worker
from tfrobust.errors import UserError, require
from tfrobust.gate import inference
from tfrobust.threat import Threat

LogitsFn = Callable[[Any], Any]
Predict = Callable[[np.ndarray], np.ndarray]  # images [N, H, W, C] -> classes [N]
BATCH_SIZE = 250
PIXELS = 2**22  # of images that are looked at in float64 at once: 32 MiB for each copy
ROWS = tf.TensorSpec([None], tf.int64)
TOLERANCE = 1e-6  # of a distance beyond eps: float32 rounding, of 1 or of what is larger


class Crafted(NamedTuple):
    """What an attack made of some images.

    images: float32 [n, H, W, C]. right: bool [n], the network still says the label. queries,
    gradients: int32 [n], the forward and backward passes that the attack spent on each. xla:
    whether XLA compiled the attack.
    """

    images: np.ndarray
    right: np.ndarray
    queries: np.ndarray
    gradients: np.ndarray
    xla: bool = False

    @classmethod
    def nothing(cls, x: np.ndarray) -> Crafted:
        """Zeros for images x [n, H, W, C]."""
        right, counts = np.zeros(len(x), bool), np.zeros(len(x), np.int32)
        return cls(np.zeros_like(x), right, counts, counts.copy())


def predictor(logits_fn: LogitsFn, batch_size: int = BATCH_SIZE) -> Predict:
    """Images [N, H, W, C] -> predicted classes [N], -1 where a logit is not finite; compiled once
    for each shape of image. TensorFloat-32 is off: these predictions are the verdicts."""

    network = inference(logits_fn)

    def predict(images: Any) -> Any:
        return losses.predicted(tf.cast(network(images), tf.float32))

    traced: dict[tuple[int, ...], Any] = {}

    def run(x: np.ndarray) -> np.ndarray:
        shape = x.shape[1:]
        if shape not in traced:
            traced[shape] = compiled(predict, shape)
        function = traced[shape]
        with tf32.switched_off():
            parts = [function(tf.constant(x[rows])).numpy() for rows in batches(len(x), batch_size)]
        return np.concatenate([np.zeros(0, np.int32), *parts])

    return run


def craft(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    attack: Attack,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: str | None = None,
    rows: np.ndarray | None = None,
    total: int | None = None,
    predict: Predict | None = None,
    stream: str | None = None,
    search: LogitsFn | None = None,
    jit_compile: bool | str = False,
) -> Crafted:
    """The attack on x [n, H, W, C], in batches, each checked: finite, inside the box, within eps.

    What it makes is judged by the network itself, TensorFloat-32 off. search: the same network in a
    lower precision, which the attack then searches on. Images that it takes for misclassified but
    the network classifies rightly are attacked once more, on the network itself. jit_compile:
    whether XLA compiles the attack; "auto" is on GPUs, as far as XLA takes the network.

    The noise is a function of (seed, stream, the batch's number); stream: by default the attack's
    registered name, so that no display name changes a number. progress: the label
    of a progress bar that shows the robust accuracy so far over `total` images, those not in x
    being broken; none by default. rows: the places of x in the test set (saved images are looked
    up by them). predict: `predictor(logits_fn, batch_size)`, where it is traced already. Raises
    RuntimeError if the attack left the threat's set: nothing is clipped here.
    """

    def run(network: LogitsFn, images: Any, labels: Any, number: Any) -> Outcome:
        numbered = noise.seed_for(seed, number, stream or registered_name(attack))

        def logits(images: Any) -> Any:
            return tf.cast(network(images), tf.float32)

        return attack.run(logits, images, labels, threat=threat, seed=numbered)

    if not len(x):
        return Crafted.nothing(x)
    if predict is None:
        check_traceable(logits_fn, x.shape[1:])
    exact, lower = inference(logits_fn), inference(search or logits_fn)
    saved = attack if isinstance(attack, SavedImages) else None
    run_lower, function, again = functools.partial(run, lower), None, None
    compiled_by_xla = saved is None and by_xla(jit_compile)
    if compiled_by_xla:
        function = _compiled(run_lower, x.shape[1:], batch_size)
    elif saved is None:
        function = _on_replicas(run_lower, x.shape[1:])
    if compiled_by_xla or (saved is None and (search is not None or tf32.in_use())):
        again = _of_rows(functools.partial(run, exact), x.shape[1:])
    predict = predict or predictor(logits_fn, batch_size)
    places = np.arange(len(x)) if rows is None else rows
    mine, workers = worker()
    made, standing = Crafted.nothing(x), len(x)
    quiet = True if progress is None or mine else None
    bar = tqdm(total=len(x), desc=progress, unit="image", disable=quiet)
    own = list(enumerate(batches(len(x), batch_size)))[mine::workers]
    at_once = local_replicas()
    for group in (own[first : first + at_once] for first in range(0, len(own), at_once)):
        if function is not None:
            given = [(x[chosen], y[chosen], number) for number, chosen in group]
            try:
                outcomes = function(given)
            except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
                if jit_compile != "auto" or "XLA" not in str(error):
                    raise
                logging.warning("%s: not compiled: XLA does not take this network", attack.title)
                compiled_by_xla, function = False, _on_replicas(run_lower, x.shape[1:])
                outcomes = function(given)
        for place, (number, chosen) in enumerate(group):
            if saved is not None:
                images = saved_images(saved, places[chosen], x[chosen], threat)
                wrong, queries, gradients = (np.zeros(len(images), t) for t in (bool, int, int))
            else:
                images, wrong, queries, gradients = (np.array(part) for part in outcomes[place])
                check_adversarial(attack.title, threat, images, x[chosen])
            right = predict(images) == y[chosen]
            doubtful = np.flatnonzero(wrong & right)
            if again is not None and len(doubtful):
                with tf32.switched_off():
                    outcome = again(x[chosen], y[chosen].astype(np.int32), number, doubtful)
                images[doubtful] = outcome.images
                right[doubtful] = predict(images[doubtful]) == y[chosen][doubtful]
                queries[doubtful] += outcome.queries
                gradients[doubtful] += outcome.gradients
                check_adversarial(attack.title, threat, images, x[chosen])
            made.queries[chosen], made.gradients[chosen] = queries, gradients
            made.images[chosen], made.right[chosen] = images, right
            standing -= int((~right).sum())
            bar.set_postfix_str(f"robust {standing / (total or len(x)):.2%}", refresh=False)
            bar.update(len(right))
    bar.close()
    # Of each image one worker knows the numbers, the others hold zeros.
    return Crafted(
        added(made.images),
        added(made.right.astype(np.int32)).astype(bool),
        added(made.queries),
        added(made.gradients),
        compiled_by_xla,
    )


def computed_by() -> dict[str, Any]:
    """Return what a measurement is computed by: the devices, and whether in TensorFloat-32."""
    return {"replicas": strategy().num_replicas_in_sync, "tf32": tf32.in_use()}


def by_xla(jit_compile: bool | str) -> bool:
    """Return whether attacks are compiled: as asked for, or ("auto") on GPUs. Raises UserError for
    any other choice."""
    require(xla.is_choice(jit_compile), "jit_compile", "true, false or auto", jit_compile)
    return xla.on_gpus(strategy()) if jit_compile == "auto" else bool(jit_compile)


def _compiled(run: Callable[..., Outcome], image_shape: Any, batch_size: int) -> Callable[..., Any]:
    """As `_on_replicas`, compiled by XLA; on one device in stages."""
    if local_replicas() > 1:
        return _on_replicas(xla.compiled(run), image_shape)
    staged = Staged(run, batch_size)

    def call(group: list[tuple[np.ndarray, np.ndarray, int]]) -> list[Outcome]:
        with _without_gradients():
            return [staged(images, labels.astype(np.int32), n) for images, labels, n in group]

    return call


@contextlib.contextmanager
def _without_gradients() -> Iterator[None]:
    """Raise a UserError where an operation has no gradient."""
    try:
        yield
    except LookupError as error:
        if type(error) is not LookupError:  # a KeyError or an IndexError
            raise
        raise UserError(
            "logits_fn: expected operations that have gradients, received one that has none "
            f"({' '.join(str(error).split())[:160]}); attacks without gradients need none: "
            "square, rays, uniform_noise"
        ) from error


def _of_rows(run: Callable[..., Outcome], image_shape: Any) -> Callable[..., Outcome]:
    """(images, labels, the batch's number, rows [n]) -> what `run` makes of these rows of the
    batch, with the noise that they have in it."""

    def part(images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor, rows: tf.Tensor) -> Outcome:
        with noise.of_one_replica(), noise.of_rows(tf.size(labels), rows):
            return run(tf.gather(images, rows), tf.gather(labels, rows), number)

    return tf.function(part, input_signature=[*_specs(image_shape), ROWS], autograph=False)


def _specs(image_shape: Any) -> list[tf.TensorSpec]:
    """Of images, their labels and the number of the batch."""
    return [
        tf.TensorSpec([None, *image_shape], tf.float32),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([], tf.int32),
    ]


def _on_replicas(run: Callable[..., Outcome], image_shape: Any) -> Callable[..., Any]:
    """[(images, labels, the batch's number), ...] -> [Outcome, ...]: at most one batch a replica,
    all at once. The noise of a batch is the same on whichever replica."""
    at_once = local_replicas()
    specs = _specs(image_shape)

    def everywhere(*values: tf.Tensor) -> Any:
        def replica() -> Outcome:
            own = tf.distribute.get_replica_context().replica_id_in_sync_group
            number = int(tf.get_static_value(tf.convert_to_tensor(own))) % at_once
            with noise.of_one_replica():
                return run(*values[3 * number : 3 * number + 3])

        return strategy().experimental_local_results(strategy().run(replica))

    traced = tf.function(everywhere, input_signature=specs * at_once, autograph=False)
    with _without_gradients():
        function = traced.get_concrete_function()

    def call(group: list[tuple[np.ndarray, np.ndarray, int]]) -> list[Outcome]:
        images, labels, number = group[0]
        idle = [(images[:1], labels[:1], number)] * (at_once - len(group))  # not empty: conv fails
        made = function(*(tf.constant(value, spec.dtype) for parts in [*group, *idle]
                          for value, spec in zip(parts, specs, strict=True)))  # fmt: skip
        return list(made[: len(group)])

    return call


def adversaries(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    attack: Attack,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """The images of `craft` alone."""
    return craft(logits_fn, x, y, attack, threat, seed=seed, batch_size=batch_size).images


def batches(n: int, batch_size: int) -> Iterator[slice]:
    """The rows of each batch, the last one as small as it is."""
    return (slice(start, start + batch_size) for start in range(0, n, batch_size))


def saved_images(
    attack: SavedImages, rows: np.ndarray, x: np.ndarray, threat: Threat
) -> np.ndarray:
    """Return the saved images of the rows [n] of the test set, x [n, H, W, C]. Raises UserError
    where the file has none, or has images outside the threat's set."""
    images = attack.lookup(rows)
    try:
        check_adversarial(attack.title, threat, images, x)
    except RuntimeError as error:
        expected = f"images of this threat, received {attack.path}"
        raise UserError(f"path: expected {expected}: {error}") from None
    return images


def check_adversarial(title: str, threat: Threat, x_adv: np.ndarray, x: np.ndarray) -> None:
    """Raise RuntimeError unless the images [n, H, W, C] that `title` made of x are finite, inside
    the box and within eps of x; UserError where their shape is another."""
    low, high = threat.box
    if x_adv.shape != x.shape:
        raise UserError(
            f"{title}: expected images of shape {x.shape[1:]}, received {x_adv.shape[1:]}"
        )
    most = threat.eps + TOLERANCE * max(1.0, threat.eps, *map(abs, threat.box))
    for rows in batches(len(x), max(1, PIXELS // x[:1].size)):  # in float64, so in small parts
        images, near = x_adv[rows].astype(np.float64), x[rows].astype(np.float64)
        if not np.isfinite(images).all():
            raise RuntimeError(f"{title}: made images that are not finite")
        if images.min() < low or images.max() > high:
            raise RuntimeError(
                f"{title}: made images in [{images.min()}, {images.max()}], "
                f"outside the box [{low}, {high}]"
            )
        distance = threat.distance(images, near).numpy()
        if (distance > most).any():
            raise RuntimeError(
                f"{title}: made images at distance {distance.max()}, eps is {threat.eps}"
            )


def check_traceable(logits_fn: LogitsFn, image_shape: Any) -> None:
    """Raise a one-line UserError unless TensorFlow makes a graph of the network, for any number of
    images [H, W, C], whose output is logits [B, C]. Attacks run in it, and take its gradients."""
    try:
        made = compiled(logits_fn, image_shape).structured_outputs
    except (UserError, tf.errors.OpError):
        raise
    except Exception as error:
        said = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
        raise UserError(
            "logits_fn: expected a function that TensorFlow can trace, received one that fails for "
            f"images {(None, *image_shape)}: {said.split('. You can')[0][:160]}; call network(x), "
            "not network.predict(x), no .numpy() and no NumPy in it, tf.shape(x)[0] for the number "
            "of images, and for an `if` on a tensor tf.where, tf.cond, or @tf.function on the "
            "function that holds it"
        ) from error
    shape = getattr(made, "shape", tf.TensorShape(None))
    fits = tf.TensorShape(shape).rank == 2 and shape[1] is not None
    expected = "a function whose output has a known shape [None, C] (set it with tf.ensure_shape)"
    require(fits, "logits_fn", expected, str(shape))


def compiled(function: Callable[..., Any], image_shape: Any, *others: Any) -> Any:
    """One trace for batches of every size."""
    images = tf.TensorSpec([None, *image_shape], tf.float32)
    traced = tf.function(function, input_signature=[images, *others], autograph=False)
    return traced.get_concrete_function()
