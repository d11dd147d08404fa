"""The comparison of runs: the table, significant differences, the Pareto front, the page."""

from __future__ import annotations

import csv
import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import command_line
from pipelines.comparison import compare
from tests.unit.test_report import change, make_run
from tfrobust.corruptions import CORRUPTIONS
from tfrobust.errors import UserError
from tfrobust.flags import Flags, digests
from tfrobust.report import (
    Row,
    comparison,
    differences,
    read_runs,
    rows_of,
    write_comparison,
    write_report,
)
from tfrobust.report.compare import difference, flat
from tfrobust.report.compare_figures import over_eps, over_time, scatter, sweeps
from tfrobust.report.requirements import at_most_minutes
from tfrobust.report.summary import pareto
from tfrobust.report.text import NOTHING


def saved_run(path: Path, clean: int, attacked: int, **config: Any) -> Path:
    """Make a run on 10 images and return its folder.

    Args:
        path: The folder.
        clean: How many images are right without an attack; these are the first ones.
        attacked: How many are right under PGD-20.
        config: Settings of `make_run`.
    """
    run = make_run(path, **config)
    row = {"name": "PGD-20", "examples": 10, "robust_accuracy": attacked / 10}
    change(run, clean_accuracy=clean / 10, robust_accuracy=attacked / 10, attacks=[row])
    flags = {"clean": np.arange(10) < clean, "PGD-20": np.arange(10) < attacked}
    images = np.random.default_rng(0).random((10, 2, 2, 1), np.float32)
    labels = np.zeros(10, int)
    Flags(np.arange(10), labels, flags, digests(images, labels)).save(run)
    return run


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(saved_run(tmp_path / name, 8, 4)) for name in "ab"]
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as exited:
        command_line._compare(runs, Namespace(out=file))
    line = capsys.readouterr().err
    assert exited.value.code == 2 and line.count("\n") == 1
    assert line.startswith(f"error: {file}") and "expected a place to read or write: " in line


def test_table_has_a_row_for_each_label_with_mean_and_deviation(tmp_path: Path) -> None:
    rows = [
        Row("a", saved_run(tmp_path / "a0", 8, 4)),
        Row("a", saved_run(tmp_path / "a1", 9, 6, seed=1)),
        Row("b", saved_run(tmp_path / "b", 10, 3, paper=None)),
        Row("c", tmp_path / "c", reason="no such luck"),
    ]
    runs = read_runs(rows)
    table = comparison(runs)
    assert [title.split("\n")[0] for title in table.header] == [
        "method", "seeds", "clean", "PGD-20", "worst case", "time per batch", "training time",
        "epochs",
    ]  # fmt: skip
    first, second = table.rows
    # The deviation of 0.8 and 0.9 is 0.0707, of 0.4 and 0.6 0.1414; the paper has 0.9947 and 0.5.
    assert first[:3] == ["a", "0, 1", "85.0 ± 7.1 %\npaper 99.5 %, -14.5"]
    assert first[3] == "50.0 ± 14.1 %\npaper 50.0 %, +0.0" and first[5:] == [
        "42.0 ms",
        NOTHING,
        "4",
    ]
    assert second[:4] == ["b", "0", "100.0 %", "30.0 %"]
    assert table.bold == {(1, 2), (0, 3), (0, 4)}  # the best of each column

    lines = list(csv.DictReader(flat(runs).csv().splitlines()))
    assert list(lines[0]) == ["method", "seed", "examples", "clean", "PGD-20"]
    assert [line["method"] for line in lines] == ["a", "a", "b"]
    assert lines[1] == {
        "method": "a", "seed": "1", "examples": "10", "clean": "0.9", "PGD-20": "0.6",
    }  # fmt: skip


