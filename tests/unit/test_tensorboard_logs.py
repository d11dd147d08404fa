"""The TensorBoard logs of a run, read from the event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from pipelines.space import Range
from pipelines.stages.tensorboard_logs import write_board, write_trial
from tests.unit.test_report import make_run
from tests.unit.test_training import written
from tfrobust.report import SearchTrial, load_run

MARGINS = {"clean": np.array([2.0, 1.0, np.nan]), "adversarial": np.array([-1.0, 0.5, 0.25])}


def events(folder: Path) -> EventAccumulator:
    """Return the events of a folder, which must hold a single file."""
    (file,) = folder.iterdir()
    return EventAccumulator(str(file), {"tensors": 0}).Reload()


def values(board: EventAccumulator, tag: str) -> list[tuple[int, Any]]:
    """Return the steps and values of a tag."""
    return [(e.step, tf.make_ndarray(e.tensor_proto)) for e in board.Tensors(tag)]


def test_an_evaluation_logs_accuracies_margins_and_images_once(tmp_path: Path) -> None:
    record = load_run(make_run(tmp_path / "run", channels=3))
    for _ in range(2):
        write_board(tmp_path / "board", record, MARGINS)
    board = events(tmp_path / "board")
    accuracy = {"clean": 0.8, "PGD-20": 0.4, "Square": 0.3, "worst case": 0.3}
    for name, value in accuracy.items():
        ((step, result),) = values(board, f"attack_eval/accuracy/{name}")
        assert step == 0 and result == pytest.approx(value)
    for name, n in (("clean", 2), ("adversarial", 3)):
        # Columns are the left and right edge of a bucket and its count.
        ((_, buckets),) = values(board, f"attack_eval/margin/{name}")
        assert buckets[:, 2].sum() == n and buckets[-1, 1] == np.nanmax(MARGINS[name])
    ((_, result),) = values(board, "attack_eval/clean, adversarial, difference")
    assert result[:2].tolist() == [b"304", b"96"]  # three images of 96 and two gaps of 8
    strips = np.stack([tf.io.decode_png(image) for image in result[2:]])[:, ::12]
    clean, adversarial, difference = (strips[:, :, at : at + 96 : 12] for at in (0, 104, 208))
    np.testing.assert_allclose(clean, 255 * record.probes.image, atol=1)
    np.testing.assert_allclose(adversarial, 255 * record.probes.adversarial, atol=1)
    change = record.probes.adversarial - record.probes.image  # at most 0.05, shown ten times larger
    np.testing.assert_allclose(difference, 255 * (0.5 + 10 * change), atol=1)


def test_an_evaluation_logs_the_hyper_parameters(tmp_path: Path) -> None:
    write_board(tmp_path / "board", load_run(make_run(tmp_path / "run")), {})
    content = events(tmp_path / "board").PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    result = {key: value.string_value or value.number_value for key, value in start.hparams.items()}
    numbers = {"seed": 0, "eps": 0.15, "method.alpha": 0.0002, "method.beta": 5.0}
    assert result == {"method": "atlas", "data": "digits"} | numbers


def test_the_value_of_a_choice_is_one_of_its_column(tmp_path: Path) -> None:
    """TensorBoard filters by the text of the column, also where the choices are numbers."""
    trial = SearchTrial("0", {"a": 0.1, "b": 0.5}, "completed", 1, 0.9, 0.5)
    space = {"a": Range("choice", [0.1, 0.2]), "b": Range("linear", [0.0, 1.0])}
    write_trial(tmp_path / "board", trial, space)
    content = events(tmp_path / "board").PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["a"].string_value == "0.1" and start.hparams["b"].number_value == 0.5


def test_a_resumed_training_writes_its_logs_anew_and_keeps_those_of_the_evaluation(
    tmp_path: Path,
) -> None:
    board = tmp_path / "tensorboard"
    (board / "attack_eval").mkdir(parents=True)
    epochs = [{"loss": 2.0, "val_loss": 3.0, "val_robust_accuracy": 0.25}, {"loss": 1.0}]
    history = written(tmp_path / "history.csv", [], epochs)
    written(tmp_path / "history.csv", history.lines[:2], [{"loss": 0.5}])
    train, validation = events(board / "train"), events(board / "validation")
    assert values(train, "train/loss") == [(0, 2.0), (1, 0.5)]
    assert values(validation, "train/loss") == [(0, 3.0)]
    assert values(validation, "train/robust_accuracy") == [(0, 0.25)]
    assert (board / "attack_eval").is_dir()
