"""The record of an evaluation: its headline, its provenance, and finished results that are kept.

The network is that of test_evaluation.py: one pixel t, class 1 where t > 0.5.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_evaluation import X, Y, network
from tfrobust import PGD, Threat, provenance
from tfrobust.attacks import FGSM
from tfrobust.errors import UserError
from tfrobust.evaluation import Details, Evaluation, Flags, Record, Result, evaluate, sanity_checks
from tfrobust.evaluation import recorder as recorders
from tfrobust.evaluation.pictures import Pictures
from tfrobust.flags import digests
from tfrobust.report import load_run, write_report

THREAT = Threat("linf", 0.25)
OUT = "Not measured: the memory does not suffice; lower the batch size."
HALF = {"name": "fgsm", "start": "none", "step_scale": 0.5, "label": "half"}
WHOLE = {"name": "fgsm", "start": "none", "label": "whole"}
NOISY = {"name": "uniform_noise", "label": "noise"}
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Lines(list):
    """The lines that an evaluation reports."""

    @property
    def attacks(self) -> list[str]:
        """Return the names of the results that were computed, the clean one among them."""
        return [line.partition(":")[0] for line in self if "% of " in line]


def evaluated(
    folder: Path, attacks: Any, logits_fn: Any = network, x: Any = X, y: Any = Y, **options: Any
) -> Lines:
    """Return the lines of an evaluation in a folder, without checks and progress."""
    lines = Lines()
    options = {"check": False, "progress": False} | options
    details = Details(say=lines.append)
    evaluate(logits_fn, x, y, THREAT, attacks, folder=folder, details=details, **options)
    return lines


@given(st.data())
@settings(max_examples=3 * settings.default.max_examples)
def test_the_headline_is_never_above_a_row_that_saw_as_many_images(data: st.DataObject) -> None:
    """The attacks are random. The worst case of fewer images is not above such a row either."""

    def flags(size: int) -> np.ndarray:
        return np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))

    n = data.draw(st.integers(1, 12))
    clean = flags(n)
    sizes = data.draw(st.lists(st.integers(1, n), max_size=4))
    attacked = [flags(size) & clean[:size] for size in (n, *sizes)]
    results = [Result(str(place), right, 0.0) for place, right in enumerate([clean, *attacked])]
    result = Evaluation(results)
    assert len(result.robust) == n
    for row in results:
        if len(row.robust) >= n:
            assert result.robust_accuracy <= row.accuracy
    assert sorted(result.subsets) == sorted(set(sizes) - {n})
    for size, share in result.subsets.items():
        assert all(share <= row.robust[:size].mean() for row in results if len(row.robust) >= size)


def test_the_clean_accuracy_is_of_the_most_images_that_an_attack_sees(tmp_path: Path) -> None:
    evaluated(tmp_path, [HALF | {"examples": 4}, WHOLE | {"examples": 2}])
    record = Record.load(tmp_path)
    assert (record.examples, record.clean_accuracy) == (4, 0.75)
    assert (record.robust_accuracy, record.worst_case_examples) == (0.5, 4)
    assert [(s.examples, s.robust_accuracy) for s in record.subsets] == [(2, 0.5)]
    assert len(Flags.load(tmp_path).label) == 4


def test_finished_attacks_stay_when_the_list_grows_or_a_label_or_the_batch_changes(
    tmp_path: Path,
) -> None:
    assert evaluated(tmp_path, [NOISY, HALF]).attacks == ["clean", "noise", "half"]
    before = Flags.load(tmp_path).right
    again = evaluated(tmp_path, [NOISY, HALF | {"label": "HALF"}, WHOLE], batch_size=2)
    assert again.attacks == ["whole"]
    flags, record = Flags.load(tmp_path), Record.load(tmp_path)
    assert list(flags.right) == ["clean", "noise", "HALF", "whole"]
    assert [row.name for row in record.attacks] == ["noise", "HALF", "whole"]
    for old, new in {"clean": "clean", "noise": "noise", "half": "HALF"}.items():
        np.testing.assert_array_equal(before[old], flags.right[new])
    assert not list(tmp_path.glob("evaluation.*"))


def test_a_kill_between_writing_flags_and_record_loses_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flags.npz has the new labels and eval.json the old ones; both are recognised."""
    evaluated(tmp_path, [HALF, WHOLE])
    renamed = [HALF | {"label": "a"}, WHOLE | {"label": "b"}, NOISY]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Record, "save", Mock(side_effect=KeyboardInterrupt))
        evaluated(tmp_path, renamed)
    assert evaluated(tmp_path, renamed).attacks == ["noise"]
    assert list(Flags.load(tmp_path).right) == ["clean", "a", "b", "noise"]