def test_mean_over_all_corruptions_is_a_column(tmp_path: Path) -> None:
    """A mean over fewer corruptions is in a column of its own."""
    runs = [saved_run(tmp_path / name, 8, 4) for name in "abc"]
    for run, accuracy, names in zip(
        runs, (0.5, 0.7, 0.9), [CORRUPTIONS, CORRUPTIONS, ["fog"]], strict=True
    ):
        rows = [{"name": name, "accuracy": [accuracy] * 5} for name in names]
        table = {"accuracy": accuracy, "examples": 10, "severities": [1, 2, 3, 4, 5]}
        change(run, corruptions=table | {"rows": rows})
    table = comparison(read_runs(rows_of(runs)))
    titles = [title.split("\n")[0] for title in table.header]
    full = titles.index("corruptions")
    one = titles.index("corruptions fog at severity 1, 2, 3, 4, 5")
    assert [row[full] for row in table.rows] == ["50.0 %", "70.0 %", NOTHING]
    assert [row[one] for row in table.rows] == [NOTHING, NOTHING, "90.0 %"]
    assert (1, full) in table.bold and (0, full) not in table.bold


def test_mcnemar_test_by_hand() -> None:
    first, second = np.zeros(20, bool), np.zeros(20, bool)
    first[:10], second[10:12] = True, True
    result = difference(first, second)
    assert (result.n, result.gained, result.lost, result.points) == (20, 10, 2, 0.4)
    # Twice the chance of at most 2 heads in 12 throws: 2 (1 + 12 + 66) / 4096.
    assert result.p == pytest.approx(158 / 4096) and result.beyond_chance
    assert difference(first, first).p == 1.0


def test_differences_count_the_images_that_both_runs_attacked(tmp_path: Path) -> None:
    one, other = saved_run(tmp_path / "one", 10, 9), saved_run(tmp_path / "other", 10, 1)
    with np.load(other / "flags.npz") as file:
        arrays = dict(file)
    arrays["PGD-20"] = arrays["PGD-20"][:8]
    np.savez(other / "flags.npz", **arrays)
    row = {"name": "PGD-20", "examples": 8, "robust_accuracy": 1 / 8}
    change(other, attacks=[row], robust_accuracy=1 / 8, worst_case_examples=8)
    table = differences(read_runs(rows_of([one, other])))
    # Of 8 images, 7 are right in the first run alone and none in the other alone: p is 2 / 2^7.
    assert table.rows == [["one − other", "+0.0 (p = 1.000, n=10)", "+87.5 (p = 0.016, n=8)"]]
    assert table.bold == {(0, 2)}


def test_differences_are_refused_on_other_images_or_labels(tmp_path: Path) -> None:
    """Other labels, pixels or orders are refused, and unknown images; fewer images are not."""
    one, other = saved_run(tmp_path / "one", 10, 9), saved_run(tmp_path / "other", 10, 1)
    flags, images = Flags.load(other), np.random.default_rng(0).random((10, 2, 2, 1), np.float32)
    rows = read_runs(rows_of([one, other]))
    brighter = images.copy()
    brighter[0] += 1
    for digest in (
        digests(images, flags.label + 1),
        flags.digest[::-1],
        digests(brighter, flags.label),
    ):
        dataclasses.replace(flags, digest=digest).save(other)
        with pytest.raises(UserError, match="one, other: expected the same test images in the"):
            differences(read_runs(rows_of([one, other])))
        page = write_comparison(tmp_path / "page", "x", rows_of([one, other]), {})
        assert not (page.parent / "tables" / "differences.csv").exists()
        assert not comparison(read_runs(rows_of([one, other]))).bold
    dataclasses.replace(flags, digest=None).save(other)
    with pytest.raises(UserError, match="other: expected digests of its test images"):
        differences(read_runs(rows_of([one, other])))
    fewer = {name: right[:4] for name, right in rows[1].flags.right.items()}
    Flags(flags.index[:4], flags.label[:4], fewer, flags.digest[:4]).save(other)
    row = {"name": "PGD-20", "examples": 4, "robust_accuracy": 1 / 4}
    change(other, examples=4, worst_case_examples=4, robust_accuracy=1 / 4, attacks=[row])
    assert "n=4" in differences(read_runs(rows_of([one, other]))).rows[0][1]


