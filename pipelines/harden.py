"""What `tfrobust harden` fills into configs/harden.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.early_check import named_source, read_config
from pipelines.network import named_output
from pipelines.spec import parse
from tfrobust.errors import require
from tfrobust.models import load_keras
from tfrobust.models.signatures import signature

CONFIG = "harden"
NETWORK = "train.init_from"
HELD_OUT = 5  # at most one training image of so many is held out for validation


def filled_in(overrides: Sequence[str]) -> list[str]:
    """Return the overrides, preceded by those that follow from the network and the images.

    A folder's images get the size that the network takes. Where training images are few, fewer of
    them are held out, and a batch is smaller. What the user has set stays as it is.

    Args:
        overrides: `key=value` each; they name the file of the network, and the images.

    Raises:
        UserError: If the network cannot be read or does not take such images, or for any other
            mistake in the config.
    """
    name, config = read_config(CONFIG, overrides)
    first: list[str] = []
    data = config.get("data")
    if isinstance(data, Mapping) and data.get("name") == "folder" and "image_size" not in data:
        first = [f"data.image_size={_side(config)}"]
        name, config = read_config(CONFIG, [*first, *overrides])
    with named_source(CONFIG, overrides):
        data = parse(name, config).data
        count = len(data.train)
    if not count:  # the stage train says what is missing
        return [*first, *overrides]
    held = min(data.validation, count // HELD_OUT)
    size = min(data.batch_size, count - held)
    sizes = {"validation": (held, data.validation), "batch_size": (size, data.batch_size)}
    first += [f"data.{key}={new}" for key, (new, old) in sizes.items() if new != old]
    return [*first, *overrides]


def _side(config: Mapping[str, Any]) -> int:
    """Return the side of the images that the network takes from a folder."""
    section = config.get("train")
    path = section.get("init_from") if isinstance(section, Mapping) else None
    require(path, NETWORK, "the file of a network", path)
    network = load_keras(str(path), NETWORK, output=named_output(config.get("model")))
    shape = signature(network, NETWORK).image_shape
    height, width, channels = shape if len(shape) == 3 else (None, None, None)
    fits = channels == 3 and height == width
    expected = "a network of square colour images, as folders are read (for others make an .npz)"
    require(fits, NETWORK, expected, shape)
    require(height, "data.image_size", f"a size (the network takes any, {shape})", None)
    return int(height)  # type: ignore[arg-type]
