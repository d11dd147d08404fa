"""Image files of every format have the pixels that other programs show, or give an error line."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import absl.logging
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.errors import error_line
from tests.products import slow_but
from tfrobust.data.files import Files

RNG = np.random.default_rng(0)
# Four quarters of different colours, so that a turned or mirrored image differs.
QUARTERS = np.repeat(np.repeat([[[200, 0, 40], [0, 90, 255]], [[255] * 3, [0] * 3]], 8, 0), 8, 1)
PIXELS = QUARTERS.astype(np.uint8)
SHADES = RNG.integers(0, 256, (16, 16), np.uint8)
GREY = np.repeat(SHADES[..., None], 3, axis=2)
CLEAR = np.dstack([PIXELS, RNG.integers(0, 256, (16, 16), np.uint8)])
BITS = np.where(SHADES > 127, 255, 0).astype(np.uint8)


def read(path: Path, side: int = 16, resize: str = "fit") -> np.ndarray:
    """Return the pixels of a file, [side, side, 3]."""
    return np.asarray(Files(np.array([bytes(path)]), (side, side, 3), resize))[0]


def indexed() -> Image.Image:
    """Return the quarters as an image with a palette."""
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
def test_lossless_formats_keep_the_pixels(tmp_path: Path, name: str) -> None:
    """The transparency of a pixel does not change its colour."""
    image, expected = KINDS[name]
    image.save(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name), expected)


def test_transparent_entries_of_a_palette_keep_their_colour(tmp_path: Path) -> None:
    indexed().save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 7]))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), PIXELS)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_images_of_16_bits_keep_the_upper_8(
    rng: np.random.Generator, tmp_path: Path, ending: str
) -> None:
    deep = SHADES.astype(np.uint16) * 256 + rng.integers(0, 256, (16, 16), np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read(tmp_path / f"a.{ending}"), GREY)
    (tmp_path / "colour.png").write_bytes(tf.io.encode_png(np.uint16(PIXELS) * 256 + 77).numpy())
    np.testing.assert_array_equal(read(tmp_path / "colour.png"), PIXELS)


def test_images_of_16_bits_that_hold_fewer_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are read as almost black."""
    logging.getLogger("absl").propagate = True
    for name in "ab":
        Image.fromarray(SHADES.astype(np.uint16) * 16).save(tmp_path / f"{name}.png")
        with caplog.at_level("WARNING", "absl"):
            assert read(tmp_path / f"{name}.png").max() == SHADES.max() // 16
    line = "a.png: an image of 16 bits with values up to 4080 of 65535, which become at most 15 of"
    assert caplog.text.count("an image of 16 bits") == 1 and line in caplog.text


