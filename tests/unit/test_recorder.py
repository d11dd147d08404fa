"""An evaluation in an existing folder.

One that is refused changes nothing, and no file disagrees with the record. The network is that of
test_evaluation.py: one pixel t, class 1 where t > 0.5.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.test_evaluation import X, Y, network
from tests.unit.test_record import HALF, NOISY, THREAT, WHOLE, evaluated
from tfrobust.errors import UserError
from tfrobust.evaluation import Details, Flags, Record, cascade, evaluate

SHIFTED = lambda images: network(images) + [0.0, 0.1]  # noqa: E731


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def saved(path: Path, images: Any, index: Any) -> dict[str, str]:
    np.savez(path, image=images, index=index)
    return {"name": "saved_images", "path": str(path)}


def test_an_evaluation_that_is_refused_late_leaves_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    evaluated(folder, [HALF])
    before = files(folder)
    few = saved(tmp_path / "few.npz", X[:1], [0])
    far = saved(tmp_path / "far.npz", 1 - X, np.arange(len(X)))
    for change, message in (
        ({"mode": "all"}, "^mode: expected one of cascade, each"),
        ({"attacks": [few]}, "^path: expected an image for each of"),
        ({"attacks": [far]}, "^path: expected images of this threat, received .*: made images at"),
        ({"seed": 0.5}, "^seed: expected int, received 0.5"),
        ({"details": Details(index=np.arange(1))}, r"^details.index: expected a place for"),
        ({"images": True}, "^images: expected False with a folder"),
    ):
        options: dict[str, Any] = {"attacks": [HALF], "folder": folder, "progress": False} | change
        with pytest.raises(UserError, match=message):
            evaluate(SHIFTED, X, Y, THREAT, **options)
        assert files(folder) == before


def test_a_place_that_is_no_folder_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="^folder: expected a folder that can be written to"):
            evaluated(place, [HALF])
    assert files(tmp_path) == {"file": b"mine"}


def test_one_evaluation_at_a_time_works_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation is refused while another uses the folder.

    It is also refused if results appeared after it had begun.
    """
    rows: list[str] = []

    def second(line: str) -> None:
        if line.startswith("clean"):
            with pytest.raises(UserError, match="^folder: expected a folder that no other eval"):
                evaluated(tmp_path, [WHOLE], SHIFTED)
        rows.append(line)

    details = Details(say=second)
    evaluate(network, X, Y, THREAT, [HALF], check=False, folder=tmp_path, details=details)
    assert [line.partition(":")[0] for line in rows] == ["clean", "half"]
    assert [row.name for row in Record.load(tmp_path).attacks] == ["half"]

    late, clean = tmp_path / "late", cascade._clean

    def another_first(*args: Any) -> Any:
        monkeypatch.setattr(cascade, "_clean", clean)
        evaluated(late, [HALF])
        return clean(*args)

    monkeypatch.setattr(cascade, "_clean", another_first)
    with pytest.raises(UserError, match="no other evaluation has written to meanwhile"):
        evaluated(late, [WHOLE])
    assert [row.name for row in Record.load(late).attacks] == ["half"]


def test_saved_images_are_those_of_the_attacks_of_the_record(tmp_path: Path) -> None:
    """No images stay of attacks that are no longer in the list.

    None stay either where more attacks ran without saving.
    """
    evaluated(tmp_path, [HALF, WHOLE], save="float32")
    evaluated(tmp_path, [HALF, NOISY], save="float32")
    fresh = tmp_path / "fresh"
    evaluated(fresh, [HALF, NOISY], save="float32")
    with np.load(tmp_path / "adversarial.npz") as now, np.load(fresh / "adversarial.npz") as right:
        np.testing.assert_array_equal(now["image"], right["image"])

    grid = np.float32(np.rint(255 * X) / 255)
    more = tmp_path / "more"
    evaluated(more, [HALF], x=grid, save="uint8")
    assert Record.load(more).rounded_robust_accuracy is not None
    before = (more / "adversarial.npz").read_bytes()
    assert evaluated(more, [HALF, WHOLE], x=grid).attacks == ["whole"]
    assert Record.load(more).rounded_robust_accuracy is None
    assert (more / "evaluation.1" / "adversarial.npz").read_bytes() == before
    assert not (more / "adversarial.npz").exists()


def test_flags_that_are_not_those_of_the_row_are_not_taken_up(tmp_path: Path) -> None:
    """Flags and row disagree, as after a kill while labels were exchanged."""
    evaluated(tmp_path, [HALF, WHOLE])
    flags, row = Flags.load(tmp_path), Record.load(tmp_path).attacks[1]
    wrong = dataclasses.replace(flags, right={**flags.right, "whole": flags.right["clean"]})
    wrong.save(tmp_path)
    assert evaluated(tmp_path, [HALF, WHOLE]).attacks == ["whole"]
    assert Record.load(tmp_path).attacks[1].robust_accuracy == row.robust_accuracy


@pytest.mark.usefixtures("short_closing")
def test_a_curve_is_of_the_points_that_are_asked_for(tmp_path: Path) -> None:
    def points(*values: float) -> list[float]:
        curve = [({"lambda": value}, network) for value in values]
        details = Details(curve=curve, say=lambda line: None)
        evaluate(network, X, Y, THREAT, [HALF], progress=False, folder=tmp_path, details=details)
        return [row.strength for row in Record.load(tmp_path).curve]

    assert points(1.0, 0.5) == [1.0, 0.5]
    assert points(1.0, 0.5, 0.0) == [1.0, 0.5, 0.0]
    assert points(1.0) == [1.0]
    assert points() == []


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    assert evaluated(tmp_path, [HALF], seed=np.int64(3)).attacks == ["clean", "half"]
    assert evaluated(tmp_path, [HALF], seed=3).attacks == []


def test_the_name_of_the_digests_is_no_label(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected labels other than .*digest"):
        evaluated(tmp_path / "new", [HALF | {"label": "digest"}])
