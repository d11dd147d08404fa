"""The function `evaluate`, which measures the robust accuracy of a network."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust._compat import layers_of
from tfrobust.attacks.gradient import input_gradient
from tfrobust.errors import (
    UserError,
    choose,
    in_memory,
    require,
    require_at_least,
    require_bool,
    require_seed,
    user_path,
)
from tfrobust.evaluation.attack_list import AttackSpec, ListedAttack, check_gradients, list_attacks
from tfrobust.evaluation.batching import map_batches
from tfrobust.evaluation.binarisation import features_of
from tfrobust.evaluation.cascade import fitted, run_all
from tfrobust.evaluation.closing import Closing
from tfrobust.evaluation.corruption_accuracy import Corruptions, OnCorruptedImages, require_images
from tfrobust.evaluation.crafting import BATCH_SIZE, LogitsFn, check_traceable, predictor
from tfrobust.evaluation.details import Details
from tfrobust.evaluation.recorder import Recorder
from tfrobust.evaluation.results import Check, Evaluation
from tfrobust.evaluation.searches import by_xla
from tfrobust.gate import check_first, check_inputs, inference, outputs
from tfrobust.models import SavedNetwork, in_precision
from tfrobust.norms import norm
from tfrobust.record import NetworkRow
from tfrobust.registry import located
from tfrobust.threat import Threat, threats_of

FIRST = 16  # images whose logits identify a network
CRAFT_PRECISIONS = ("float32", "mixed_bfloat16")
CORRUPTED = "True, False or tfrobust.evaluation.Corruptions(...)"


def evaluate(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    threat: Threat | Sequence[Threat],
    attacks: AttackSpec | Sequence[AttackSpec] = "autoattack",
    *,
    mode: str = "cascade",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    images: bool = False,
    check: bool = True,
    progress: bool = True,
    folder: str | Path | None = None,
    save: str | None = None,
    rerun: bool = False,
    details: Details | None = None,
    layout: str | None = None,
    craft_precision: str = "float32",
    jit_compile: bool | str = "auto",
    corruptions: Corruptions | bool = False,
    binarisation: int = 0,
) -> Evaluation:
    """Measure the robust accuracy of a network under a list of attacks.

    Robust accuracy is the share of images that are classified correctly both when clean and under
    every attack.

    Args:
        logits_fn: A Keras network or another function from images [B, H, W, C] in the box to
            logits [B, C]. Keras layers are in inference mode, unless the function gives them
            `training=True`.
        x: Float images [N, H, W, C], series [N, T, C] or a table [N, F], in the box. If every
            attack has a limit `examples`, only the images up to the largest limit are evaluated,
            also for the clean accuracy. Images that are sorted by class are refused then.
        y: Class numbers [N].
        threat: The set in which the attacks search, or a list of sets, one for each norm. With a
            list every attack runs under each norm, or only under that of its key `norm`, and robust
            accuracy is that in the union. `Evaluation.norms` has the accuracy under each norm.
        attacks: The name of a suite ("autoattack", "fast" or "paper") or of an attack, a mapping
            with its settings, an Attack, or a list of these.
        mode: "cascade" gives each attack only the images that no earlier attack has broken; "each"
            gives every attack all images that are right when clean.
        seed: The seed of all noise.
        batch_size: The number of images in a pass.
        images: Whether to keep the adversarial images in memory. Not possible with a folder.
        check: Whether to end with the checks for a false sense of security and, in a folder, with
            the curves and pictures of its page. The checks cost about 200 forward and backward
            passes for each of up to 200 images, the curve over eps up to 140 for each of up to 500.
        progress: Whether to show a bar on a terminal.
        folder: The folder of the record, which is written after every attack. The same call, even
            with more attacks, reuses the results in it. Results of another network, of other images
            or of another threat are moved to folder/evaluation.1.
            `tfrobust.report.write_report(folder)` makes the page of the folder.
        save: "float32" or "uint8" to write the adversarial images to the folder.
        rerun: Whether to compute finished attacks in the folder again.
        details: Descriptions that the record keeps beside the numbers.
        layout: "channels_last" or "channels_first", for images whose shape is ambiguous.
        craft_precision: "float32", or "mixed_bfloat16" to let the attacks search on a Keras network
            in bfloat16. The network itself decides whether an image is misclassified. Images that
            only the network in bfloat16 misclassifies are attacked again on the network itself.
        jit_compile: Whether XLA compiles the attacks. Compiling takes time for each attack, and
            makes attacks on GPUs faster; "auto" compiles on GPUs only.
        corruptions: The common corruptions whose images are classified after the attacks, True for
            all fifteen at five severities. This costs 75 passes over the images.
        binarisation: The number of images, at most 200, at which a check makes an adversarial image
            exist and looks whether the attacks find one. This costs 1,200 passes for each and those
            of the attacks, which run on one image at a time.

    Returns:
        The result of each attack, the checks and the accuracy on corrupted images.

    Raises:
        UserError: If an argument is not as described. Nothing is written then.
        RuntimeError: If an attack returns an image that is not finite, outside the box or beyond
            eps. With a folder, the results of the attacks before it are kept.
    """
    threats = threats_of(threat)
    runtime = logits_fn.runtime if isinstance(logits_fn, SavedNetwork) else None
    attack_list = list_attacks(attacks, threats)
    details = Details() if details is None else details
    require(isinstance(details, Details), "details", "tfrobust.evaluation.Details(...)", details)
    seed = require_seed(seed)
    require_bool(images=images, check=check, progress=progress, rerun=rerun)
    folder = None if folder is None else user_path("folder", folder)
    require_at_least(0, binarisation=binarisation)
    binarisation = int(binarisation)  # NumPy's cannot stand in the record
    check_gradients(attack_list, runtime)
    measured = not binarisation or (check and attack_list and runtime is None)
    require(measured, "binarisation", "0 without checks, attacks or gradients", binarisation)
    expected = "False with a folder (save='float32' keeps them there)"
    require(folder is None or not images, "images", expected, images)
    expected = "none with several threats, whose images lie in different balls"
    require(save is None or len(threats) == 1, "save", expected, save)
    require(save is None or folder is not None, "save", "None without a folder", save)
    require(isinstance(corruptions, bool | Corruptions), "corruptions", CORRUPTED, corruptions)
    with in_memory("batch_size", batch_size), contextlib.ExitStack() as stack:
        x, y = check_inputs(logits_fn, x, y, threats, batch_size, layout)
        require_images(corruptions, x.shape[1:])
        for listed in attack_list:
            located(listed.name, listed.attack.check, listed.threat or threats[0], x.shape[1:])
        digest = None if folder is None else _digest(logits_fn, details)
        network = inference(logits_fn)
        features = features_of(logits_fn) if binarisation else network
        precision, search = _precision(logits_fn), None
        by_xla(jit_compile)
        choose("craft_precision", craft_precision, CRAFT_PRECISIONS)
        if craft_precision != "float32":
            search = in_precision(logits_fn, craft_precision, "craft_precision")
        logits = outputs(network, x[:FIRST], batch_size)

        def logits_fn(images: Any) -> Any:
            return tf.ensure_shape(network(images), [None, logits.shape[1]])

        check_traceable(logits_fn, x.shape[1:])
        corruptions = Corruptions() if corruptions is True else corruptions
        check_samples(y, attack_list, mode, corruptions)
        n = images_in_use(len(x), attack_list, corruptions)
        x, y = x[:n], y[:n]
        places = n if details.index is None else len(details.index)
        require(places >= n, "details.index", f"a place for {n} images", places)
        attack_list = [fitted(listed, logits.shape[1]) for listed in attack_list]
        predict = predictor(logits_fn, batch_size)
        recorder = None
        if folder is not None:
            row = NetworkRow(logits=logits.tolist(), sha256=digest)
            if runtime is None:
                row.slopes = _slopes(logits_fn, x[:FIRST], batch_size)
            recorder = Recorder(
                folder, row, x, y, threats, attack_list, predict,
                mode=mode, seed=seed, save=save, details=details, rerun=rerun,
                craft_precision=craft_precision,
            )  # fmt: skip
            stack.callback(recorder.close)
        options: Any = {"seed": seed, "batch_size": batch_size, "progress": progress}
        results = []
        for result in run_all(
            logits_fn,
            x,
            y,
            threats,
            attack_list,
            mode=mode,
            images=images or save is not None,
            finished=recorder.finished if recorder else (),
            predict=predict,
            search=search,
            jit_compile=jit_compile,
            precision=precision,
            index=details.index,
            **options,
        ):
            if recorder:
                recorder.add(result)
            results.append(result if images else dataclasses.replace(result, images=None))
        tested: Any = {"features": features, "binarisation": binarisation, **options}
        tested |= {"mode": mode, "craft_precision": craft_precision, "jit_compile": jit_compile}
        closing = Closing(logits_fn, x, y, threats, attack_list, results, runtime, **tested)
        signs = _signs(closing, recorder, wanted=bool(check and attack_list))
        table = None
        if corruptions:
            precision = getattr(results[0].provenance, "precision", "float32")
            on_corrupted = OnCorruptedImages(predict, x, y, threats[0].box, precision, **options)
            table = on_corrupted.measure(corruptions, recorder)
        return Evaluation(results, signs, table)


def images_in_use(
    n: int, attack_list: Sequence[ListedAttack], corruptions: Corruptions | bool
) -> int:
    """Return how many of n images some attack or corruption takes; n without both."""
    limits = _limits(attack_list, corruptions)
    return min(n, max((limit or n for _, limit in limits), default=n))


def check_samples(
    labels: np.ndarray,
    attack_list: Sequence[ListedAttack],
    mode: str,
    corruptions: Corruptions | bool,
) -> None:
    """Check that the first images, to which attacks and corruptions are limited, can be used.

    In a cascade no attack may follow one of fewer images: what that one broke would count as broken
    by both, and the accuracy would be that of images which were not all attacked alike.

    Args:
        labels: The classes of all images, int [N].
        attack_list: The attacks.
        mode: One of MODES.
        corruptions: The corruptions of the evaluation.

    Raises:
        UserError: If an attack of a cascade follows one of fewer images, or first images do not
            stand for all (`tfrobust.gate.sample`).
    """
    if mode == "cascade":
        last: dict[Any, tuple[str, int]] = {}  # the attack before, and its images, of each threat
        for listed in attack_list:
            count = min(listed.examples or len(labels), len(labels))
            before, fewer = last.get(listed.threat, ("", count))
            last[listed.threat] = listed.name, count
            if count > fewer:
                raise UserError(
                    f"attacks: expected {before}, on {fewer} images, after {listed.name}, on "
                    f"{count}, as each attack of a cascade gets what those before it left right; "
                    "change their order"
                )
    for name, limit in _limits(attack_list, corruptions):
        if limit and limit < len(labels):
            check_first(labels, limit, f"{name}: examples")


def _limits(
    attack_list: Sequence[ListedAttack], corruptions: Corruptions | bool
) -> list[tuple[str, int | None]]:
    """Return the name of each attack, and of limited corruptions, with its number of images."""
    limits = [(listed.name, listed.examples) for listed in attack_list]
    if isinstance(corruptions, Corruptions) and corruptions.examples:
        limits.append(("corruptions", corruptions.examples))
    return limits


def _signs(closing: Closing, recorder: Recorder | None, wanted: bool) -> list[Check]:
    """Return the checks for a false sense of security; with a recorder, those of the record."""
    if recorder is None:
        return closing.checks() if wanted else []
    if wanted:
        closing.write(recorder)
    else:
        recorder.save()
    return [Check(row.name, row.value, row.text, row.warns) for row in recorder.record.checks]


def _precision(logits_fn: LogitsFn) -> str | None:
    """Return the lowest precision of a layer of a Keras network; None for other functions."""
    network = logits_fn.network if isinstance(logits_fn, SavedNetwork) else logits_fn
    if not isinstance(network, keras.Model):
        return None
    used = {tf.as_dtype(layer.compute_dtype or "float32") for layer in layers_of(network)}
    return min(used, key=lambda dtype: (dtype.size, dtype.name)).name


def _slopes(logits_fn: LogitsFn, x: np.ndarray, batch_size: int) -> list[float] | None:
    """Return the L2 norm of the gradient of the largest logit at each image.

    It is None if the network has no gradients or some are not finite.

    A defence and the same defence with another gradient, such as a rounding that gradients pass
    unchanged, have equal logits but not these.
    """

    def lengths(images: np.ndarray) -> list[tf.Tensor]:
        points = tf.constant(images)
        gradient = input_gradient(lambda z: tf.reduce_max(logits_fn(z), axis=1), points)
        return [norm(gradient, "l2")]

    try:
        (slopes,) = map_batches(lengths, x, batch_size=batch_size)
    except Exception:  # an operation without a gradient may raise anything
        return None
    return [float(slope) for slope in slopes] if np.isfinite(slopes).all() else None


def _digest(logits_fn: LogitsFn, details: Details) -> str | None:
    """Return a digest of the network's files or, for a Keras network, of its weights."""
    if details.digest is not None or not isinstance(logits_fn, keras.Model):
        return details.digest
    content = hashlib.sha256()
    for weight in logits_fn.get_weights():
        content.update(np.ascontiguousarray(weight).data)
    return content.hexdigest()
