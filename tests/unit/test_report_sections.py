"""Sections that only some reports have: curves, classes, training images, and the loss."""

from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_compare import saved_run
from tests.unit.test_report import change, make_run
from tfrobust.errors import UserError
from tfrobust.record import ExportRow, ExportTable, Record
from tfrobust.report import load_run, read_runs, write_report
from tfrobust.report.before_after import before_after_table
from tfrobust.report.compare import Row
from tfrobust.report.evaluation_figures import class_bars
from tfrobust.report.summary import (
    ClassRow,
    accuracy_rows,
    class_rows,
    missing_from_paper,
    overfitting,
)


def test_the_report_of_a_once_for_all_network_has_its_trade_off(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "Trade-off" not in write_report(run).read_text()
    rows = [(1.0, 0.9, 0.6), (0.2, 0.95, 0.5)]
    keys = ("lambda", "clean_accuracy", "robust_accuracy")
    curve = [dict(zip(keys, row, strict=True)) for row in rows]
    change(run, curve=curve)
    page = write_report(run)
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    assert html.count("<svg") == 7
    assert "<th scope=row>0.2</th><td>95.0 %</td><td>50.0 %</td>" in html
    assert "| 1 | 90.0 % | 60.0 % |" in markdown
    of_width_1, of_width_half = ([{"width": width} | row for row in curve] for width in (1, 0.5))
    change(run, curve=of_width_1 + of_width_half)
    html = write_report(run).read_text()
    assert "<th scope=row>0.5</th><td>0.2</td><td>95.0 %</td><td>50.0 %</td>" in html
    assert "One network at several values of width and lambda" in html and ">width 0.5<" in html
    change(run, curve=[{"lambda": 2.0, "clean_accuracy": 0.9, "robust_accuracy": 0.6}])
    with pytest.raises(ValueError, match=r"eval\.json.*curve\.0\.lambda: 2\.0"):
        load_run(run)


def test_the_report_plots_robust_accuracy_against_eps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "against eps" not in write_report(run).read_text()
    rows = [
        {"eps": eps, "robust_accuracy": accuracy, "examples": 10}
        for eps, accuracy in ((0.0, 0.9), (0.15, 0.8), (0.3, 0.2))
    ]
    change(run, eps_curve=rows)
    page = write_report(run)
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    assert html.count("<svg") == 7 and 'id="eps-curve-' in html
    assert "at rising eps, on 10 of the test images: an upper bound" in html
    assert "| 0.15 | 80.0 % | 49.0 to 94.3 |" in markdown  # as in test_interval_is_that_of_wilson
    change(run, eps_curve=[rows[0] | {"robust_accuracy": 1.2}])
    with pytest.raises(ValueError, match=r"eval\.json.*eps_curve\.0\.robust_accuracy: 1\.2"):
        load_run(run)


def test_the_report_has_the_accuracy_under_corruptions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "Corruptions" not in write_report(run).read_text()
    table = {
        "accuracy": 0.625,
        "examples": 10,
        "severities": [1, 5],
        "rows": [
            {"name": "glass_blur", "accuracy": [0.8, 0.4], "seconds": 2.0},
            {"name": "fog", "accuracy": [0.9, 0.4], "seconds": 1.0},
        ],
    }
    change(run, corruptions=table)
    record = load_run(run)
    (name,) = (row.name for row in accuracy_rows(record.config, record.evaluation)[1:2])
    assert missing_from_paper({"paper": {name: 0.8, "fog": 0.7}}, record.evaluation) == {"fog": 0.7}
    page = write_report(run)
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    assert html.count("<svg") == 7 and 'id="corruptions-' in html and ">glass blur<" in html
    assert ">80<" in html and "first 10 images after common corruptions" in html
    assert "| glass blur | 80.0 % | 40.0 % | 60.0 % |" in markdown
    assert "| mean | 85.0 % | 40.0 % | 62.5 % |" in markdown
    rows = accuracy_rows({}, load_run(run).evaluation)
    names = [row.name for row in rows]
    assert names[:2] == ["clean", "corruptions glass_blur, fog at severity 1, 5"]
    assert (rows[1].accuracy, rows[1].examples, rows[1].seconds) == (0.625, 10, 3.0)

    change(run, corruptions=table | {"accuracy": None, "pending": ["snow"]})
    assert "Not measured yet: snow." in write_report(run).read_text()
    assert [r.name for r in accuracy_rows({}, load_run(run).evaluation)] == names[:1] + names[2:]
    change(run, corruptions=table | {"accuracy": 62.5})
    with pytest.raises(ValueError, match=r"eval\.json.*corruptions\.accuracy: 62\.5"):
        load_run(run)


def test_the_report_draws_the_landscape_of_the_loss(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    axis = np.linspace(-1.5, 1.5, 7)
    landscape = {
        "axis": axis,
        "loss": np.stack([axis[:, None] + axis, np.full((7, 7), np.inf)]),
        "margin": np.stack([axis[:, None] - axis, np.ones((7, 7))]),
        "index": np.array([4, 17]),
        "label": np.array([1, 5]),
        "stands": np.array([True, False]),
    }
    np.savez(run / "landscape.npz", **landscape)
    html = write_report(run).read_text()
    assert html.count("<svg") == 8 and 'id="landscape-1-' in html
    assert "#4: one &amp; two, stands" in html and "#17: 5, broken" in html
    np.savez(run / "landscape.npz", **landscape | {"margin": np.zeros((2, 7, 6))})
    with pytest.raises(ValueError, match=r"landscape\.npz: expected a readable file, .* margin of"):
        load_run(run)


def test_the_report_warns_of_catastrophic_overfitting(tmp_path: Path) -> None:
    """In epochs 2 and 3 robust accuracy is low, but accuracy under FGSM is not."""
    run = make_run(tmp_path / "run")
    page = write_report(run)
    line = (
        "Catastrophic overfitting at epoch 3: on validation data robust accuracy fell from 80.0 % "
        "to 20.0 % while FGSM accuracy was 90.0 %. The weights kept are those of epoch 1."
    )
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    assert f'<p class="warning">{line}</p>' in html and f"**{line}**" in markdown
    assert "overfitting</text>" in html
    history = load_run(run).history
    warning = overfitting([*history, history[3] | {"epoch": 4}], {})
    assert warning.startswith("Catastrophic overfitting at epoch 3 and 1 more: ")
    (run / "history.csv").write_text(
        "epoch,val_robust_accuracy,val_fgsm_accuracy\n0,0.5,0.6\n1,0.45,0.9\n2,0.2,0.25\n3,0.2,0.25\n"
    )
    html = write_report(run).read_text()
    assert "Catastrophic overfitting" not in html and "overfitting</text>" not in html


FLAGS = {
    "index": np.arange(6),
    "label": np.array([0, 0, 1, 1, 1, 0]),
    "clean": np.array([1, 1, 1, 0, 1, 1], bool),
    "PGD-20": np.array([1, 0, 1, 0, 1], bool),
    "Square": np.array([1, 0, 0, 0, 1], bool),
}


def save_flags(run: Path, flags: dict[str, np.ndarray]) -> None:
    """Write flags.npz, and the accuracies and numbers of images of these flags to eval.json."""
    np.savez(run / "flags.npz", **flags)
    rows = [row.model_dump(exclude_unset=True) for row in Record.load(run).attacks]
    for row in rows:
        if row["name"] in flags:
            right = flags[row["name"]]
            row |= {"robust_accuracy": right.mean(), "examples": len(right)}
    clean = flags["clean"]
    change(run, clean_accuracy=clean.mean(), examples=len(clean), attacks=rows)


def test_the_report_has_the_accuracy_of_each_class(tmp_path: Path) -> None:
    """Of the five attacked images, 0 and 4 are still right."""
    run = make_run(tmp_path / "run")
    assert class_rows(load_run(run)) == []
    save_flags(run, FLAGS)
    assert class_rows(load_run(run)) == [
        ClassRow("zero", 3, 1.0, 2, 0.5),
        ClassRow("one & two", 3, pytest.approx(2 / 3), 3, pytest.approx(1 / 3)),
    ]
    page = write_report(run)
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    assert html.count("<svg") == 7 and "one &amp; two</th><td>3</td><td>66.7 %</td>" in html
    assert "| zero | 3 | 100.0 % | 50.0 % | 2 |" in markdown
    six = np.array([1, 0, 0, 0, 1, 1], bool)
    flags = FLAGS | {"PGD-20": six, "Square": six}
    save_flags(run, flags)
    write_report(run)
    assert "attacked" not in (page.parent / "tables/classes.csv").read_text()
    save_flags(run, {k: v for k, v in FLAGS.items() if k != "Square"})
    assert class_rows(load_run(run)) == []  # the flags of an attack are missing
    np.savez(run / "flags.npz", **FLAGS | {"clean": np.ones(5, bool)})
    with pytest.raises(ValueError, match=r"flags\.npz: expected .* clean of shape \(5,\)"):
        load_run(run)


def test_the_figure_of_many_classes_shows_the_least_robust() -> None:
    rows = [ClassRow(f"c{n}", 4, 1.0, 4, n / 100) for n in range(30)]
    labels = [text.get_text() for text in class_bars(rows).axes[0].get_yticklabels()]
    assert labels == [f"c{n}" for n in range(20)]


def test_the_report_shows_the_radii_of_training_images(tmp_path: Path) -> None:
    """It has their spread over the epochs, their histogram and the images of extreme radii."""
    run = make_run(tmp_path / "run")
    quantiles = ",".join(f"radius_q{share:02d}" for share in (5, 25, 50, 75, 95))
    (run / "history.csv").write_text(
        f"epoch,loss,{quantiles}\n0,1,.1,.1,.1,.1,.1\n1,1,0,.1,.2,.3,.4\n"
    )
    arrays = {
        "name": np.array("radius"),
        "image": np.random.default_rng(0).random((4, 8, 8, 1), np.float32),
        "label": np.array([0, 1, 0, 1]),
        "value": np.array([0.0, 0.0123, 0.3, 0.4], np.float32),
        "values": np.linspace(0, 0.4, 20, dtype=np.float32),
    }
    np.savez(run / "extremes.npz", **arrays)
    html = write_report(run).read_text()
    assert "The radius of each training image" in html
    assert html.count('alt="training image"') == 4 and "one &amp; two<br>0.0123" in html
    assert html.count("<svg") == 3 and 'id="spread-' in html and 'id="histogram-' in html
    np.savez(run / "extremes.npz", **arrays | {"label": np.zeros(3, int)})
    with pytest.raises(ValueError, match=r"extremes\.npz: expected a readable file"):
        load_run(run)


def test_the_report_draws_the_valley_of_the_loss(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    losses = {"clean": [0.5, 0.1], "highest": [1.5, 0.9], "lowest": [0.0, 0.02]}
    np.savez(run / "valley.npz", **{key: np.array(part) for key, part in losses.items()})
    html = write_report(run).read_text()
    assert html.count("<svg") == 7 and 'id="valley-' in html
    assert "Mean cross entropy of 2 images: 0.3 at the images, 1.2 at the highest" in html
    np.savez(run / "valley.npz", clean=np.zeros(2), highest=np.zeros(2), lowest=np.zeros(3))
    with pytest.raises(ValueError, match=r"valley\.npz: expected a readable file"):
        load_run(run)


def test_a_run_whose_files_a_spreadsheet_or_an_editor_saved_is_read(tmp_path: Path) -> None:
    """They put a byte order mark in front of a file in UTF-8."""
    run = make_run(tmp_path / "run")
    before = load_run(run)
    row = ExportRow(
        name="network",
        file="model.keras",
        runtime="tensorflow",
        examples=4,
        largest_difference=0.0,
        equal_predictions=1.0,
        clean_accuracy=1.0,
    )
    ExportTable(rows=[row]).save(run / "exports.json")
    for name in ("history.csv", "eval.json", "config.yaml", "exports.json"):
        (run / name).write_text((run / name).read_text(), encoding="utf-8-sig")
    assert load_run(run).history == before.history and load_run(run).config == before.config
    assert load_run(run).measured_exports == [row]


def test_times_that_are_no_numbers_are_left_out_of_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    header = "epoch,loss,training_seconds,seconds_per_batch\n"
    (run / "history.csv").write_text(header + "0,nan,nan,nan\n1,inf,inf,inf\n")
    assert "training time" not in write_report(run).read_text().lower()
    (run / "history.csv").write_text(header + "nan,1.0,1.0,1.0\n")
    with pytest.raises(UserError, match=r"history\.csv: .* row 1 without an epoch; remove it"):
        load_run(run)
    (run / "history.csv").unlink()
    make_run(tmp_path / "other", seed="zero")
    with pytest.raises(UserError, match=r"config\.yaml: .* seed: 'zero' where an int was expected"):
        load_run(tmp_path / "other")


def test_points_of_a_training_are_those_after_minus_those_before(tmp_path: Path) -> None:
    folders = [saved_run(tmp_path / name, *right) for name, right in (("b", (9, 2)), ("a", (8, 6)))]
    before, after = read_runs([Row(folder.name, folder) for folder in folders])
    clean, worst = before_after_table(before, after).rows
    assert clean[1:4] == ["90.0 %", "80.0 %", "-10.0"]
    assert worst[1:4] == ["20.0 %", "60.0 %", "+40.0"]