def test_runs_are_compared_by_images_and_attack_settings_not_by_names(tmp_path: Path) -> None:
    """The name of the data may differ; an attack of the same name and other settings may not."""
    one, other = saved_run(tmp_path / "one", 10, 9), saved_run(tmp_path / "other", 10, 1)
    change(other, data={"name": "copied", "split": "test"})
    assert differences(read_runs(rows_of([one, other]))).rows[0][2].startswith("+80.0")
    row = {"name": "PGD-20", "examples": 10, "robust_accuracy": 0.1, "config": {"steps": 1}}
    change(other, attacks=[row])
    assert differences(read_runs(rows_of([one, other]))).rows[0][2] == NOTHING


def test_an_attack_is_shared_if_its_files_have_the_same_content(tmp_path: Path) -> None:
    """The surrogate may lie elsewhere, and another may lie at the same place."""
    one, other = saved_run(tmp_path / "one", 10, 9), saved_run(tmp_path / "other", 10, 1)
    row = {"name": "PGD-20", "examples": 10, "config": {"name": "transfer", "source": "a"}}

    def shared(**changes: Any) -> str:
        change(one, attacks=[row | {"robust_accuracy": 0.9, "files": ["12"]}])
        change(other, attacks=[row | {"robust_accuracy": 0.1, "files": ["12"]} | changes])
        return differences(read_runs(rows_of([one, other]))).rows[0][2]

    assert shared(config={"name": "transfer", "source": "b"}).startswith("+80.0")
    assert shared(files=["34"]) == NOTHING
    assert not comparison(read_runs(rows_of([one, other]))).bold & {(0, 3), (0, 4)}
    assert shared(files=[]) == NOTHING  # of a record that has no digests


def test_attacks_of_a_cascade_are_shared_up_to_the_first_that_differs(tmp_path: Path) -> None:
    """An attack alone in one cascade has a part in the flags of those after it."""
    one, other = saved_run(tmp_path / "one", 10, 9), saved_run(tmp_path / "other", 10, 9)

    def cascade(run: Path, names: str, right: int) -> None:
        rows = [{"name": n, "examples": 10, "robust_accuracy": right / 10} for n in names]
        change(run, attacks=rows, mode="cascade", robust_accuracy=right / 10)

    for run, attacks, right in ((one, "pn", 3), (other, "n", 9)):
        flags = Flags.load(run)
        cascade(run, attacks, right)
        names = ["clean", *attacks]
        arrays = {name: np.arange(10) < (10 if name == "clean" else right) for name in names}
        dataclasses.replace(flags, right=arrays).save(run)

    def shared() -> str:
        return differences(read_runs(rows_of([one, other]))).rows[0][2]

    assert shared() == NOTHING
    for run in (one, other):
        change(run, mode="each")
    assert shared().startswith("-60.0")
    change(one, mode="cascade")
    cascade(other, "np", 9)
    flags = Flags.load(other)
    dataclasses.replace(flags, right=flags.right | {"p": flags.right["n"]}).save(other)
    assert shared().startswith("-60.0")  # the same attacks in another order


def test_run_without_a_history_has_no_epochs_in_the_table(tmp_path: Path) -> None:
    runs = [saved_run(tmp_path / name, 8, 4) for name in ("mine", "theirs")]
    (runs[1] / "history.csv").unlink()
    rows = comparison(read_runs(rows_of(runs))).rows
    assert [row[-3:] for row in rows] == [["42.0 ms", NOTHING, "4"], [NOTHING] * 3]


def test_a_run_that_missed_a_requirement_is_marked_and_never_the_best(tmp_path: Path) -> None:
    require = {"training_minutes": 60}
    late, other = saved_run(tmp_path / "late", 10, 9, require=require), tmp_path / "other"
    change(late, requirements=[at_most_minutes(3601.0, 60).model_dump()])
    table = comparison(read_runs(rows_of([late, saved_run(other, 8, 4)])))
    assert [row[0] for row in table.rows] == ["late †", "other"]
    assert table.bold == {(1, 2), (1, 3), (1, 4)}
    page = write_comparison(tmp_path / "out", "mine", rows_of([late, other]), {}).read_text()
    assert "late missed training_minutes: 60.02 minutes of training" in page


