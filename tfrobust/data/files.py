"""Images that lie in files and are decoded where they are asked for: any format, right pixels."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from tfrobust.errors import UserError, require

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # for others Pillow may start programs
# Of each rule the length to which the shorter side is resized, in units of what is cut out.
RESIZES = {"fit": 1.0, "imagenet": 256 / 224}
DECODED_AT_ONCE = 16
BROKEN = "broken image"
SEPARATOR = "\t"  # of a name and a reason
READING: set[int] = set()  # the threads that are at it
ENDING = threading.Event()  # the process
QUIET = 10  # so many looks in a row that find no thread at it


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Raises the UserError that names the image where one of `Files` cannot be read."""
    try:
        yield
    except tf.errors.OpError as error:
        line = re.search(rf"\[{BROKEN} (.*)\]", str(error))
        if line is None:
            raise
        place, _, reason = line[1].partition(SEPARATOR)
        received = f"a broken one ({reason})" if reason else "a broken one"
        raise UserError(
            f"{place}: expected an image that can be read, received {received}"
        ) from None


@dataclass(frozen=True, eq=False)
class Files:
    """Images [N, S, S, 3] uint8 that lie in files; decoded where they are asked for.

    places: the files' names as bytes [N]. size: (S, S, 3). resize: a name in RESIZES; see
    `open_folder`.
    """

    places: np.ndarray
    size: tuple[int, int, int]
    resize: str = "fit"

    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.size)

    def __getitem__(self, at: Any) -> Files:
        return dataclasses.replace(self, places=self.places[at])

    def joined(self, others: Files) -> Files:
        """These, then the others. Raises UserError unless all are resized alike."""
        alike = others.resize == self.resize
        require(alike, "resize", f"{self.resize}, as the other images", others.resize)
        return dataclasses.replace(self, places=np.concatenate([self.places, others.places]))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """All of them, decoded. Raises UserError for one that cannot be read."""
        places = tf.data.Dataset.from_tensor_slices(self.places)
        decoded = places.map(self._image, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        images = np.zeros(self.shape, np.uint8)
        with readable():
            for number, image in enumerate(decoded.as_numpy_iterator()):
                images[number] = image
        return images if dtype is None else images.astype(dtype)

    def gather(self) -> Any:
        """A function for tf.data: positions [B] -> images [B, S, S, 3] uint8. What it raises for
        one that cannot be read, `readable` makes a UserError."""
        places = tf.constant(self.places)

        def read(positions: tf.Tensor) -> tf.Tensor:
            image = tf.TensorSpec(self.size, tf.uint8)
            asked = tf.gather(places, positions)
            options: Any = {"parallel_iterations": DECODED_AT_ONCE}
            return tf.map_fn(self._image, asked, fn_output_signature=image, **options)

        return read

    def _image(self, place: tf.Tensor) -> tf.Tensor:
        """The image [S, S, 3] uint8, or an error with the name of its place that `readable` knows.

        By Pillow: TensorFlow takes the indices of a BMP's palette for shades, and does not turn a
        photograph as its EXIF data asks.
        """
        _wait_at_exit()
        # A function with no state: with one TensorFlow would read image after image.
        image = tf.numpy_function(self._read, [place], tf.uint8, stateful=False)
        return tf.ensure_shape(image, self.size)

    def _read(self, place: bytes) -> np.ndarray:
        side = self.size[0]
        READING.add(threading.get_ident())
        try:
            return _pixels(place, side, round(side * RESIZES[self.resize]))
        except Exception as error:  # Pillow's plugins raise whatever comes
            raise ValueError(f"[{BROKEN} {printable(place)}{SEPARATOR}{_reason(error)}]") from None
        finally:
            READING.discard(threading.get_ident())


@functools.cache
def _wait_at_exit() -> None:
    """Let the threads that read ahead come to rest before Python ends: one of TensorFlow's that
    waits for Python then waits for ever, and the process for it."""

    def wait() -> None:
        ENDING.set()  # those that begin fail, until no batch is asked for any more
        quiet = 0
        while quiet < QUIET:
            time.sleep(0.01)
            quiet = 0 if READING else quiet + 1

    atexit.register(wait)


def _pixels(place: bytes, side: int, resized: int) -> np.ndarray:
    """The image in a file [side, side, 3] uint8: of its middle square, resized to `resized`, the
    middle."""
    if ENDING.is_set():
        raise RuntimeError("the process ends")
    if not os.path.isfile(place):
        raise OSError("no file, or a link to none")
    with Image.open(place, formats=FORMATS) as file:
        image = _rgb(ImageOps.exif_transpose(file))
    image = _middle(image, min(image.size))
    return np.asarray(_middle(image.resize((resized, resized), Image.Resampling.BILINEAR), side))


def _middle(image: Image.Image, side: int) -> Image.Image:
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _rgb(image: Image.Image) -> Image.Image:
    """The image in 8 bits a channel. Of one with transparency the colours, whatever shines through;
    of 16 bits the upper 8."""
    if image.mode.startswith("I;16"):  # which Pillow would clip
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"expected 8 or 16 bits a channel, received mode {image.mode} of Pillow")
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def printable(name: str | bytes) -> str:
    r"""A file's name as it can be shown: bytes that are no UTF-8, and control characters, as
    escapes such as \xe9."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
