"""Images in files of any common format, decoded when they are used."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image, ImageOps, UnidentifiedImageError

from tfrobust.data.reading import call_python, untuned
from tfrobust.errors import UserError, one_line

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # for others Pillow may start programs
# The length of the resized shorter side, in units of the square that is cut out, by rule.
RESIZES = {"fit": 1.0, "imagenet": 256 / 224}
DECODED_AT_ONCE = 16  # images of a batch
DARK = 4096  # an image of 16 bits whose values are all below may hold 12 bits or 8
WARNING = (
    "%s: an image of 16 bits with values up to %d of 65535, which become at most %d of 255; if the "
    "data have fewer bits, scale the images up"
)
DEEP = ("PNG", "TIFF")  # formats of images of 16 bits a channel
# Tags of TIFF files, and values of them.
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, UNSIGNED, UNDEFINED = 0, 1, 4
BROKEN = "broken image"  # marks the errors that `readable` translates
SEPARATOR = "\t"  # between a name and a reason


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Return a context in which an image of `Files` that cannot be read is a UserError."""
    try:
        yield
    except tf.errors.OpError as error:
        line = re.search(rf"\[{BROKEN} (.*)\]", str(error))
        if line is None:
            raise
        place, _, reason = line[1].partition(SEPARATOR)
        expected = "an image that can be read"
        received = f"a broken one ({reason})" if reason else "a broken one"
        raise UserError(f"{place}: expected {expected}, received {received}") from None


@dataclass(frozen=True, eq=False)
class Files:
    """Images [N, S, S, 3] uint8 in files, decoded when they are used.

    Attributes:
        places: The paths of the files as bytes, [N].
        size: (S, S, 3).
        resize: A name in RESIZES; see `open_folder`.
    """

    places: np.ndarray
    size: tuple[int, ...]
    resize: str = "fit"

    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.size)

    def __getitem__(self, at: Any) -> Files:
        return dataclasses.replace(self, places=self.places[at])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Decode all images. Raises UserError for one that cannot be read."""
        places = tf.data.Dataset.from_tensor_slices(self.places)
        decoded = places.map(self._image, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        images = np.zeros(self.shape, np.uint8)
        with readable():
            for number, image in enumerate(untuned(decoded).as_numpy_iterator()):
                images[number] = image
        return images if dtype is None else images.astype(dtype)

    def gather(self) -> Any:
        """Return a function for tf.data from positions [B] to images [B, S, S, 3] uint8.

        `readable` turns its error about an image that cannot be read into a UserError.
        """
        places = tf.constant(self.places)
        image = tf.TensorSpec(self.size, tf.uint8)
        options: Any = {"fn_output_signature": image, "parallel_iterations": DECODED_AT_ONCE}

        def read(positions: tf.Tensor) -> tf.Tensor:
            return tf.map_fn(self._image, tf.gather(places, positions), **options)

        return read

    def _image(self, place: tf.Tensor) -> tf.Tensor:
        """Return the image [S, S, 3] uint8, or raise an error that `readable` translates.

        Pillow decodes it, because TensorFlow takes the palette indices of a BMP for shades, and
        does not rotate a photograph by its EXIF data.
        """
        return tf.ensure_shape(call_python(self._read, place, tf.uint8), self.size)

    def _read(self, place: bytes) -> np.ndarray:
        """Return the image in Python; errors have the form that `readable` translates."""
        side = self.size[0]
        try:
            return _pixels(place, side, round(side * RESIZES[self.resize]))
        except Exception as error:  # Pillow's plugins raise whatever comes
            raise ValueError(f"[{BROKEN} {printable(place)}{SEPARATOR}{_reason(error)}]") from None


def _pixels(place: bytes, side: int, resized: int) -> np.ndarray:
    """Decode a file to [side, side, 3] uint8.

    The central square of the image is resized to `resized` x `resized` pixels, and the centre of
    the result is cut out.
    """
    if not os.path.isfile(place):
        raise OSError("no file, or a link to none")
    with Image.open(place, formats=FORMATS) as file:
        # Pillow keeps neither the form in which pixels are stored nor the tags of TIFF.
        deep = file.format in DEEP and any(";16" in str(tile.args) for tile in file.tile)
        tags = getattr(file, "tag_v2", {})
        upright = ImageOps.exif_transpose(file)
    image = _rgb(upright, tags)
    if deep:
        _warn_if_dark(upright, image, place)
    image = _middle(image, min(image.size))
    return np.asarray(_middle(image.resize((resized, resized), Image.Resampling.BILINEAR), side))


def _middle(image: Image.Image, side: int) -> Image.Image:
    """Return the central square of an image, `side` pixels wide."""
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _rgb(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Return the image in RGB with 8 bits for each channel.

    Transparency is dropped and the colours are kept. If there are more than 8 bits, the upper 8 are
    kept. `tags` are those of a TIFF file, which Pillow does not heed in all forms.
    """
    signed = {*tags.get(SAMPLE_FORMAT, ())} - {UNSIGNED, UNDEFINED}
    if signed or image.mode in ("I", "F"):
        raise ValueError(
            f"expected 8 or 16 bits a channel, without a sign, received mode {image.mode} of Pillow"
        )
    if image.mode.startswith("I;16"):  # Pillow would clip the values
        bits, *_ = tags.get(BITS, (16,))
        values = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            values = 255 - values
        return Image.fromarray(values).convert("RGB")
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _warn_if_dark(image: Image.Image, rgb: Image.Image, place: bytes) -> None:
    """Warn once that the 16 bits of an image are hardly in use.

    In an image in colour or with transparency, Pillow has kept only the upper 8 bits, as in `rgb`.
    """
    grey = image.mode.startswith("I;16")
    most = int(np.asarray(image).max()) if grey else 256 * int(np.asarray(rgb).max()) + 255
    if 0 < most < DARK:
        logging.log_first_n(logging.WARNING, WARNING, 1, printable(place), most, most >> 8)


def _reason(error: Exception) -> str:
    """Return in one line why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return one_line(getattr(error, "strerror", None) or error, None)


def printable(name: str | bytes) -> str:
    r"""Return a file's name in printable form.

    Bytes that are not UTF-8, and control characters, become escapes such as \xe9.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
