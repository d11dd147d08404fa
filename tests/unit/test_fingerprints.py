"""The fingerprint of a stage depends on the inputs that are read and on nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import fingerprints as module
from pipelines.fingerprints import fingerprint
from pipelines.sections import TRAINED, Data
from pipelines.stages.train import training_fingerprint
from tfrobust.data import DATASETS
from tfrobust.models import model_files

CONFIG = {"data": {"name": "folder", "path": "anywhere"}}
DAY = 86400


def fingerprint_of(*files: Path) -> str:
    """Return the fingerprint of a stage that reads these files and folders."""
    return fingerprint(CONFIG, ["data"], files)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a small and a large file for each split and class."""
    for split in ("train", "test"):
        for name in "ab":
            images = tmp_path / "images" / split / name
            images.mkdir(parents=True)
            (images / "small.bmp").write_bytes(b"small")
            (images / "large.bmp").write_bytes(bytes(module.LARGEST_IMAGE + 1))
    return tmp_path / "images"


def rewrite(file: Path, content: bytes) -> None:
    """Write a file anew and keep its time."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=times)


def rewrite_small(folder: Path) -> None:
    """Change a small file but neither its size nor its time."""
    rewrite(folder / "test" / "a" / "small.bmp", b"other")


def rewrite_large(folder: Path) -> None:
    """Change a large file and its time but not its size."""
    file = folder / "test" / "a" / "large.bmp"
    file.write_bytes(b"1" * (module.LARGEST_IMAGE + 1))
    os.utime(file, (DAY, DAY))


def exchange(folder: Path) -> None:
    """Exchange two different images of one size."""
    rewrite_small(folder)
    a, b = (folder / "test" / name / "small.bmp" for name in "ab")
    a.rename(folder / "aside")
    b.rename(a)
    (folder / "aside").rename(b)


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": rewrite_small,
    "rewritten, large": rewrite_large,
    "exchanged": exchange,
    "one fewer": lambda f: (f / "train" / "a" / "small.bmp").unlink(),
    "renamed": lambda f: (f / "test" / "a" / "small.bmp").rename(f / "test" / "a" / "new.bmp"),
    "another class": lambda f: (f / "test" / "a" / "small.bmp").rename(f / "test" / "b" / "1.bmp"),
    "a class renamed": lambda f: (f / "test" / "b").rename(f / "test" / "c"),
    "an empty class": lambda f: (f / "test" / "c").mkdir(),
    "a broken link": lambda f: (f / "test" / "a" / "1.bmp").symlink_to("nowhere"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("linked", [".", "*"])
def test_change_of_a_folder_changes_the_fingerprint(
    folder: Path, tmp_path: Path, change: str, linked: str
) -> None:
    """The folder may be a link, and so may its train and test."""
    links = linked_to(folder, linked, tmp_path / "links")
    before = fingerprint_of(links)
    assert fingerprint_of(links) == before == fingerprint_of(folder)
    CHANGES[change](folder)
    assert fingerprint_of(links) != before


@pytest.mark.parametrize("change", ["rewritten", "rewritten, large", "one fewer"])
@pytest.mark.parametrize("linked", ["*/*", "*/*/*"])
def test_change_behind_links_changes_the_fingerprint(
    folder: Path, tmp_path: Path, change: str, linked: str
) -> None:
    """The classes are links, or the images are."""
    test_change_of_a_folder_changes_the_fingerprint(folder, tmp_path, change, linked)


def linked_to(folder: Path, pattern: str, links: Path) -> Path:
    """Make `links` a folder of links to all that a pattern matches, and return it."""
    for target in folder.glob(pattern) if pattern != "." else [folder]:
        link = links / target.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    return links


def test_link_to_another_folder_changes_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(folder, tmp_path / "changed")
    rewrite_small(changed)
    link = tmp_path / "link"
    link.symlink_to(folder)
    before = fingerprint_of(link)
    link.unlink()
    link.symlink_to(changed)
    assert fingerprint_of(link) != before
    (changed / "test" / "loop").symlink_to(changed / "test")  # a class without images
    assert fingerprint_of(link)


def test_copies_times_and_unread_files_do_not_change_the_fingerprint(
    folder: Path, tmp_path: Path
) -> None:
    """The copy keeps the times of large images."""
    before = fingerprint_of(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in copy.glob("*/*/small.bmp"):
        os.utime(file, (DAY, DAY))
    (copy / "runs").mkdir()
    (copy / "runs" / "eval.json").touch()
    (copy / "test" / "a" / ".DS_Store").touch()
    (copy / "test" / ".ipynb_checkpoints").mkdir()
    assert fingerprint_of(copy) == before


def test_after_many_bytes_the_times_of_files_count_instead(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training images are read first, in the order of their names."""
    monkeypatch.setattr(module, "MOST_BYTES", 12)  # the bytes of two of the four small images
    before = fingerprint_of(folder)
    for name in "ab":
        os.utime(folder / "train" / name / "small.bmp", (DAY, DAY))
    assert fingerprint_of(folder) == before
    os.utime(folder / "test" / "a" / "small.bmp", (DAY, DAY))
    assert fingerprint_of(folder) != before