def test_images_in_colour_of_16_bits_that_hold_fewer_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pillow keeps the upper 8 bits alone; those of transparency say nothing."""
    deep = np.dstack([np.uint16(PIXELS) * 16, np.full((16, 16), 65535, np.uint16)])
    for name, values in (("colour", deep[..., :3]), ("alpha", deep)):
        (tmp_path / f"{name}.png").write_bytes(tf.io.encode_png(values).numpy())
        assert warned(tmp_path / f"{name}.png", caplog)
    Image.fromarray(PIXELS // 16).save(tmp_path / "dark.png")
    assert not warned(tmp_path / "dark.png", caplog)  # it has 8 bits


def warned(path: Path, caplog: pytest.LogCaptureFixture) -> bool:
    """Return whether the reading of a file warns of 16 bits."""
    caplog.clear()
    absl.logging._log_counter_per_token.clear()  # the warning comes once
    logging.getLogger("absl").propagate = True
    with caplog.at_level("WARNING", "absl"):
        read(path)
    return f"{path.name}: an image of 16 bits with values up to 4095 of 65535" in caplog.text


def tiff(side: int, pixels: bytes, bits: int, photometric: int = 1, form: int = 1) -> bytes:
    """Return the content of a grey TIFF file. Of photometric 0 white is 0; form 2 has signs."""
    tags = {256: side, 257: side, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: side}
    tags |= {279: len(pixels), 339: form}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(2, struct.pack("<4H", 0x1FF, 0x7FFF, 0x8000, 0xFFFF), 16), [1, 127, 128, 255]),
        (tiff(2, struct.pack("<4H", 0x1FF, 0x7FFF, 0x8000, 0xFFFF), 16, 0), [254, 128, 127, 0]),
        (tiff(2, bytes([1, 127, 128, 255]), 8, 0), [254, 128, 127, 0]),
        (tiff(2, bytes.fromhex("011FFF 800000"), 12), [1, 255, 128, 0]),
    ],
    ids=["16 bits", "16 bits, white is 0", "8 bits, white is 0", "12 bits"],
)
def test_tiff_has_its_shades_in_every_form(
    tmp_path: Path, content: bytes, expected: list[int]
) -> None:
    """Of more than 8 bits the upper 8 are kept."""
    (tmp_path / "a.tif").write_bytes(content)
    assert read(tmp_path / "a.tif", 2)[..., 0].ravel().tolist() == expected


@pytest.mark.parametrize("name", ["a.jpg", "a.jfif", "a.webp", "grey.jpeg", "cmyk.jpg"])
def test_lossy_formats_nearly_keep_one_shade(tmp_path: Path, name: str) -> None:
    shade = Image.new("RGB", (16, 16), (200, 90, 40))
    shade = shade.convert({"grey": "L", "cmyk": "CMYK"}.get(name.partition(".")[0], "RGB"))
    with (tmp_path / name).open("wb") as file:
        shade.save(file, "WEBP" if name.endswith("webp") else "JPEG", quality=100)
    # Grey is 0.299 * 200 + 0.587 * 90 + 0.114 * 40 = 117.
    expected = np.full((16, 16, 3), [117] * 3 if name == "grey.jpeg" else [200, 90, 40])
    np.testing.assert_allclose(read(tmp_path / name), expected, atol=2)


# By EXIF orientation: how an upright image is turned before it is stored.
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
def test_images_are_turned_upright_by_their_exif_orientation(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    turned = Image.fromarray(np.ascontiguousarray(TURNS[orientation](PIXELS)))
    turned.save(tmp_path / f"a.{ending}", exif=exif)
    pixels = read(tmp_path / f"a.{ending}").astype(int)
    assert np.abs(pixels - PIXELS).mean() < (8 if ending == "jpg" else 1e-9)


def test_first_of_several_pictures_is_read(tmp_path: Path) -> None:
    second = Image.fromarray(255 - PIXELS)
    for ending in ("gif", "tif"):
        indexed().save(tmp_path / f"a.{ending}", save_all=True, append_images=[second])
        np.testing.assert_array_equal(read(tmp_path / f"a.{ending}"), PIXELS)


def test_fit_crops_the_middle_and_keeps_the_shorter_side(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    wide = rng.integers(0, 256, (16, 21, 3), np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(read(tmp_path / "wide.png"), wide[:, 2:18])
    tall = np.repeat(np.repeat(wide, 2, 0), 2, 1)[:, :20]  # 32 x 20
    Image.fromarray(tall).save(tmp_path / "tall.png")
    np.testing.assert_array_equal(read(tmp_path / "tall.png", 20), tall[6:26])
    Image.fromarray(np.zeros((1, 20000, 3), np.uint8)).save(tmp_path / "thread.png")
    assert read(tmp_path / "thread.png", 224).shape == (224, 224, 3)


def test_imagenet_crops_to_the_middle_seven_eighths(tmp_path: Path) -> None:
    """Of 224 pixels the middle 196 are used, so a frame of 14 is cut off."""
    framed = np.full((224, 224, 3), 255, np.uint8)
    framed[14:-14, 14:-14] = 90
    Image.fromarray(framed).save(tmp_path / "a.png")
    inner = read(tmp_path / "a.png", 224, "imagenet")
    np.testing.assert_array_equal(inner[2:-2, 2:-2], 90)
    assert (read(tmp_path / "a.png", 224) == framed).all()


def truncated_jpeg(path: Path) -> None:
    """Write the first 1000 bytes of an image."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))
    image.save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:1000])


def huge_bmp(path: Path) -> None:
    """Write a header of 20,000 x 20,000 pixels and nothing after it."""
    Image.new("L", (1, 1)).save(path, "BMP")
    content = bytearray(path.read_bytes())
    content[18:26] = np.array([20000, 20000], "<i4").tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (truncated_jpeg, "image file is truncated"),
        (huge_bmp, "exceeds limit"),
        (lambda path: path.write_text("<html>"), "it is none of BMP, GIF, JPEG, PNG, TIFF, WEBP"),
        (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0"), "it is none of"),
        (lambda path: path.touch(), "it is none of"),
        (lambda path: path.mkdir(), "no file, or a link to none"),
        (lambda path: Image.new("F", (9, 9)).save(path, "TIFF"), "8 or 16 bits a channel"),
        (lambda path: path.write_bytes(tiff(2, bytes(4), 8, form=2)), "without a sign"),
    ],
)
def test_unreadable_image_is_one_line_with_its_reason(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "a [1]: ü.png"
    make(path)
    start = f"{path}: expected an image that can be read, received a broken one ("
    line = error_line(lambda: read(path))
    assert line.startswith(start) and reason in line
    assert str(path) not in line[len(start) :]


@pytest.mark.parametrize("ending", slow_but(["sys.exit(3)", "raise OSError"], []))
def test_process_can_end_while_a_stream_reads_ahead(tmp_path: Path, ending: str) -> None:
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
    process = subprocess.run([sys.executable, "-c", script], timeout=100, stderr=subprocess.DEVNULL)
    assert process.returncode == (3 if "exit" in ending else 1)
