"""An evaluation in an existing folder: what it refuses, and files that agree with the record.

The network is that of test_evaluation.py: one pixel t, class 1 where t > 0.5.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.errors import error_line
from tests.unit.test_evaluation import X, Y, network
from tests.unit.test_record import HALF, NOISY, THREAT, WHOLE, evaluated
from tfrobust import PGD, Threat
from tfrobust.errors import UserError
from tfrobust.evaluation import (
    Corruptions,
    Details,
    Flags,
    ListedAttack,
    Record,
    Result,
    cascade,
    closing,
    evaluate,
)
from tfrobust.evaluation.image_file import ImageFile, _rounded
from tfrobust.report import load_run


def shifted(images: Any) -> Any:
    """Return the logits of another network."""
    return network(images) + [0.0, 0.1]


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder by their relative path."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def saved(path: Path, images: Any, index: Any) -> dict[str, str]:
    """Return the config of an attack that reads images which are saved at the path."""
    np.savez(path, image=images, index=index)
    return {"name": "saved_images", "path": str(path)}


def test_an_evaluation_that_is_refused_changes_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    evaluated(folder, [HALF])
    before = files(folder)
    few = saved(tmp_path / "few.npz", X[:1], [0])
    far = saved(tmp_path / "far.npz", 1 - X, np.arange(len(X)))
    for change, message in (
        ({"mode": "all"}, "^mode: expected one of cascade, each"),
        ({"attacks": [few]}, "^path: expected an image for each of"),
        ({"attacks": [far]}, "^path: expected images of this threat, received .*: made images at"),
        ({"seed": 0.5}, "^seed: expected int of at most 64 bits, received 0.5"),
        ({"seed": 2**64}, "^seed: expected int of at most 64 bits, received 18446744073709551616"),
        ({"attacks": None}, "^attacks: expected a name, a mapping with 'name', an attack such as"),
        ({"attacks": PGD}, "^attacks: expected a name, a mapping with 'name', an attack such as "),
        ({"details": {"data": "mine"}}, "^details: expected tfrobust.evaluation.Details"),
        ({"details": Details(index=np.arange(1))}, r"^details.index: expected a place for"),
        ({"images": True}, "^images: expected False with a folder"),
        ({"folder": None, "save": "uint8"}, "^save: expected None without a folder"),
        ({"corruptions": {"examples": 1}}, "^corruptions: expected True, False or tfrobust.eval"),
    ):
        options: dict[str, Any] = {"attacks": [HALF], "folder": folder, "progress": False} | change
        with pytest.raises(UserError, match=message):
            evaluate(shifted, X, Y, THREAT, **options)
        assert files(folder) == before


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            {"index": np.arange(4) > 1},
            "index: expected places, int [N], received 'bool of shape (4,)'",
        ),
        ({"class_names": "ab"}, "class_names: expected a list of names, received 'ab'"),
        ({"data": 3}, "data: expected a name, received 3"),
        ({"model": {"width": np.float32(1)}}, "model: expected what JSON can hold: Object of type"),
        (
            {"training_settings": {"method": {1j: 0}}},
            "training_settings: expected what JSON can hold",
        ),
    ],
)
def test_descriptions_that_cannot_stand_in_a_record_are_refused(
    description: Any, message: str
) -> None:
    """The first attack was lost when its result was written, or a mask was recorded as places."""
    assert error_line(lambda: Details(**description)).startswith(f"details.{message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"examples": -1}, "examples: expected int >= 1, received -1"),  # all but the last image
        ({"examples": 0}, "examples: expected int >= 1, received 0"),
        ({"attack": "pgd"}, "attack: expected an attack, such as PGD(), received 'pgd'"),
        ({"name": ""}, "name: expected a name, received ''"),
    ],
)
def test_an_entry_of_the_list_of_attacks_is_checked(arguments: Any, message: str) -> None:
    entry = {"attack": PGD(), "name": "mine"} | arguments
    assert error_line(lambda: ListedAttack(**entry)) == message


def test_places_of_fewer_images_are_refused_without_a_folder_too() -> None:
    few: Any = {"details": Details(index=[3, 4]), "check": False, "progress": False}
    line = error_line(lambda: evaluate(network, X, Y, THREAT, [HALF], **few))
    assert line == f"details.index: expected a place for {len(X)} images, received 2"


def test_places_may_be_a_list(tmp_path: Path) -> None:
    places = [7 + place for place in range(len(X))]
    options: Any = {"check": False, "progress": False, "folder": tmp_path}
    evaluate(network, X, Y, THREAT, [HALF], details=Details(index=places), **options)
    assert Flags.load(tmp_path).index.tolist() == places


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="^folder: expected a folder that can be written to"):
            evaluated(place, [HALF])
    assert files(tmp_path) == {"file": b"mine"}


def test_an_evaluation_is_refused_while_another_uses_its_folder(tmp_path: Path) -> None:
    rows: list[str] = []

    def evaluate_again(line: str) -> None:
        if line.startswith("clean"):
            with pytest.raises(UserError, match="^folder: expected a folder that no other eval"):
                evaluated(tmp_path, [WHOLE], shifted)
        rows.append(line)

    details = Details(say=evaluate_again)
    evaluate(network, X, Y, THREAT, [HALF], check=False, folder=tmp_path, details=details)
    assert [line.partition(":")[0] for line in rows] == ["clean", "half"]
    assert [row.name for row in Record.load(tmp_path).attacks] == ["half"]


def test_an_evaluation_is_refused_if_another_has_written_to_its_folder_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = cascade._clean

    def clean_after_another_evaluation(*args: Any) -> Any:
        monkeypatch.setattr(cascade, "_clean", clean)
        evaluated(tmp_path, [HALF])
        return clean(*args)

    monkeypatch.setattr(cascade, "_clean", clean_after_another_evaluation)
    with pytest.raises(UserError, match="no other evaluation has written to meanwhile"):
        evaluated(tmp_path, [WHOLE])
    assert [row.name for row in Record.load(tmp_path).attacks] == ["half"]


def test_saved_images_are_those_of_the_attacks_of_the_record(tmp_path: Path) -> None:
    """They are moved aside where an attack has left the list, or another ran without saving."""
    evaluated(tmp_path, [HALF, WHOLE], save="float32")
    evaluated(tmp_path, [HALF, NOISY], save="float32")
    fresh = tmp_path / "fresh"
    evaluated(fresh, [HALF, NOISY], save="float32")
    images, expected = (np.load(d / "adversarial.npz")["image"] for d in (tmp_path, fresh))
    np.testing.assert_array_equal(images, expected)

    grid = np.float32(np.rint(255 * X) / 255)
    more = tmp_path / "more"
    evaluated(more, [HALF], x=grid, save="uint8")
    assert Record.load(more).rounded_robust_accuracy is not None
    before = (more / "adversarial.npz").read_bytes()
    assert evaluated(more, [HALF, WHOLE], x=grid).attacks == ["whole"]
    assert Record.load(more).rounded_robust_accuracy is None
    assert (more / "evaluation.1" / "adversarial.npz").read_bytes() == before
    assert not (more / "adversarial.npz").exists()


def test_uint8_images_are_refused_in_another_box(tmp_path: Path) -> None:
    grid = np.float32(np.rint(255 * X))
    message = "evaluation.save: expected float32, since uint8 stands for"
    threat = Threat("linf", 8, (0, 255))
    with pytest.raises(UserError, match=message):
        evaluate(network, grid, Y, threat, [HALF], folder=tmp_path, save="uint8", check=False)


def test_an_attack_whose_flags_disagree_with_its_row_runs_again(tmp_path: Path) -> None:
    """A kill while labels are exchanged leaves such flags."""
    evaluated(tmp_path, [HALF, WHOLE])
    flags, row = Flags.load(tmp_path), Record.load(tmp_path).attacks[1]
    wrong = dataclasses.replace(flags, right={**flags.right, "whole": flags.right["clean"]})
    wrong.save(tmp_path)
    assert evaluated(tmp_path, [HALF, WHOLE]).attacks == ["whole"]
    assert Record.load(tmp_path).attacks[1].robust_accuracy == row.robust_accuracy


@pytest.mark.usefixtures("short_closing")
def test_the_curve_has_the_points_of_the_last_evaluation(tmp_path: Path) -> None:
    def points(*values: float) -> list[float]:
        """Return the lambdas of the curve after an evaluation at these values."""
        curve = [({"lambda": value}, network) for value in values]
        details = Details(curve=curve, say=lambda line: None)
        evaluate(network, X, Y, THREAT, [HALF], progress=False, folder=tmp_path, details=details)
        return [row.strength for row in Record.load(tmp_path).curve]

    assert points(1.0, 0.5) == [1.0, 0.5]
    assert points(1.0, 0.5, 0.0) == [1.0, 0.5, 0.0]
    assert points(1.0) == [1.0]
    assert points() == []


@pytest.mark.usefixtures("short_closing")
def test_every_point_of_the_curve_is_attacked_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = keras.Input(X.shape[1:])
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    model.set_weights([np.array([[-1.0, 1.0]]), np.array([0.5, -0.5])])
    run = Mock(side_effect=closing.run_all)
    monkeypatch.setattr(closing, "run_all", run)
    details = Details(curve=[({"lambda": value}, model) for value in (1.0, 0.5)])
    options: Any = {"craft_precision": "mixed_bfloat16", "mode": "each", "progress": False}
    evaluate(model, X, Y, THREAT, [HALF], folder=tmp_path, details=details, **options)
    given = run.call_args.kwargs
    assert given["mode"] == "each"
    assert "bfloat16" in {layer.compute_dtype for layer in given["search"].layers}
    rows = Record.load(tmp_path).curve
    assert rows[0].robust_accuracy == rows[1].robust_accuracy


def test_pictures_of_saved_images_are_those_of_their_places(tmp_path: Path) -> None:
    places = np.arange(len(X)) + 100
    listed = saved(tmp_path / "mine.npz", X, places)
    details = Details(index=places, say=lambda line: None)
    folder = tmp_path / "run"
    evaluate(network, X, Y, THREAT, [listed], folder=folder, details=details, progress=False)
    np.testing.assert_array_equal(np.load(folder / "probes.npz")["adversarial"], X[:8])
    assert "images" not in [check.name for check in Record.load(folder).checks]


def test_saved_images_are_written_only_with_an_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Mock(side_effect=lambda file, *_: file.path.touch())
    monkeypatch.setattr(ImageFile, "write", lambda *args: written(*args))
    evaluated(tmp_path, [HALF, WHOLE], save="float32", corruptions=Corruptions("fog", (1, 2)))
    assert written.call_count == 3  # one to begin with


def test_a_step_size_may_be_a_tensor(tmp_path: Path) -> None:
    attack = PGD(steps=2, step_size=tf.constant(0.25))
    evaluated(tmp_path, [attack])
    assert Record.load(tmp_path).attacks[0].config["step_size"] == 0.25
    assert evaluated(tmp_path, [attack]).attacks == []


@pytest.mark.parametrize("box", [(-1.1, 1.1), (-0.4242, 2.8215), (0.0, 0.3)])
def test_a_box_may_have_ends_that_float32_rounds(box: tuple[float, float]) -> None:
    x = np.random.default_rng(0).uniform(*box, X.shape).astype(np.float32)
    evaluate(network, x, Y, Threat("linf", 0.3, box), [PGD(steps=3)], check=False, progress=False)


def test_saved_images_may_follow_another_attack(tmp_path: Path) -> None:
    evaluated(tmp_path / "run", [HALF, saved(tmp_path / "mine.npz", X, np.arange(len(X)))])
    assert len(Record.load(tmp_path / "run").attacks) == 2


def test_saved_images_that_were_moved_are_known_by_their_content(tmp_path: Path) -> None:
    first = saved(tmp_path / "mine.npz", X, np.arange(len(X)))
    evaluated(tmp_path / "run", [first, HALF])
    moved = first | {"path": str((tmp_path / "mine.npz").rename(tmp_path / "theirs.npz"))}
    assert evaluated(tmp_path / "run", [moved, HALF]).attacks == []
    saved(tmp_path / "theirs.npz", 1 - X, np.arange(len(X)))
    with pytest.raises(UserError, match="expected images of this threat"):
        evaluated(tmp_path / "run", [moved, HALF])


def test_a_table_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    rows = X.reshape(len(X), -1)

    def of_rows(x: Any) -> Any:
        return network(tf.reshape(x, [-1, *X.shape[1:]]))

    details = Details(class_names=("dark", "bright"), say=lambda line: None)
    evaluate(of_rows, rows, Y, THREAT, ["fgsm"], folder=tmp_path, details=details, check=False)
    assert [load_run(tmp_path).class_name(label) for label in (0, 1, 2)] == ["dark", "bright", "2"]


def test_a_seed_of_numpy_equals_the_same_int(tmp_path: Path) -> None:
    assert evaluated(tmp_path, [HALF], seed=np.int64(3)).attacks == ["clean", "half"]
    assert evaluated(tmp_path, [HALF], seed=3).attacks == []


@pytest.mark.parametrize("label", ["digest", "clean.npy"])
def test_a_label_cannot_be_that_of_another_array(tmp_path: Path, label: str) -> None:
    """NumPy reads the array `clean` where `clean.npy` is asked for."""
    with pytest.raises(UserError, match=f"expected labels other than .*received '{label}'"):
        evaluated(tmp_path / "new", [HALF | {"label": label}])


def test_images_in_bytes_are_rounded_towards_the_clean_ones() -> None:
    """None leaves the ball of 8/255 that it is in."""
    clean, images = (
        np.array(levels, np.float32).reshape(4, 1, 1, 1) / np.float32(255)
        for levels in ([100, 100, 100, 0], [107.65, 92.35, 108, 7.65])
    )
    assert _rounded(images, clean).ravel().tolist() == [107, 93, 108, 7]


def test_an_image_that_is_wrong_when_clean_is_not_robust_in_bytes(tmp_path: Path) -> None:
    clean, label = np.full((2, 1, 1, 1), 0.2, np.float32), np.array([0, 1])
    results = [Result("clean", np.array([True, False]), 0.0, images=clean)]
    flags = Flags(np.arange(2), label, {})
    assert ImageFile(tmp_path, "uint8", clean).write(results, flags, lambda _: label) == 0.5
