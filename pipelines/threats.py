"""The section `threat`: the threat, or the list of threats, of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfrobust.errors import UserError, nearest_path, one_line, require
from tfrobust.io import UNREADABLE, in_home
from tfrobust.registry import arguments, located
from tfrobust.threat import Threat, threats_of


def make_threats(section: Mapping[str, Any] | list[dict[str, Any]]) -> tuple[Threat, ...]:
    """Return the threats of a section. Raises UserError if it is wrong."""
    several = isinstance(section, list)
    threats = []
    for place, values in enumerate(section if isinstance(section, list) else [section]):
        where = f"threat[{place}]" if several else "threat"
        threat = located(where, Threat, **arguments(Threat, values, where))
        require(threat.box == (0.0, 1.0), f"{where}.box", "[0, 1], as the data have it", threat.box)
        threats.append(threat)
    return threats_of(threats)


def with_factors(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with the numbers of the file that `threat.per_feature` names in its place.

    The config of a run then needs no file.
    """
    if "threat" not in config:
        return dict(config)
    section, threats = config["threat"], []
    for values in section if isinstance(section, list) else [section]:
        if isinstance(values, Mapping) and isinstance(values.get("per_feature"), str):
            values = {**values, "per_feature": _read(values["per_feature"])}
        threats.append(values)
    return {**config, "threat": threats if isinstance(section, list) else threats[0]}


def _read(path: str) -> Any:
    """Return the array of an .npy file as nested lists."""
    file, expected = in_home(path), "threat.per_feature: expected an .npy file, received"
    if not file.is_file():
        raise UserError(f"{expected} {path}: no such file{nearest_path(path)}")
    try:
        with open(file, "rb") as opened:
            return np.lib.format.read_array(opened, allow_pickle=False).tolist()
    except UNREADABLE as error:
        raise UserError(f"{expected} {path}: {one_line(error)}") from None
