"""Results that were edited, or copied from another run, are refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tfrobust import Threat, evaluate
from tfrobust.report import load_run

THREATS = [Threat("linf", 0.05), Threat("l2", 0.2)]
ATTACKS = [{"name": "pgd", "steps": 3}, {"name": "fgsm", "examples": 15}]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the results of two norms on 30 images, and of one attack on 15."""
    rng = np.random.default_rng(0)
    weights = tf.constant(rng.normal(size=(16, 3)), tf.float32)
    linear = lambda images: tf.reshape(images, [-1, 16]) @ weights  # noqa: E731
    x = rng.random((30, 4, 4, 1), np.float32)
    y = np.argmax(linear(x), axis=1)
    folder = tmp_path_factory.mktemp("results")
    evaluate(linear, x, y, THREATS, ATTACKS, folder=folder, check=False, progress=False)
    load_run(folder)
    return folder


def more_clean_images(record: dict[str, Any]) -> None:
    record["examples"] = 3000


def more_images(record: dict[str, Any]) -> None:
    record["attacks"][0]["examples"] = 3000


def larger_worst_case(record: dict[str, Any]) -> None:
    record["worst_case_examples"] = 3000


def better_norm(record: dict[str, Any]) -> None:
    record["norms"][1]["robust_accuracy"] = 0.999


def better_subset(record: dict[str, Any]) -> None:
    record["subsets"][0]["robust_accuracy"] = 0.999


def another_subset(record: dict[str, Any]) -> None:
    record["subsets"][0]["examples"] = 14


def no_eps(record: dict[str, Any]) -> None:
    record["threat"][1]["eps"] = float("nan")


def no_threat(record: dict[str, Any]) -> None:
    record["threat"] = []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (more_clean_images, "clean: expected 30 images, as flags.npz has them, received 3000"),
        (more_images, "PGD-3: expected 30 images, as flags.npz has them, received 3000"),
        (larger_worst_case, "worst case: expected 30 images, as flags.npz has them, received 3000"),
        (better_norm, "l2: worst case: expected "),
        (better_subset, "first 15 images: expected "),
        (another_subset, "subsets: expected numbers of images of [15], received 14"),
        (no_eps, ".1.eps: nan: Input should be a finite number"),
        (no_threat, "received threat.ThreatRow: []: "),
    ],
)
def test_a_record_that_its_flags_contradict(
    results: Path, tmp_path: Path, edit: Callable[[Any], None], message: str
) -> None:
    """A report had an interval of 3,000 images, where the flags have 30."""
    folder = shutil.copytree(results, tmp_path / "copy")
    record = json.loads((folder / "eval.json").read_text())
    edit(record)
    (folder / "eval.json").write_text(json.dumps(record))
    assert message in error_line(lambda: load_run(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flags: {"clean": flags["clean"].astype(str)}, "clean of dtype <U5"),
        (lambda flags: {"label": flags["label"].astype(str)}, "label of dtype <U"),
        (lambda flags: {"label": flags["label"] + 0.5}, "label of dtype float64"),
        (lambda flags: {"label": flags["label"] - 5}, "an index or a label below 0"),
        (lambda flags: {"digest": flags["digest"].astype(str)}, "digest of dtype <U"),
        (lambda flags: {"linf: PGD-3": flags["clean"][:0]}, "linf: PGD-3 of shape (0,)"),
    ],
)
def test_flags_of_another_kind(results: Path, tmp_path: Path, change: Any, message: str) -> None:
    """They ended in a traceback, or were taken."""
    folder = shutil.copytree(results, tmp_path / "copy")
    flags = dict(np.load(folder / "flags.npz"))
    np.savez(folder / "flags.npz", **flags | change(flags))
    line = error_line(lambda: load_run(folder))
    assert "flags.npz: expected a readable file" in line and message in line
