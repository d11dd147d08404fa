"""The fingerprint of a stage depends on the inputs that are read and on nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import fingerprints as module
from pipelines.fingerprints import fingerprint
from tfrobust.models import model_files

CONFIG = {"data": {"name": "folder", "path": "anywhere"}}
DAY = 86400


def of(*files: Path) -> str:
    return fingerprint(CONFIG, ["data"], files)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a small and a large image of each class. Only the bytes of an image matter here."""
    for split in ("train", "test"):
        for name in "ab":
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            (place / "small.bmp").write_bytes(b"small")
            (place / "large.bmp").write_bytes(bytes(module.SMALL + 1))
    return tmp_path / "images"


def repaired(folder: Path) -> None:
    """Change a file but keep its size and its time."""
    file = folder / "test" / "a" / "small.bmp"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"other")
    os.utime(file, ns=times)


def repaired_large(folder: Path) -> None:
    file = folder / "test" / "a" / "large.bmp"
    file.write_bytes(b"1" * (module.SMALL + 1))
    os.utime(file, (DAY, DAY))


def exchanged(folder: Path) -> None:
    """Make two images of one size differ, then exchange them."""
    repaired(folder)
    one, other = (folder / "test" / name / "small.bmp" for name in "ab")
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


CHANGES: dict[str, Callable[[Path], object]] = {
    "repaired": repaired,
    "repaired, large": repaired_large,
    "exchanged": exchanged,
    "one fewer": lambda f: (f / "train" / "a" / "small.bmp").unlink(),
    "renamed": lambda f: (f / "test" / "a" / "small.bmp").rename(f / "test" / "a" / "new.bmp"),
    "another class": lambda f: (f / "test" / "a" / "small.bmp").rename(f / "test" / "b" / "1.bmp"),
    "a class renamed": lambda f: (f / "test" / "b").rename(f / "test" / "c"),
    "an empty class": lambda f: (f / "test" / "c").mkdir(),
    "a broken link": lambda f: (f / "test" / "a" / "1.bmp").symlink_to("nowhere"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("linked", [".", "*"])
def test_a_change_is_seen(folder: Path, tmp_path: Path, change: str, linked: str) -> None:
    """A change within a process is noticed.

    The folder may be a link, and so may its train and test.
    """
    read = linked_to(folder, linked, tmp_path / "links")
    before = of(read)
    assert of(read) == before == of(folder)
    CHANGES[change](folder)
    assert of(read) != before


@pytest.mark.parametrize("change", ["repaired", "repaired, large", "one fewer"])
@pytest.mark.parametrize("linked", ["*/*", "*/*/*"])
def test_a_change_behind_links(folder: Path, tmp_path: Path, change: str, linked: str) -> None:
    """A change behind links to classes and to images is noticed."""
    read = linked_to(folder, linked, tmp_path / "links")
    before = of(read)
    assert before == of(folder)
    CHANGES[change](folder)
    assert of(read) != before


def linked_to(folder: Path, pattern: str, links: Path) -> Path:
    """Make a folder of links to everything at the depth of a pattern."""
    for place in folder.glob(pattern) if pattern != "." else [folder]:
        link = links / place.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place)
    return links


def test_links_that_lead_elsewhere(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    repaired(other)
    link = tmp_path / "link"
    link.symlink_to(folder)
    before = of(link)
    link.unlink()
    link.symlink_to(other)
    assert of(link) != before
    (other / "test" / "loop").symlink_to(other / "test")  # a class without images
    assert of(link)


def test_what_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """The place, files that are not read, and times of files do not matter.

    Nor does a copy that keeps the times of large images.
    """
    before = of(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in copy.glob("*/*/small.bmp"):
        os.utime(file, (DAY, DAY))
    (copy / "runs").mkdir()
    (copy / "runs" / "eval.json").touch()
    (copy / "test" / "a" / ".DS_Store").touch()
    (copy / "test" / ".ipynb_checkpoints").mkdir()
    assert of(copy) == before


def test_the_bytes_that_are_read_are_bounded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a number of bytes the time counts instead.

    Files are read in the order of names, training first.
    """
    monkeypatch.setattr(module, "MOST", 12)  # two of the four small images
    before = of(folder)
    times = (DAY, DAY)
    for name in "ab":
        os.utime(folder / "train" / name / "small.bmp", times)
    assert of(folder) == before
    os.utime(folder / "test" / "a" / "small.bmp", times)
    assert of(folder) != before


def test_files_count_by_their_content(tmp_path: Path) -> None:
    file, link = tmp_path / "data.npz", tmp_path / "link.npz"
    file.write_bytes(b"one")
    link.symlink_to(file)
    first, times = of(link), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    assert of(file) == first
    file.write_bytes(b"two")
    os.utime(file, ns=times)
    assert of(link) != first


def test_a_network_behind_links(tmp_path: Path) -> None:
    """The variables of a SavedModel may be behind links."""
    model, variables = tmp_path / "model", tmp_path / "variables"
    model.mkdir()
    variables.mkdir()
    (model / "saved_model.pb").write_bytes(b"graph")
    (model / "variables").symlink_to(variables)
    (variables / "variables.index").write_bytes(b"one")
    before = of(*model_files(model))
    (variables / "variables.index").write_bytes(b"two")
    assert of(*model_files(model)) != before


def test_places_and_habits_of_a_run_do_not_count() -> None:
    first = {"data": {"path": "a", "extra": {"path": "b", "share": 0.5}}, "seed": 0}
    moved = {"data": {"path": "c", "extra": {"path": "d", "share": 0.5}}, "seed": 0}
    other = {"data": {"path": "a", "extra": {"path": "b", "share": 0.2}}, "seed": 0}
    sections = ["data", "seed"]
    assert fingerprint(first, sections) == fingerprint(moved, sections)
    assert fingerprint(first, sections) != fingerprint(other, sections)