def test_accuracy_over_the_time_of_training_is_drawn_for_runs_that_have_a_clock(
    tmp_path: Path,
) -> None:
    folders = [saved_run(tmp_path / name, 8, 4) for name in "ab"]
    assert over_time(read_runs(rows_of(folders))) == {}
    for folder, seconds in zip(folders, (60, 90), strict=True):
        path = folder / "history.csv"
        head, *rows = path.read_text().splitlines()
        rows = [f"{row},{seconds * (place + 1)}" for place, row in enumerate(rows)]
        path.write_text("\n".join([f"{head},training_seconds", *rows]))
    runs = read_runs(rows_of(folders))
    assert comparison(runs).rows[1][-2] == "6 min 00 s"
    (axes,) = over_time(runs)["robust-accuracy-over-time"].axes
    first, second = axes.lines
    assert first.get_xdata().tolist() == [1, 2, 3, 4]
    assert second.get_xdata().tolist() == [1.5, 3, 4.5, 6]
    assert first.get_ydata().tolist() == [0.5, 0.8, 0.25, 0.2]
    page = write_comparison(tmp_path / "out", "mine", rows_of(folders), {})
    assert (page.parent / "figures" / "robust-accuracy-over-time.svg").is_file()


def test_seeds_measured_at_different_eps_are_averaged_where_they_share_it(tmp_path: Path) -> None:
    curves = {"a": [(0.0, 0.9), (0.1, 0.5)], "b": [(0.0, 0.7), (0.1, 0.3), (0.2, 0.1)]}
    for name, curve in (curves | {"other": curves["b"]}).items():
        rows = [{"eps": eps, "robust_accuracy": share, "examples": 10} for eps, share in curve]
        change(saved_run(tmp_path / name, 10, 5), eps_curve=rows)
    runs = [Row("same", tmp_path / name) for name in curves] + [Row("other", tmp_path / "other")]
    (axes,) = over_eps(read_runs(runs))["eps"].axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert points["same"] == [[0.0, pytest.approx(0.8)], [0.1, pytest.approx(0.4)]]
    assert points["other"] == [list(point) for point in curves["b"]]


def test_accuracy_is_drawn_over_fractions_and_small_numbers(tmp_path: Path) -> None:
    rows = []
    for place, (eps, alpha) in enumerate([("2/255", 1e-6), ("8/255", 1e-6), ("2/255", 1.0)]):
        varied = {"train.eps": eps, "method.alpha": alpha}
        label = f"adv eps={eps} alpha={alpha:.1e}".replace("1.0e+00", "1.0")
        rows.append(Row(label, saved_run(tmp_path / str(place), 10, 5 + place), varied=varied))
    figures = sweeps(read_runs(rows))
    assert list(figures) == ["over-train.eps", "over-method.alpha"]
    lines = {
        line.get_label(): line.get_xdata().tolist()
        for line in figures["over-train.eps"].axes[0].lines
    }
    ends = [pytest.approx(2 / 255), pytest.approx(8 / 255)]
    assert lines["adv alpha=1.0e-06 clean"] == ends and lines["adv alpha=1.0 clean"] == ends[:1]


def test_more_than_ten_labels_are_told_apart(tmp_path: Path) -> None:
    names = [f"run{place}" for place in range(12)]
    runs = read_runs([Row(name, saved_run(tmp_path / name, 10, 5)) for name in names])
    lines = scatter(runs)["trade-off"].axes[0].lines
    marks = {line.get_label(): (line.get_color(), line.get_marker()) for line in lines}
    assert len({marks[name] for name in names}) == 12


