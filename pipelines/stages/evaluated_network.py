"""The network that a run evaluates and exports: the one that it trains, or one from a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipelines.folder import Folder
from pipelines.network import check_fit
from pipelines.spec import Spec
from tfrobust.distribution import strategy
from tfrobust.errors import UserError, require
from tfrobust.models import SavedNetwork, load_network, model_files


def network_path(spec: Spec, folder: Folder) -> tuple[Path, str]:
    """Return the path of the network, and the name of its place for error messages.

    Raises:
        UserError: If the run trains its network and has not trained it yet.
    """
    if spec.train is None:
        return Path(spec.config["model"]["path"]), "model.path"
    if not folder.model.is_file():
        raise UserError(f"{folder.model}: expected a trained network; run the stage train first")
    return folder.model, str(folder.model)


def network_files(spec: Spec, folder: Folder) -> list[Path]:
    """Return the files in which the network is saved."""
    return model_files(*network_path(spec, folder))


def network_options(spec: Spec) -> dict[str, str]:
    """Return the keys of the section `model` that say which outputs a network from a file has."""
    section = spec.config["model"] if spec.train is None else {}
    return {key: section[key] for key in ("outputs", "output", "signature") if key in section}


def load_evaluated(spec: Spec, folder: Folder) -> SavedNetwork:
    """Return the network, checked against the data, at its first lambda and width."""
    path, where = network_path(spec, folder)
    with strategy().scope():  # each device gets the weights
        network = load_network(path, where=where, **network_options(spec))
    check_fit(where, spec.data.source, network.input_shape, network.classes)
    for name, field in (("lambdas", "strength"), ("widths", "width")):
        values = getattr(spec.evaluation, name)
        if values is None:
            continue
        takes_them = getattr(network, field) is not None
        require(takes_them, f"evaluation.{name}", f"none (the network takes no {name})", values)
        network = dataclasses.replace(network, **{field: values[0]})
    return network