def test_a_full_disk_loses_no_result_that_is_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former results had been moved aside, where the next evaluation did not find them."""
    evaluated(tmp_path, [HALF, WHOLE])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Flags, "save", Mock(side_effect=FULL))
        evaluated(tmp_path, [HALF, NOISY])
    assert evaluated(tmp_path, [HALF, NOISY]).attacks == ["noise"]
    assert "whole" in Flags.load(tmp_path / "evaluation.1").right


@pytest.mark.usefixtures("short_closing")
def test_a_picture_that_a_full_disk_refuses_is_made_by_the_next_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had been "Not measured" for ever."""
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Pictures, "_write", Mock(side_effect=FULL))
        evaluated(tmp_path, [HALF], check=True)
    assert evaluated(tmp_path, [HALF], check=True).attacks == []
    assert (tmp_path / "probes.npz").is_file()
    assert "No space left" not in str(Record.load(tmp_path).checks)


def test_what_a_killed_evaluation_has_half_written_is_removed(tmp_path: Path) -> None:
    evaluated(tmp_path, [HALF])
    half_written = tmp_path / ".partial-1-adversarial.npz"
    half_written.touch()
    evaluated(tmp_path, [HALF])
    assert not half_written.exists()


def test_the_noise_of_an_attack_depends_on_its_name_and_place_but_not_on_its_label() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((40, 4, 4, 1), np.float32)
    weights = tf.constant(rng.normal(size=(16, 3)), tf.float32)
    linear = lambda images: tf.reshape(images, [-1, 16]) @ weights  # noqa: E731
    y = np.argmax(linear(x), axis=1)

    def images(*attacks: Any) -> list[np.ndarray]:
        """Return the images, [40, 4, 4, 1], that each attack makes."""
        options: Any = {"mode": "each", "images": True, "check": False, "progress": False}
        results = evaluate(linear, x, y, Threat("linf", 0.05), list(attacks), **options).results
        return [result.images for result in results[1:]]

    weak = {"name": "uniform_noise", "draws": 1}
    first, second = images(weak | {"label": "a"}, weak | {"label": "b"})
    relabelled, _ = images(weak | {"label": "c"}, {"name": "fgsm"})
    np.testing.assert_array_equal(first, relabelled)
    assert (first != second).any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"logits_fn": lambda x: network(x) * [1.0, 1.5]}, "another network"),
        ({"y": 1 - Y}, "other images"),
        ({"x": X[::-1].copy(), "y": Y[::-1].copy()}, "other images"),
        ({"mode": "each"}, "another mode"),
        ({"seed": 1}, "another seed"),
        ({"attacks": [WHOLE, HALF]}, "another list of attacks from half on"),
        ({"rerun": True}, "computed again"),
    ],
)
def test_results_of_another_evaluation_are_moved_aside(
    tmp_path: Path, change: Any, reason: str
) -> None:
    evaluated(tmp_path, [HALF, WHOLE])
    (tmp_path / "config.yaml").write_text("name: old\n")
    names = ("eval.json", "flags.npz", "MODEL_CARD.md", "junit.xml", "exports.json")
    for name in names[2:]:  # they have its numbers
        (tmp_path / name).write_text("old")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    lines = evaluated(tmp_path, **{"attacks": [HALF, WHOLE]} | change)
    aside = tmp_path / "evaluation.1"
    assert f"the former results are kept in {aside} ({reason})" in lines
    assert lines.attacks[-1] in ("half", "whole")
    assert {name: (aside / name).read_bytes() for name in before} == before
    assert (aside / "config.yaml").read_text() == "name: old\n"
    assert not any((tmp_path / name).exists() for name in names[2:])
    assert len(Record.load(tmp_path).attacks) == 2


@pytest.mark.parametrize("name", ["eval.json", "flags.npz"])
def test_damaged_files_are_moved_aside_and_all_attacks_run_again(tmp_path: Path, name: str) -> None:
    evaluated(tmp_path, [HALF])
    (tmp_path / name).write_bytes(b"{damaged")
    lines = evaluated(tmp_path, [HALF])
    assert lines.attacks == ["clean", "half"]
    assert (tmp_path / "evaluation.1" / name).read_bytes() == b"{damaged"


