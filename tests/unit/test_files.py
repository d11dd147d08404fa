"""Images in files of every kind have the pixels that other programs show, or give one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.products import slow_but
from tfrobust.data.files import Files
from tfrobust.errors import UserError

RNG = np.random.default_rng(0)
# Four quarters in colours of a palette, so that a turned or mirrored image is another one.
QUARTERS = np.repeat(np.repeat([[[200, 0, 40], [0, 90, 255]], [[255] * 3, [0] * 3]], 8, 0), 8, 1)
PIXELS = QUARTERS.astype(np.uint8)
SHADES = RNG.integers(0, 256, (16, 16), np.uint8)
GREY = np.repeat(SHADES[..., None], 3, axis=2)
CLEAR = np.dstack([PIXELS, RNG.integers(0, 256, (16, 16), np.uint8)])
BITS = np.where(SHADES > 127, 255, 0).astype(np.uint8)


def read(path: Path, side: int = 16, resize: str = "fit") -> np.ndarray:
    return np.asarray(Files(np.array([bytes(path)]), (side, side, 3), resize))[0]


def indexed() -> Image.Image:
    return Image.fromarray(PIXELS).quantize(4).convert("P")


KINDS: dict[str, tuple[Image.Image, np.ndarray]] = {
    "colour.png": (Image.fromarray(PIXELS), PIXELS),
    "colour.bmp": (Image.fromarray(PIXELS), PIXELS),
    "colour.tif": (Image.fromarray(PIXELS), PIXELS),
    "colour.gif": (indexed(), PIXELS),
    "palette.bmp": (indexed(), PIXELS),
    "palette.png": (indexed(), PIXELS),
    "palette.tiff": (indexed(), PIXELS),
    "grey.bmp": (Image.fromarray(SHADES), GREY),
    "grey.png": (Image.fromarray(SHADES), GREY),
    "grey_alpha.png": (Image.fromarray(np.dstack([SHADES, BITS])), GREY),
    "bilevel.bmp": (Image.fromarray(BITS).convert("1"), np.repeat(BITS[..., None], 3, axis=2)),
    "bilevel.tif": (Image.fromarray(BITS).convert("1"), np.repeat(BITS[..., None], 3, axis=2)),
    "alpha.png": (Image.fromarray(CLEAR), PIXELS),
    "alpha.tif": (Image.fromarray(CLEAR), PIXELS),
}


@pytest.mark.parametrize("name", KINDS)
def test_pixels_that_are_kept(tmp_path: Path, name: str) -> None:
    """Pixels are kept exactly; of transparent pixels only the colours count."""
    image, expected = KINDS[name]
    image.save(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name), expected)


def test_a_palette_with_transparent_entries(tmp_path: Path) -> None:
    indexed().save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 7]))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), PIXELS)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_of_16_bits_the_upper_8(tmp_path: Path, ending: str) -> None:
    deep = SHADES.astype(np.uint16) * 256 + RNG.integers(0, 256, (16, 16), np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read(tmp_path / f"a.{ending}"), GREY)
    (tmp_path / "colour.png").write_bytes(tf.io.encode_png(np.uint16(PIXELS) * 256 + 77).numpy())
    np.testing.assert_array_equal(read(tmp_path / "colour.png"), PIXELS)


@pytest.mark.parametrize("name", ["a.jpg", "a.jfif", "a.webp", "grey.jpeg", "cmyk.jpg"])
def test_pixels_that_are_nearly_kept(tmp_path: Path, name: str) -> None:
    """Formats with losses keep an image of one shade almost exactly."""
    shade = Image.new("RGB", (16, 16), (200, 90, 40))
    shade = shade.convert({"grey": "L", "cmyk": "CMYK"}.get(name.partition(".")[0], "RGB"))
    with (tmp_path / name).open("wb") as file:
        shade.save(file, "WEBP" if name.endswith("webp") else "JPEG", quality=100)
    expected = [117] * 3 if name == "grey.jpeg" else [200, 90, 40]  # 0.299, 0.587, 0.114 of it
    np.testing.assert_allclose(
        read(tmp_path / name), np.broadcast_to(expected, (16, 16, 3)), atol=2
    )


# Of each EXIF orientation what was done to the image, so that undone it is upright.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", TURNS)
def test_images_are_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    turned = Image.fromarray(np.ascontiguousarray(TURNS[orientation](PIXELS)))
    turned.save(tmp_path / f"a.{ending}", exif=exif)
    pixels = read(tmp_path / f"a.{ending}").astype(int)
    assert np.abs(pixels - PIXELS).mean() < (8 if ending == "jpg" else 1e-9)


def test_of_several_pictures_the_first(tmp_path: Path) -> None:
    others = [Image.fromarray(255 - PIXELS)]
    for ending in ("gif", "tif"):
        indexed().save(tmp_path / f"a.{ending}", save_all=True, append_images=others)
        np.testing.assert_array_equal(read(tmp_path / f"a.{ending}"), PIXELS)


def test_the_shorter_side_is_kept(tmp_path: Path) -> None:
    """An image whose shorter side has the requested length is not resized.

    Its middle is cut out.
    """
    wide = RNG.integers(0, 256, (16, 21, 3), np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(read(tmp_path / "wide.png"), wide[:, 2:18])
    tall = np.repeat(np.repeat(wide, 2, 0), 2, 1)[:, :20]  # 32 x 20
    Image.fromarray(tall).save(tmp_path / "tall.png")
    np.testing.assert_array_equal(read(tmp_path / "tall.png", 20), tall[6:26])
    Image.fromarray(np.zeros((1, 20000, 3), np.uint8)).save(tmp_path / "thread.png")
    assert read(tmp_path / "thread.png", 224).shape == (224, 224, 3)


def test_the_rule_of_imagenet(tmp_path: Path) -> None:
    """Of a square of 224 the middle 196 pixels, seven eighths, are used.

    A frame of 14 pixels is cut off.
    """
    framed = np.full((224, 224, 3), 255, np.uint8)
    framed[14:-14, 14:-14] = 90
    Image.fromarray(framed).save(tmp_path / "a.png")
    inner = read(tmp_path / "a.png", 224, "imagenet")
    np.testing.assert_array_equal(inner[2:-2, 2:-2], 90)
    assert (read(tmp_path / "a.png", 224) == framed).all()


def damaged(path: Path) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (99, 99, 3), np.uint8))
    image.save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:1000])


def huge(path: Path) -> None:
    """Write a header of 20,000 x 20,000 pixels and nothing after it."""
    Image.new("L", (1, 1)).save(path, "BMP")
    content = bytearray(path.read_bytes())
    content[18:26] = np.array([20000, 20000], "<i4").tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (damaged, "image file is truncated"),
        (huge, "exceeds limit"),
        (lambda path: path.write_text("<html>"), "it is none of BMP, GIF, JPEG, PNG, TIFF, WEBP"),
        (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0"), "it is none of"),
        (lambda path: path.touch(), "it is none of"),
        (lambda path: path.mkdir(), "no file, or a link to none"),
        (lambda path: Image.new("F", (9, 9)).save(path, "TIFF"), "8 or 16 bits a channel"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "a [1]: ü.png"
    make(path)
    with pytest.raises(UserError) as caught:
        read(path)
    line = f"{path}: expected an image that can be read, received a broken one ("
    assert str(caught.value).startswith(line) and reason in str(caught.value)
    assert "\n" not in str(caught.value) and str(path) not in str(caught.value)[len(line) :]


@pytest.mark.parametrize("ending", slow_but(["sys.exit(3)", "raise OSError"], ["sys.exit(3)"]))
def test_a_process_ends_in_the_midst_of_a_stream(tmp_path: Path, ending: str) -> None:
    """A process ends while threads still read ahead."""
    Image.fromarray(np.zeros((999, 999, 3), np.uint8)).save(tmp_path / "a.jpg")
    script = f"""
import sys
import numpy as np
from tfrobust.data import Split, batches
from tfrobust.data.files import Files
places = np.array([{bytes(tmp_path / "a.jpg")!r}] * 99)
split = Split(Files(places, (299, 299, 3)), np.zeros(99, np.int32), np.arange(99))
stream = iter(batches(split, 9, training=True))
next(stream)
{ending}
"""
    ended = subprocess.run([sys.executable, "-c", script], timeout=100, stderr=subprocess.DEVNULL)
    assert ended.returncode == (3 if "exit" in ending else 1)
