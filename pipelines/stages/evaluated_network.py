"""The network that a run evaluates and exports: a network that it trains or reads from a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import keras

from pipelines.network import check_fit
from pipelines.run_folder import RunFolder
from pipelines.spec import Spec
from tfrobust import zoo
from tfrobust.distribution import strategy
from tfrobust.errors import UserError, require
from tfrobust.models import SavedNetwork, load_keras, load_network, model_files


def network_path(spec: Spec, folder: RunFolder) -> tuple[Path, str]:
    """Return the path of the network, and the name of that path in error messages.

    Raises:
        UserError: If the run trains its network and has not trained it yet.
    """
    if spec.train is None:
        return Path(spec.config["model"]["path"]), "model.path"
    if not folder.model.is_file():
        raise UserError(f"{folder.model}: expected a trained network; run the stage train first")
    return folder.model, str(folder.model)


def network_files(spec: Spec, folder: RunFolder) -> list[Path]:
    """Return the files in which the network is saved."""
    path, where = network_path(spec, folder)
    if "architecture" in _options(spec):
        return [zoo.weights_file(path, where)]
    return model_files(path, where)


def _options(spec: Spec) -> dict[str, str]:
    """Return the keys of the section `model` that describe a network in a file."""
    section = spec.config["model"] if spec.train is None else {}
    return {key: value for key, value in section.items() if key not in ("path", "name")}


def load_trainable(spec: Spec, folder: RunFolder) -> keras.Model:
    """Return the Keras network, cut to its one output."""
    path, where = network_path(spec, folder)
    options = _options(spec)
    if "architecture" in options:
        return zoo.load(path, options["architecture"], where)
    return load_keras(path, where, output=options.get("output"))


def load_evaluated(spec: Spec, folder: RunFolder) -> SavedNetwork:
    """Return the network at its first lambda and width; it is checked against the data."""
    path, where = network_path(spec, folder)
    with strategy().scope():  # each device gets the weights
        if "architecture" in _options(spec):
            model = load_trainable(spec, folder)
            network = SavedNetwork(
                model, model.input_shape[1:], model.output_shape[1], network=model
            )
        else:
            network = load_network(path, where=where, **_options(spec))
    check_fit(where, spec.data.source, network.input_shape, network.classes, network.runtime)
    for name, field in (("lambdas", "strength"), ("widths", "width")):
        values = getattr(spec.evaluation, name)
        if values is None:
            continue
        takes_them = getattr(network, field) is not None
        require(takes_them, f"evaluation.{name}", f"none (the network takes no {name})", values)
        network = dataclasses.replace(network, **{field: values[0]})
    return network