def test_runs_that_cannot_be_compared_are_one_line(tmp_path: Path) -> None:
    one = saved_run(tmp_path / "one", 10, 9)
    other = saved_run(tmp_path / "other", 10, 1, threat={"norm": "l2", "eps": 1.0})
    with pytest.raises(UserError, match="one, other: expected the same threat"):
        differences(read_runs(rows_of([one, other])))
    with pytest.raises(UserError, match="expected different runs"):
        rows_of([one, tmp_path / "x" / ".." / "one"])
    with pytest.raises(UserError, match=r"the folder of a run, received a file \(did you mean '"):
        rows_of([one / "eval.json", other])
    with pytest.raises(UserError, match=r"eval\.json: expected the result of the stage"):
        read_runs(rows_of([one, tmp_path / "none"]))
    with pytest.raises(UserError, match=r"no such file \(did you mean 'other'\?\)"):
        read_runs(rows_of([one, tmp_path / "othr"]))
    with pytest.raises(UserError, match=r"^--out: expected a folder that is not a run's"):
        compare([one, other], out=one)
    for name in ("table.csv", "report/index.html"):  # of the user, and of a suite
        theirs = tmp_path / name[:5] / name
        theirs.parent.mkdir(parents=True)
        theirs.write_text("<title>mine</title>")
        with pytest.raises(UserError, match=f"--out: expected a folder without a {name} of some"):
            compare([one, other], out=tmp_path / name[:5])
    for key in ("clean_accuracy", "robust_accuracy"):  # edited by hand
        edited = saved_run(tmp_path / key, 10, 9)
        change(edited, schema_version=1, **{key: 0.5})
        with pytest.raises(UserError, match=r"eval\.json: .* as flags\.npz has it, received 50"):
            read_runs(rows_of([edited]))
    (one / "flags.npz").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=r"flags\.npz: expected a readable file"):
        read_runs(rows_of([one]))


def test_pareto_front_by_hand() -> None:
    assert pareto([(0.9, 0.5), (0.8, 0.6), (0.85, 0.4), (0.9, 0.4), (0.8, 0.6)]) == [0, 1, 4]


def test_page_of_a_comparison(tmp_path: Path) -> None:
    rows = [
        Row("a", saved_run(tmp_path / "a", 8, 4), {"method.beta": 1.0}),
        Row("$b$ <i>", saved_run(tmp_path / "b", 10, 3), {"method.beta": 2.0}),
        Row("c", tmp_path / "c", reason="out of <luck>"),
    ]
    page = write_comparison(tmp_path / "out", "mine", rows, {"budget": "small"})
    html = page.read_text()
    assert "2 of 3 runs finished" in html and "c failed: out of &lt;luck&gt;" in html
    assert "$b$ &lt;i&gt;" in html and "<i>" not in html
    assert "a: Catastrophic overfitting at epoch 3: " in html
    ids = [part.split('"')[0] for part in html.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    figures = sorted(path.stem for path in (page.parent / "figures").iterdir())
    training = ["clean-accuracy", "jacobian", "loss", "over-method.beta", "robust-accuracy"]
    assert figures == sorted([*training, "classes", "trade-off"])
    assert "The pages of the runs" not in html
    write_report(tmp_path / "a")
    html = write_comparison(tmp_path / "out", "mine", rows, {"budget": "small"}).read_text()
    assert '<a href="../../a/report/index.html">a</a>' in html
    assert (tmp_path / "out" / "table.csv").read_text().startswith("method,seed,examples,clean,")
    assert "\\textbf{100.0 \\%" in (page.parent / "tables" / "comparison.tex").read_text()
    again = write_comparison(tmp_path / "out", "mine", rows, {"budget": "small"})
    assert again.read_text() == html


def test_runs_under_different_threats_have_no_best_and_no_common_plot(tmp_path: Path) -> None:
    far = {"norm": "linf", "eps": 0.3}
    other = saved_run(tmp_path / "b", 10, 3, threat=far)
    rows = [Row("a", saved_run(tmp_path / "a", 8, 4)), Row("b", other)]
    for row, eps in zip(rows, (0.15, 0.3), strict=True):
        curve = [{"eps": e, "robust_accuracy": 0.5, "examples": 10} for e in (0.0, eps)]
        change(row.folder, eps_curve=curve)
    assert comparison(read_runs(rows)).bold == set()
    page = write_comparison(tmp_path / "out", "mine", rows, {})
    figures = {path.stem for path in (page.parent / "figures").iterdir()}
    assert "eps" in figures and not {"trade-off", "classes"} & figures
    assert "differ in their data or threat" in page.read_text()
