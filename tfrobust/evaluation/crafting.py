"""Predictions and attacks on many images in batches, and checks of the adversarial images."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrobust import losses, noise, tf32
from tfrobust.attacks import Attack, Outcome, SavedImages, registered_name
from tfrobust.distribution import local_replicas, strategy, sum_over_workers, worker
from tfrobust.errors import UserError, require, require_seed
from tfrobust.evaluation.batching import batches, map_batches
from tfrobust.evaluation.image_checks import check_adversarial
from tfrobust.evaluation.progress import progress_bar
from tfrobust.evaluation.searches import Lookup, Search, of_rows
from tfrobust.gate import as_array, check_image_form, check_labels, check_values, inference
from tfrobust.threat import Threat

LogitsFn = Callable[[Any], Any]
Predict = Callable[[np.ndarray], np.ndarray]  # images [N, H, W, C] -> classes [N]
BATCH_SIZE = 250


class Crafted(NamedTuple):
    """The outcome of an attack on n images.

    Attributes:
        images: The adversarial images, float32 [n, H, W, C].
        right: Whether the network still predicts the label, bool [n].
        queries: The forward passes that the attack spent on each image, int32 [n].
        gradients: The backward passes that it spent, int32 [n].
        xla: Whether XLA compiled the attack.
    """

    images: np.ndarray
    right: np.ndarray
    queries: np.ndarray
    gradients: np.ndarray
    xla: bool = False

    @classmethod
    def nothing(cls, x: np.ndarray) -> Crafted:
        """Return an outcome for images x [n, H, W, C] in which everything is 0 or false."""
        right, counts = np.zeros(len(x), bool), np.zeros(len(x), np.int32)
        return cls(np.zeros_like(x), right, counts, counts.copy())


def checked(x: Any, y: Any, threat: Threat) -> tuple[np.ndarray, np.ndarray]:
    """Return images as float32 [n, H, W, C] and labels as int32 [n].

    Raises a UserError unless the images are floats in the threat's box, each with a class number,
    and the threat has one eps.
    """
    require(isinstance(threat, Threat), "threat", "a tfrobust.Threat", threat)
    require(not tf.is_tensor(threat.eps), "threat.eps", "one number for all images", threat.eps)
    x = as_array(x, "x")
    check_image_form(x, "x", threat.box, layout="channels_last")
    return check_values(x, "x", threat.box), check_labels(y, len(x))


def float32_logits(logits_fn: LogitsFn) -> LogitsFn:
    """Return the network in inference mode as a function from images to float32 logits [B, C]."""
    network = inference(logits_fn)

    def logits(images: Any) -> tf.Tensor:
        return tf.cast(network(images), tf.float32)

    return logits


def predictor(logits_fn: LogitsFn, batch_size: int = BATCH_SIZE) -> Predict:
    """Return a function from images [N, H, W, C] to predicted classes int32 [N].

    The class is -1 if a logit is not finite. The function is compiled once for each image shape. It
    runs with TensorFloat-32 off, because its predictions are the verdicts of an evaluation.
    """
    logits = float32_logits(logits_fn)
    traced: dict[tuple[int, ...], Any] = {}

    def classes(images: tf.Tensor) -> list[tf.Tensor]:
        return [losses.predicted(logits(images))]

    def predict(x: np.ndarray) -> np.ndarray:
        if not len(x):
            return np.zeros(0, np.int32)
        shape = x.shape[1:]
        if shape not in traced:
            traced[shape] = compiled(classes, shape)
        with tf32.switched_off():
            return map_batches(traced[shape], x, batch_size=batch_size)[0]

    return predict


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
    """Attack images batch by batch and check the adversarial images of each batch.

    The adversarial images must be finite, inside the box and within eps; they are never clipped.
    The network itself, with TensorFloat-32 off, decides whether each one is misclassified.

    Args:
        logits_fn: The network.
        x: Images in the box, floats [n, H, W, C].
        y: Labels [n].
        attack: The attack.
        threat: The threat.
        seed: The seed of the noise, which is a function of (seed, stream, number of the batch).
        batch_size: The number of images in a pass.
        progress: The label of a progress bar with the robust accuracy so far; None for no bar.
        rows: The places of x in its split, int [n], by which saved images are looked up.
        total: The number of images to which the bar's accuracy refers, n by default; images that
            are not in x count as broken.
        predict: `predictor(logits_fn, batch_size)`, if it has been traced already.
        stream: The name of the stream of noise, by default the registered name of the attack, which
            unlike a label cannot be changed.
        search: The same network in a lower precision, on which the attack searches. Images that
            only this network misclassifies are attacked again on the network itself.
        jit_compile: Whether XLA compiles the attack; "auto" does so on GPUs, unless XLA cannot
            compile the network.

    Raises:
        RuntimeError: If an adversarial image is not finite, outside the box or beyond eps.
        UserError: If the images or labels are not as described.
    """
    if not len(x):
        return Crafted.nothing(x)
    require(isinstance(attack, Attack), "attack", "an attack, such as PGD()", attack)
    (x, y), seed = checked(x, y, threat), require_seed(seed)
    if predict is None:
        check_traceable(logits_fn, x.shape[1:])
    predict = predict or predictor(logits_fn, batch_size)

    def run(network: LogitsFn, images: Any, labels: Any, number: Any) -> Outcome:
        seed_of_batch = noise.seed_for(seed, number, stream or registered_name(attack))
        return attack.outcome(network, images, labels, threat=threat, seed=seed_of_batch)

    find: Lookup | Search
    exact = None  # the attack on the network itself, if the search is in bfloat16, TF32 or XLA
    if isinstance(attack, SavedImages):
        places = np.arange(len(x)) if rows is None else rows
        find = Lookup(attack, threat, places, batch_size)
    else:
        lower = functools.partial(run, float32_logits(search or logits_fn))
        find = Search(lower, attack.title, x.shape[1:], batch_size, jit_compile)
        if find.xla or search is not None or tf32.in_use():
            exact = of_rows(functools.partial(run, float32_logits(logits_fn)), x.shape[1:])

    def judged(found: Outcome, clean: np.ndarray, labels: np.ndarray, number: int) -> Crafted:
        """Return what the network itself says of the images of a batch."""
        images, wrong, queries, gradients = (np.array(part) for part in found)
        check_adversarial(attack.title, threat, images, clean)
        right = predict(images) == labels
        doubtful = np.flatnonzero(wrong & right)
        if exact is not None and len(doubtful):
            with tf32.switched_off():
                again = exact(clean, labels, number, doubtful)
            images[doubtful] = again.images
            right[doubtful] = predict(images[doubtful]) == labels[doubtful]
            queries[doubtful] += again.queries
            gradients[doubtful] += again.gradients
            check_adversarial(attack.title, threat, images, clean)
        return Crafted(images, right, queries, gradients)

    rank, workers = worker()
    crafted, standing = Crafted.nothing(x), len(x)
    bar = progress_bar(progress, total=len(x))
    numbered = list(enumerate(batches(len(x), batch_size)))[rank::workers]
    for numbers in batches(len(numbered), local_replicas()):
        chosen = [rows_of_batch for _, rows_of_batch in numbered[numbers]]
        group = [(x[each], y[each], number) for number, each in numbered[numbers]]
        for each, batch, found in zip(chosen, group, find(group), strict=True):
            outcome = judged(found, *batch)
            crafted.images[each], crafted.right[each] = outcome.images, outcome.right
            crafted.queries[each], crafted.gradients[each] = outcome.queries, outcome.gradients
            standing -= int((~outcome.right).sum())
            bar.set_postfix_str(f"robust {standing / (total or len(x)):.2%}", refresh=False)
            bar.update(len(outcome.right))
    bar.close()
    # One worker has the numbers of an image and the others have zeros, so their sum is the number.
    return Crafted(
        sum_over_workers(crafted.images),
        sum_over_workers(crafted.right.astype(np.int32)).astype(bool),
        sum_over_workers(crafted.queries),
        sum_over_workers(crafted.gradients),
        find.xla,
    )


def computed_by() -> dict[str, Any]:
    """Return the number of devices that compute, and whether they use TensorFloat-32."""
    return {"replicas": strategy().num_replicas_in_sync, "tf32": tf32.in_use()}


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
    """Return the adversarial images of `craft` alone, float32 [n, H, W, C]."""
    return craft(logits_fn, x, y, attack, threat, seed=seed, batch_size=batch_size).images


def check_traceable(logits_fn: LogitsFn, image_shape: Any) -> None:
    """Raise a UserError of one line unless TensorFlow can trace the network, as attacks need it.

    The network takes images [B, H, W, C] and returns logits [B, C] with a known C.
    """
    try:
        output = compiled(logits_fn, image_shape).structured_outputs
    except (UserError, tf.errors.OpError):
        raise
    except Exception as error:
        text = re.sub(r"\x1b\[\d*m", "", str(error))
        message = " ".join(text.split()).split(". You can")[0]
        raise UserError(
            "logits_fn: expected a function that TensorFlow can trace, received one that fails for "
            f"images {(None, *image_shape)}: {message[:160]}; call network(x), "
            "not network.predict(x), no .numpy() and no NumPy in it, tf.shape(x)[0] for the number "
            "of images, and for an `if` on a tensor tf.where, tf.cond, or @tf.function on the "
            "function that holds it"
        ) from error
    shape = getattr(output, "shape", tf.TensorShape(None))
    fits = tf.TensorShape(shape).rank == 2 and shape[1] is not None
    expected = "a function whose output has a known shape [None, C] (set it with tf.ensure_shape)"
    require(fits, "logits_fn", expected, str(shape))


def compiled(function: Callable[..., Any], image_shape: Any, *others: Any) -> Any:
    """Return a function traced once for images [B, H, W, C] of any B, and arguments of `others`.

    Args:
        function: The function.
        image_shape: The shape (H, W, C).
        others: The TensorSpecs of the arguments that follow the images.
    """
    images = tf.TensorSpec([None, *image_shape], tf.float32)
    traced = tf.function(function, input_signature=[images, *others], autograph=False)
    return traced.get_concrete_function()
