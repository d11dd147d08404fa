"""Checks of images, and of whether a threat is in their units.

Series [N, T, C] and tables [N, F] pass the same checks. An argument called "images" may hold them
too, wherever nothing else is said.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust.errors import UserError, choose, one_line, require
from tfrobust.registry import located
from tfrobust.threat import Threat

Box = tuple[float, float]

LAYOUTS = ("channels_last", "channels_first", "series")
RANKS = (2, 3, 4)  # the numbers of axes that inputs may have
TO_ARRAYS = (
    "x, y = (np.concatenate(parts) for parts in zip(*data.as_numpy_iterator())) makes arrays of "
    "batches (x, y)"
)
FORMS = "images of shape [N, H, W, C], series [N, T, C] or a table [N, F]"
FEW = 100  # images that tell, nearly always, that uint8 values reach beyond 1
SOME = 10  # so many images are, nearly always, not all almost black
ROUNDING = 1e-6  # relative distance from the box up to which values are clipped, not refused
BYTES, LEAST_EPS = (0.0, 255.0), 0.5  # an eps below it is, nearly always, one for [0, 1]
SCALE = "; scale each feature by its range in the training data"
LEAST_SIDE, MOST_ASPECT = 5, 4  # least side and largest aspect ratio of a plausible image


def check_images(
    images: Any,
    where: str = "x",
    box: Box = (0.0, 1.0),
    *,
    stored: bool = False,
    layout: str | None = None,
) -> np.ndarray:
    """Return the images as float32 [N, H, W, C] inside the box, or such series or tables.

    Args:
        images: An array or tensor [N, H, W, C], [N, T, C] or [N, F] of floats of any width. Values
            outside the box by rounding only are clipped.
        where: The name of the images in errors.
        box: The range of valid pixels.
        stored: Whether to accept the forms in which files hold images too: uint8, returned
            unchanged and standing for n / 255, and grey images [N, H, W].
        layout: "channels_last", or "channels_first" for [N, C, H, W], which is transposed. With
            None a shape that looks like channels first is refused. "series" says that stored
            arrays [N, T, C] are not grey images.

    Raises:
        UserError: If the images are not fit.
    """
    images = as_array(images, where)
    check_image_form(images, where, box, stored=stored, layout=layout)
    if images.ndim == 3 and stored and layout != "series":
        images = images[..., None]
    elif layout == "channels_first":
        images = np.ascontiguousarray(np.moveaxis(images, 1, -1))
    if images.dtype == np.uint8:
        if images[:FEW].max() <= 1 and images.max() == 1:
            raise UserError(
                f"{where}: expected uint8 images of 0 to 255, received only 0 and 1; give float32 "
                "if these are black and white, or 255 times the images"
            )
        return images
    images = check_values(images, where, box)
    least, most = float(images.min()), float(images.max())
    faint = box[0] == 0 and 0 < most <= (1 + ROUNDING) * box[1] / 255
    if faint and images.ndim == 4 and len(images) >= SOME:
        raise UserError(
            f"{where}: expected {in_box(box)}, received {least:g} to {most:g}, at most 1/255 of "
            "the box, as if divided by 255 once too often; multiply them by 255"
        )
    return images


def check_values(images: np.ndarray, where: str, box: Box) -> np.ndarray:
    """Return float images [N, ...] of any width as float32 inside the box.

    Values outside the box by rounding only are clipped. Raises a UserError for others.
    """
    with np.errstate(over="ignore"):
        images = images.astype(np.float32, copy=False)
    least, most = float(images.min()), float(images.max())  # either is NaN if any value is
    if not math.isfinite(least) or not math.isfinite(most):
        count = int((~np.isfinite(images).reshape(len(images), -1).all(axis=1)).sum())
        received = f"NaN or infinite values in {count} of {len(images)}"
        raise UserError(f"{where}: expected finite images, received {received}")
    low, high = box
    slack = rounding(box)
    if least < low - slack or most > high + slack:
        raise UserError(
            f"{where}: expected {in_box(box, images.ndim)}, received {least:g} to {most:g}"
            f"{divide(least, most, box, images.ndim)}"
        )
    return np.clip(images, low, high) if least < low or most > high else images


def check_image_form(
    images: Any,
    where: str,
    box: Box = (0.0, 1.0),
    *,
    stored: bool = False,
    layout: str | None = None,
) -> None:
    """Raise a UserError unless shape and dtype are those of images, with arguments as in
    `check_images`.

    No value is read, so `images` may be a stand-in made from the header of a file.
    """
    if layout is not None:
        choose("layout", layout, LAYOUTS)
    shape, dtype = tuple(images.shape), images.dtype
    require(len(shape) in RANKS and 0 not in shape, where, f"{FORMS}, none of it 0", shape)
    fits = layout != "series" or len(shape) == 3
    require(fits, where, "series [N, T, C], as the layout says", shape)
    rank = 4 if stored and len(shape) == 3 and layout != "series" else len(shape)
    may_be_uint8 = stored and rank == 4
    if not is_float(dtype) and not (may_be_uint8 and dtype == np.uint8):
        expected = f"uint8 images, or {in_box(box)}" if may_be_uint8 else in_box(box, rank)
        raise UserError(
            f"{where}: expected {expected}, received {dtype.name!r}{convert(dtype, box, rank)}"
        )
    if layout is None:
        ask_layout(shape, where)


def ask_layout(shape: tuple[int | None, ...], where: str) -> None:
    """Raise a UserError if images of this shape look like [N, C, H, W]."""
    if len(shape) != 4 or None in shape[1:]:
        return
    first, *sides = (int(size) for size in shape[1:] if size is not None)
    image_like = min(sides) >= LEAST_SIDE and max(sides) <= MOST_ASPECT * min(sides)
    if first in (1, 3) and sides[1] not in (1, 3, 4) and image_like:
        raise UserError(
            f"{where}: expected images [N, H, W, C], received shape {shape}, which looks like "
            "channels first: np.moveaxis(x, 1, -1) moves them; or say layout='channels_first' or "
            "'channels_last' where there is such an option, as of tfrobust.data.from_arrays"
        )


def check_threat(
    threat: Threat, image_shape: tuple[int, ...] | None = None, where: str = "threat.eps"
) -> None:
    """Raise a UserError if eps is larger than the box, such as 8 where 8/255 is meant, or a tensor.

    In the box [0, 255] an eps below 0.5, half a step of images of 8 bits, is refused too, such as
    8/255 where 8 is meant.

    Args:
        threat: The threat model.
        image_shape: (H, W, C). Without it, an eps in L2 or L1 is not checked, and neither is one
            with `per_feature`.
        where: The name of eps in errors.
    """
    require(not tf.is_tensor(threat.eps), where, "a number, such as float(eps)", threat.eps)
    most, (low, high) = located("threat", threat.width, image_shape), threat.box
    if most is not None and threat.eps > most * (1 + ROUNDING):
        over = "" if threat.per_feature is None else " over the largest factor"
        meant = f" (did you mean {threat.eps:g}/255?)" if threat.box == (0.0, 1.0) else ""
        raise UserError(
            f"{where}: expected at most {most:.6g}, the {threat.norm} width of images in [{low:g}, "
            f"{high:g}]{over}, received {threat.eps:g}{meant}"
        )
    if threat.box == BYTES and 0 < threat.eps < LEAST_EPS and threat.per_feature is None:
        raise UserError(
            f"{where}: expected at least {LEAST_EPS:g}, half a step of images of 8 bits, in [0, "
            f"255], received {threat.eps:g} (did you mean {255 * threat.eps:.6g}?)"
        )


def check_size(shape: tuple[int | None, ...], taken: tuple[int | None, ...], where: str) -> None:
    """Raise a UserError unless images have the size that a network takes.

    Args:
        shape: Shape of the images (N, H, W, C), with None for an unknown size.
        taken: Size that the network takes (H, W, C), with None for any.
        where: The name of the images in errors.
    """
    sizes = zip(shape[1:], taken, strict=False)
    fits = len(shape) == 1 + len(taken) and all(
        None in (size, needed) or size == needed for size, needed in sizes
    )
    names = ", ".join("any" if needed is None else str(needed) for needed in taken)
    things = "images" if len(taken) == 3 else "inputs"
    hint = " (batch the data set)" if shape == taken else ""
    require(fits, where, f"{things} [N, {names}], as the network takes them{hint}", shape)


def as_array(values: Any, where: str) -> np.ndarray:
    """Return an array or tensor as a NumPy array; a NumPy array is returned unchanged."""
    if isinstance(values, tf.data.Dataset):
        raise UserError(f"{where}: expected an array, received a tf.data.Dataset; {TO_ARRAYS}")
    if isinstance(values, tuple):
        shapes = {tuple(part.shape) for part in values if hasattr(part, "shape")}
        expected = "one array (labels are an argument of their own)"
        require(len(shapes) < 2, where, expected, f"a tuple of {len(values)}")
    try:
        array = np.asarray(values)
    except Exception as error:  # the library that the values come from decides its type
        received = f"{type(values).__name__}: {one_line(error)}"
        raise UserError(f"{where}: expected an array, {received}") from None
    is_array = array.ndim or array.dtype != object
    require(is_array, where, "an array", type(values).__name__)
    return array


def is_float(dtype: Any) -> bool:
    """Return whether a NumPy dtype is a float of any width, bfloat16 included."""
    return bool(dtype.kind == "f" or dtype == tf.bfloat16.as_numpy_dtype)


def in_box(box: Box, rank: int | None = 4) -> str:
    """Return the words for the images that are expected, or for inputs of another rank."""
    return f"float {'images' if rank == 4 else 'inputs'} in [{box[0]:g}, {box[1]:g}]"


def rounding(box: Box) -> float:
    """Return the distance from the box up to which a value counts as rounding."""
    return ROUNDING * max(1.0, *map(abs, box))


def divide(least: float, most: float, box: Box, rank: int | None = 4) -> str:
    """Return advice on images with values from `least` to `most`, or an empty string."""
    if rank != 4:
        return SCALE
    if least < -1e-3 and box[0] == 0 and most > 0:
        return "; undo their normalisation, which belongs inside the network"
    return "; divide them by 255" if box == (0.0, 1.0) and 1.5 < most <= 255 else ""


def convert(dtype: np.dtype, box: Box, rank: int | None = 4) -> str:
    """Return advice on images of a dtype that is not a float, or an empty string."""
    if rank != 4:
        return SCALE
    if dtype == np.uint16 and box == (0.0, 1.0):
        return "; divide them by their largest possible value, 65535 or 255"
    if dtype.kind in "iu":
        return "; divide them by 255" if box == (0.0, 1.0) else "; cast them to float32"
    return "; cast them to float32" if dtype.kind == "b" else ""