def test_content_of_a_file_counts_and_its_time_does_not(tmp_path: Path) -> None:
    file, link = tmp_path / "data.npz", tmp_path / "link.npz"
    file.write_bytes(b"one")
    link.symlink_to(file)
    first = fingerprint_of(link)
    assert fingerprint_of(file) == first
    rewrite(file, b"two")
    assert fingerprint_of(link) != first


def test_the_file_of_the_weights_of_an_application_counts(tmp_path: Path) -> None:
    def trained(weights: str) -> str:
        config = {"data": {"name": "digits"}, "model": {"weights": weights}}
        data = Data(DATASETS["digits"]())
        spec: Any = SimpleNamespace(config=config, data=data, train=None, method=None)
        return training_fingerprint(spec, config, TRAINED)

    file = tmp_path / "my.weights.h5"
    file.write_bytes(b"one")
    before = trained(str(file))
    assert trained(str(file)) == before and trained("none") != trained("imagenet")
    rewrite(file, b"two")
    assert trained(str(file)) != before


def test_variables_of_a_saved_model_behind_links_count(tmp_path: Path) -> None:
    model, variables = tmp_path / "model", tmp_path / "variables"
    model.mkdir()
    variables.mkdir()
    (model / "saved_model.pb").write_bytes(b"graph")
    (model / "variables").symlink_to(variables)
    (variables / "variables.index").write_bytes(b"one")
    before = fingerprint_of(*model_files(model))
    (variables / "variables.index").write_bytes(b"two")
    assert fingerprint_of(*model_files(model)) != before


def test_paths_of_data_do_not_count_and_settings_do() -> None:
    first = {"data": {"path": "a", "extra": {"path": "b", "share": 0.5}}, "seed": 0}
    moved = {"data": {"path": "c", "extra": {"path": "d", "share": 0.5}}, "seed": 0}
    changed = {"data": {"path": "a", "extra": {"path": "b", "share": 0.2}}, "seed": 0}
    sections = ["data", "seed"]
    assert fingerprint(first, sections) == fingerprint(moved, sections)
    assert fingerprint(first, sections) != fingerprint(changed, sections)


def test_places_of_the_files_of_attacks_do_not_count_and_settings_do() -> None:
    """Their content is fingerprinted beside the config."""

    def of(source: str, steps: int = 2, **more: Any) -> str:
        transfer = {"name": "transfer", "source": source, "attack": {"name": "pgd", "steps": steps}}
        eot = {"name": "eot", "attack": transfer}
        sections = {"attacks": [transfer], "export": {"attacks": [transfer]}, **more}
        return fingerprint({**sections, "method": {"attack": eot}}, ["method", *sections])

    assert of("a") == of("b") != of("a", steps=3)
    assert of("a", paper={"source": "a"}) != of("a", paper={"source": "b"})