def test_a_refused_evaluation_writes_and_changes_no_file(tmp_path: Path) -> None:
    softmax = lambda x: tf.nn.softmax(network(x))  # noqa: E731
    with pytest.raises(UserError, match="expected logits"):
        evaluated(tmp_path / "new", [HALF], softmax)
    assert not (tmp_path / "new").exists()
    evaluated(tmp_path / "old", [HALF])
    before = {file: file.read_bytes() for file in (tmp_path / "old").iterdir()}
    for argument, bad, message in (
        ("logits_fn", softmax, "^logits_fn: expected logits"),
        ("attacks", "autoatack", "did you mean 'autoattack'"),
        ("x", X + 1, "^x: expected float images"),
        ("save", "int8", "^evaluation.save: expected one of"),
    ):
        with pytest.raises(UserError, match=message):
            evaluated(tmp_path / "old", **{"attacks": [HALF], argument: bad})
    assert {file: file.read_bytes() for file in (tmp_path / "old").iterdir()} == before


def test_rows_keep_the_version_that_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later version adds its row and says so."""
    evaluated(tmp_path, [HALF], seed=3)
    first = Record.load(tmp_path)
    provenance = first.attacks[0].provenance
    assert (provenance.seed, provenance.examples, provenance.precision) == (3, 7, "float32")
    assert first.provenance.version == first.versions["tfrobust"] and provenance.threads >= 1
    for module in ("tfrobust.provenance.__version__", "tfrobust.evaluation.recorder.versions"):
        new: Any = "9.9.9" if module.endswith("__version__") else lambda: {"tfrobust": "9.9.9"}
        monkeypatch.setattr(module, new)
    lines = evaluated(tmp_path, [HALF, WHOLE], seed=3)
    assert lines.attacks == ["whole"]
    assert any("are kept, this is tfrobust 9.9.9" in line for line in lines)
    half, whole = Record.load(tmp_path).attacks
    assert half.provenance == provenance and whole.provenance.version == "9.9.9"
    assert Record.load(tmp_path).versions == first.versions
    again = evaluated(tmp_path, [HALF, WHOLE], seed=3, rerun=True)
    assert again.attacks == ["clean", "half", "whole"]
    assert Record.load(tmp_path).attacks[0].provenance.version == "9.9.9"


def test_a_record_of_another_schema_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(tmp_path, [HALF])
    monkeypatch.setattr(recorders, "SCHEMA", recorders.SCHEMA + 1)
    lines = evaluated(tmp_path, [HALF])
    assert lines.attacks == ["clean", "half"] and "(of schema 1, this" in lines[0]


def test_a_change_of_weights_makes_another_network_even_where_logits_are_equal(
    tmp_path: Path,
) -> None:
    model = keras.Sequential([keras.Input((1, 1, 1)), keras.layers.Dense(2)])
    model = keras.Sequential([model, keras.layers.Flatten()])
    model.set_weights([np.array([[-1.0, 1.0]]), np.array([0.5, -0.5])])
    evaluated(tmp_path, [HALF], model)
    assert not evaluated(tmp_path, [HALF], model).attacks
    model.set_weights([np.array([[-1.0, 1.0]]), np.array([0.5, -0.5 + 1e-6])])
    assert "another network" in evaluated(tmp_path, [HALF], model)[0]


def test_a_defence_with_another_gradient_is_another_network(tmp_path: Path) -> None:
    """A rounding stops gradients. Once they pass it, the logits are those of before."""

    def rounded(x: Any) -> Any:
        return tf.round(255 * x) / 255

    def masked(x: Any) -> Any:
        return network(rounded(x))

    def passed(x: Any) -> Any:
        return network(x + tf.stop_gradient(rounded(x) - x))

    assert evaluated(tmp_path, [PGD(steps=3)], masked).attacks == ["clean", "PGD-3"]
    assert not evaluated(tmp_path, [PGD(steps=3)], masked).attacks
    assert "another network" in evaluated(tmp_path, [PGD(steps=3)], passed)[0]
    assert Record.load(tmp_path).robust_accuracy < 0.75


def test_checks_curves_and_pictures_are_computed_once_and_stand_on_the_page(tmp_path: Path) -> None:
    lines = evaluated(tmp_path, [PGD(steps=3), FGSM()], check=True, save="float32")
    names = {file.name for file in tmp_path.iterdir()}
    files = {"eval.json", "flags.npz", "adversarial.npz", "probes.npz", "valley.npz"}
    assert names == files | {"landscape.npz", ".lock"}
    record = load_run(tmp_path).evaluation
    assert record.checks and record.eps_curve and record.closing.version
    page = write_report(tmp_path).read_text()
    assert f"{tmp_path.name} on arrays: 85.7 % clean" in page
    written_at = (tmp_path / "valley.npz").stat().st_mtime_ns
    again = evaluated(tmp_path, [PGD(steps=3), FGSM()], check=True, save="float32")
    assert lines.attacks == ["clean", "PGD-3", "FGSM"] and again == []
    assert (tmp_path / "valley.npz").stat().st_mtime_ns == written_at


@pytest.mark.usefixtures("short_closing")
def test_checks_run_again_where_an_attack_has_left_the_list(tmp_path: Path) -> None:
    """The row of the first attack stays, but the checks were of both attacks."""
    evaluated(tmp_path, [HALF, {"name": "square", "queries": 3, "label": "gone"}], check=True)
    lines = evaluated(tmp_path, [HALF], check=True)
    assert lines.attacks == [] and (tmp_path / "evaluation.1" / "probes.npz").is_file()
    record = Record.load(tmp_path)
    assert [row.name for row in record.attacks] == ["half"] and record.closing is not None
    assert "gone" not in str(record.checks) and (tmp_path / "probes.npz").is_file()


def test_a_failure_after_the_attacks_loses_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported as not measured, with its reason."""
    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    monkeypatch.setattr(sanity_checks, "CHECKS", sanity_checks.CHECKS[:1])
    monkeypatch.setattr("tfrobust.evaluation.closing.least_eps", Mock(side_effect=error))
    monkeypatch.setattr("tfrobust.evaluation.pictures.valley", Mock(side_effect=error))
    lines = evaluated(tmp_path, [HALF], check=True)
    record = Record.load(tmp_path)
    texts = {check.name: check.text for check in record.checks}
    assert texts["accuracy against eps"] == OUT
    assert texts["loss valley"] == OUT
    assert f"warning: loss valley: {OUT}" in lines
    assert record.eps_curve == [] and record.attacks[0].robust_accuracy == pytest.approx(4 / 7)
    assert OUT in write_report(tmp_path).read_text()


