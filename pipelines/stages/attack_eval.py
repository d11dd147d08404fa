"""Stage attack_eval: the network against a list of attacks, to eval.json and flags.npz."""

from __future__ import annotations

import dataclasses
import functools

from pipelines.folder import Folder
from pipelines.sections import EvaluationOptions
from pipelines.spec import Spec
from pipelines.stages.tensorboard_logs import write_board
from tfrobust.evaluation import Details, evaluate, margins
from tfrobust.evaluation.crafting import by_xla
from tfrobust.evaluation.pictures import VALLEY
from tfrobust.models import SavedNetwork
from tfrobust.report import load_run

SECTIONS = ("seed", "threat", "data", "model", "attacks", "evaluation")


def attack_eval(spec: Spec, folder: Folder, network: SavedNetwork, digest: str) -> None:
    """Evaluate the network on the test split; then write config.yaml and TensorBoard's events.

    digest: of the network's files.
    """
    test, options = spec.data.test, spec.evaluation
    x, y = test.as_float(), test.labels
    details = Details(
        data=spec.config["data"]["name"],
        index=test.index,
        class_names=spec.data.source.class_names,
        model=spec.config.get("model"),
        digest=digest,
        training_commit=folder.commit("train"),
        curve=[(point, _at(network, point)) for point in _points(options)],
        say=functools.partial(print, flush=True),
    )
    if by_xla(options.jit_compile):
        print("attack_eval: XLA compiles each attack first", flush=True)
    evaluate(
        network,
        x,
        y,
        spec.threat,
        spec.attack_list,
        mode=options.mode,
        seed=spec.seed,
        batch_size=options.batch_size,
        folder=folder.path,
        save=options.save,
        rerun=options.rerun,
        craft_precision=options.craft_precision,
        jit_compile=options.jit_compile,
        details=details,
        layout="channels_last",  # which the data set has been asked for
    )
    folder.write_config()  # only now: what was there belongs to the results that were there
    if spec.attack_list:
        few = slice(VALLEY)
        sizes = {"seed": spec.seed, "batch_size": options.batch_size}
        found = margins(network, x[few], y[few], spec.threat, **sizes)
        write_board(folder.tensorboard / "attack_eval", load_run(folder.path), found)


def _at(network: SavedNetwork, point: dict[str, float]) -> SavedNetwork:
    """The once-for-all network at one of its points."""
    width = point.get("width", network.width)
    return dataclasses.replace(network, strength=point["lambda"], width=width)


def _points(options: EvaluationOptions) -> list[dict[str, float]]:
    """Where a once-for-all network is evaluated: each lambda, and each at all widths."""
    if options.lambdas is None and options.widths is None:
        return []
    lambdas = [{"lambda": value} for value in options.lambdas or [1.0]]
    if options.widths is None:
        return lambdas
    return [row | {"width": width} for width in options.widths for row in lambdas]