def test_a_digest_changes_with_every_pixel_the_label_and_the_shape() -> None:
    x, y = np.zeros((3, 2, 3, 1), np.float32), np.zeros(3, np.int32)
    first = digests(x, y)
    assert len(set(first.tolist())) == 1 and first.dtype == np.uint64
    x[1, 0, 2, 0], y[2] = 1e-7, 1
    assert len(set(digests(x, y).tolist())) == 3
    assert digests(x.reshape(3, 3, 2, 1), y)[0] != first[0]


@pytest.mark.usefixtures("short_closing")
def test_the_keys_of_eval_json_and_flags_npz_have_not_changed(tmp_path: Path) -> None:
    evaluated(tmp_path, [HALF, WHOLE], check=True)
    content = json.loads((tmp_path / "eval.json").read_text())
    names = (
        "examples clean_accuracy robust_accuracy worst_case_examples mode attacks pending checks "
        "eps_curve threat seed data versions commit training_commit"
    )
    assert set(names.split()) <= content.keys()
    row = "name examples robust_accuracy seconds attacked queries gradients config suite"
    assert set(row.split()) <= content["attacks"][0].keys()
    assert set(np.load(tmp_path / "flags.npz")) >= {"index", "label", "clean", "half", "whole"}


def test_a_record_has_the_threads_that_tensorflow_was_told_to_use(monkeypatch):
    """A suite gives each of two runs half of the cores by TensorFlow's own variable."""
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    assert provenance.circumstances()["threads"] == 3


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (
            ["model name\t: AMD EPYC", "cpu family\t: 26", "model\t\t: 2"],
            "AMD EPYC (family 26, model 2)",
        ),
        (["model name\t: ARM: v8"], "ARM: v8"),
        (["processor\t: 0"], None),
    ],
)
def test_a_record_tells_generations_of_a_cpu_apart(lines, name, monkeypatch):
    """Virtual machines name the maker alone, and generations differ twofold in bfloat16."""
    monkeypatch.setattr(provenance.Path, "read_text", lambda self, encoding: "\n".join(lines))
    assert provenance._cpu() == name
