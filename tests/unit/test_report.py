"""The report: its numbers, escaping, missing and damaged files, and a page of one file."""

import csv
import json
import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tfrobust.evaluation import Record
from tfrobust.record import AttackRow
from tfrobust.report import (
    NOTHING,
    accuracy_rows,
    attack_settings,
    best_epoch,
    headline,
    interval,
    load_run,
    summarise_training,
    write_report,
)
from tfrobust.report.summary import attack_cost, how_counted

PGD = {"name": "pgd", "steps": 20, "step_size": 2 / 255, "restarts": 1, "loss": "ce"}


def make_run(run: Path, channels: int = 1, **changes: Any) -> Path:
    """Write a small finished run; `changes` replace keys of the config."""
    run.mkdir(parents=True)
    config: dict[str, Any] = {
        "name": "digits_atlas",
        "seed": 0,
        "precision": "float32",
        "threat": {"norm": "linf", "eps": 0.15},
        "data": {"name": "digits", "batch_size": 64, "dir": "/somewhere/data"},
        "model": {"name": "small_cnn"},
        "method": {"name": "atlas", "alpha": 0.0002, "beta": 5.0, "attack": {"name": "fgsm"}},
        "attacks": [{"name": "pgd"}, {"name": "square"}],
        "paper": {"source": "ATLAS, Table 1", "clean": 0.9947, "PGD-20": 0.5, "AA": 0.48},
    } | changes
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "history.csv").write_text(
        "epoch,step,finished_at,loss,val_accuracy,val_robust_accuracy,val_fgsm_accuracy,"
        "val_jacobian,learning_rate,eps,seconds_per_batch\n"
        "0,20,1000.0,2.0,0.90,0.50,0.60,3.0,0.1,0.05,0.040\n"
        "1,40,1010.0,1.0,0.95,0.80,0.85,3.5,0.05,0.15,0.050\n"
        "2,60,1022.0,0.5,0.97,0.25,0.88,,0.01,0.15,0.042\n"
        "3,80,1033.0,0.4,0.98,0.20,0.90,,0.01,0.15,0.042\n"
    )
    evaluation = {
        "examples": 10,
        "clean_accuracy": 0.8,
        "robust_accuracy": 0.3,
        "worst_case_examples": 10,
        "attacks": [
            {
                "name": "PGD-20",
                "examples": 10,
                "robust_accuracy": 0.4,
                "seconds": 3.1,
                "config": PGD,
            },
            {
                "name": "Square",
                "examples": 10,
                "robust_accuracy": 0.3,
                "seconds": 183.0,
                "config": {"name": "square", "queries": 5000},
            },
        ],  # fmt: skip
        "threat": config["threat"],
        "seed": 0,
        "versions": {"tfrobust": "0.1.0", "python": "3.12"},
        "commit": None,
        "data": {"name": config["data"]["name"], "split": "test"},
    }
    (run / "eval.json").write_text(json.dumps(evaluation))
    rng = np.random.default_rng(0)
    image = rng.random((2, 8, 8, channels), dtype=np.float32)
    np.savez(
        run / "probes.npz",
        image=image,
        adversarial=np.clip(image + 0.05 * np.sign(rng.normal(size=image.shape)), 0, 1),
        label=np.array([0, 1]),
        clean_prediction=np.array([0, 1]),
        adversarial_prediction=np.array([1, 1]),
        index=np.array([4, 17]),
        attack="PGD-20",
        class_names=np.array(["zero", "one & two"]),
    )
    return run


def change(run: Path, **changes: Any) -> None:
    """Replace keys of eval.json."""
    path = run / "eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_attack_settings_begin_with_the_usual_keys_and_omit_none() -> None:
    config = {"name": "x", "queries": 5000, "loss": "dlr", "steps": 3, "target": None}
    assert attack_settings(config) == "3 steps, loss dlr, queries 5000"


def test_accuracy_rows_hold_intervals_the_papers_numbers_and_the_worst_case(tmp_path: Path) -> None:
    record = load_run(make_run(tmp_path / "run"))
    clean, pgd, square, worst = accuracy_rows(record.config, record.evaluation)
    assert (clean.low, clean.high) == interval(8, 10)
    assert clean.difference == pytest.approx(0.8 - 0.9947)
    assert (pgd.name, pgd.paper, pgd.seconds) == ("PGD-20", 0.5, 3.1)
    assert pgd.settings == "20 steps, step size 2/255 = 0.007843, restarts 1, loss ce"
    assert square.paper is None and square.difference is None
    assert (worst.name, worst.accuracy, worst.examples) == ("worst case", 0.3, 10)


def test_the_headline_says_how_many_images_each_accuracy_is_of(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    record = load_run(run)
    assert headline(record.config, record.evaluation) == (
        "atlas on digits: 80.0 % clean, 30.0 % under the worst of 2 attacks "
        "(linf, eps 0.15, 10 test images)"
    )
    subset = {"examples": 5, "robust_accuracy": 0.2}
    change(run, schema_version=1, robust_accuracy=0.4, subsets=[subset])
    evaluation = load_run(run).evaluation
    assert headline(record.config, evaluation) == (
        "atlas on digits: 80.0 % clean, 40.0 % under the worst of 2 attacks "
        "(linf, eps 0.15, 10 test images); 20.0 % on the first 5 images, under all attacks"
    )
    *_, worst, fewer = accuracy_rows(record.config, evaluation)
    assert (worst.name, worst.accuracy, worst.examples) == ("worst case", 0.4, 10)
    assert (fewer.name, fewer.accuracy, fewer.examples) == ("worst case, first 5", 0.2, 5)


def test_the_headline_of_an_older_file_is_of_the_attacks_on_all_images(tmp_path: Path) -> None:
    """It cannot be computed from two attacks that ran on all images separately."""
    run = make_run(tmp_path / "run")
    rows = [
        {"name": "PGD-20", "examples": 10, "robust_accuracy": 0.7},
        {"name": "AA", "examples": 4, "robust_accuracy": 0.25},
    ]
    change(run, attacks=rows, robust_accuracy=0.25, worst_case_examples=4, mode="each")
    evaluation = load_run(run).evaluation
    assert (evaluation.robust_accuracy, evaluation.worst_case_examples) == (0.7, 10)
    assert [(s.examples, s.robust_accuracy) for s in evaluation.subsets] == [(4, 0.25)]
    change(run, attacks=[*rows, rows[0] | {"name": "Square", "robust_accuracy": 0.8}])
    assert load_run(run).evaluation.robust_accuracy is None


def test_the_cost_of_an_attack_is_in_passes_for_each_attacked_image() -> None:
    def cost(**changes: Any) -> str:
        numbers = {"attacked": 80, "queries": 4880, "gradients": 4800, "seconds": 6.5} | changes
        return attack_cost(AttackRow(name="a", examples=80, robust_accuracy=0.5, **numbers))

    assert cost() == "80 attacked, 61 + 60 passes each, 12.3 a second"  # 80 / 6.5
    assert cost(seconds=None) == "80 attacked, 61 + 60 passes each"
    assert cost(attacked=0) == "0 attacked"
    assert cost(attacked=None) == ""


def suite_rows(name: str = "AutoAttack") -> list[dict[str, Any]]:
    """Return two attacks of a suite and the row of the suite."""
    cost = {"examples": 10, "seconds": 2.0, "queries": 808, "gradients": 800}
    return [
        cost | {"name": f"{name}: APGD-CE", "robust_accuracy": 0.5, "attacked": 8, "suite": name,
                "config": {"name": "apgd", "steps": 100}},
        cost | {"name": f"{name}: Square", "robust_accuracy": 0.4, "attacked": 5, "suite": name,
                "config": {"name": "square", "queries": 5000}},
        cost | {"name": name, "robust_accuracy": 0.4, "attacked": 8},
    ]  # fmt: skip


def test_a_suite_has_a_row_that_does_not_count_as_an_attack(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", paper={"source": "x", "AutoAttack": 0.45})
    change(run, attacks=suite_rows(), robust_accuracy=0.4, mode="cascade")
    record = load_run(run)
    _, apgd, _, suite, worst = accuracy_rows(record.config, record.evaluation)
    assert apgd.settings == "100 steps"
    assert apgd.cost == "8 attacked, 101 + 100 passes each, 4 a second"
    assert suite.settings == "right under each of its attacks above" and suite.paper == 0.45
    assert "40.0 % under AutoAttack (" in headline(record.config, record.evaluation)
    two = load_run(make_run(tmp_path / "two")).evaluation.as_json()["attacks"]
    change(run, attacks=[*two, *suite_rows()])
    summary = headline(record.config, load_run(run).evaluation)
    assert "under the worst of 4 attacks" in summary
    page = write_report(run)
    for text in (page.read_text(), (page.parent / "report.md").read_text()):
        assert "8 attacked, 101 + 100 passes each, 4 a second" in text
        assert "Each attack ran only on the images that those above it" in text


def test_the_report_says_which_images_an_accuracy_counts() -> None:
    def note(**changes: Any) -> str:
        record = {"examples": 10, "clean_accuracy": 0.9, "attacks": []}
        return how_counted(Record.parse(record | {"threat": {"norm": "l2", "eps": 1.0}} | changes))

    assert note() == ""
    assert "on what those before it" not in note(mode="each")
    assert "on what those before it" in note(attacks=suite_rows(), mode="each")
    assert "accuracy is 31.2 %" in note(rounded_robust_accuracy=0.312)


CHECKS = [
    {"name": "huge eps", "value": 0.25, "text": "25.0% <of> 200 images.", "warns": True},
    {"name": "more steps", "value": None, "text": "Not measured.", "warns": False},
    {"name": "logits", "value": 0.0, "text": "Logits.", "warns": False},
]


def test_checks_have_a_table_and_warnings_stand_above_the_accuracy(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    change(run, checks=CHECKS)
    page = write_report(run)
    line = "1 of 3 checks warns that the robust accuracy may be too high: huge eps."
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    for text, section in ((html, "<h2>Accuracy"), (markdown, "## Accuracy")):
        assert 0 < text.find(line) < text.index(section)
        assert "25.0% &lt;of&gt; 200 images." in text and "Not measured." in text
    assert '<td class="wrong">warning</td>' in html and '<td class="right">fine</td>' in html
    assert "200 images. | warning |" in markdown and f"Not measured. | {NOTHING} |" in markdown
    change(run, checks=CHECKS[1:])
    assert "robust accuracy may be too high" not in write_report(run).read_text()
    change(run, checks=[])
    assert "Checks" not in write_report(run).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean_accuracy": 97.8}, r"clean_accuracy: 97\.8"),
        ({"checks": [CHECKS[0] | {"name": None}]}, r"checks\.0\.name: None"),
        ({"checks": [CHECKS[0] | {"text": None}]}, r"checks\.0\.text: None"),
        ({"checks": [CHECKS[0] | {"warns": None}]}, r"checks\.0\.warns: None"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, changes: Any, message: str) -> None:
    run = make_run(tmp_path / "run")
    change(run, **changes)
    with pytest.raises(ValueError, match=rf"eval\.json.*{message}"):
        load_run(run)


def test_the_summary_of_training_has_epochs_and_times(tmp_path: Path) -> None:
    history = load_run(make_run(tmp_path / "run")).history
    summary = summarise_training(history, {})
    # From the ends 1000 to 1033 are 33 s; the first epoch counts as the median one, 11 s.
    assert (summary.epochs, summary.best_epoch, summary.wall_seconds) == (4, 1, 44.0)
    assert summary.seconds_per_batch == 0.042
    assert "val_jacobian" not in history[2]


def test_best_epoch_ignores_nan_and_absent_columns() -> None:
    nan = {"epoch": 0, "val_robust_accuracy": float("nan")}
    assert best_epoch([nan, {"epoch": 1, "val_robust_accuracy": 0.1}], {}) == 1
    assert best_epoch([], {}) is None
    assert best_epoch([{"epoch": 0}, {"epoch": 1}], {}) == 1  # the last, without validation


def test_best_epoch_is_the_last_maximum_of_the_monitor() -> None:
    rows = [(0.5, 0.9), (0.6, 0.8), (0.6, 0.7), (0.1, 0.8)]
    history = [
        {"epoch": i, "val_robust_accuracy": robust, "val_accuracy": clean}
        for i, (robust, clean) in enumerate(rows)
    ]
    assert best_epoch(history, {}) == 2
    assert best_epoch(history, {"train": {"monitor": "val_accuracy"}}) == 0


def test_the_wall_time_of_training_may_be_measured_between_dates(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "history.csv").write_text(
        "epoch,finished_at\n0,2025-01-01T10:00:00+00:00\n1,2025-01-01T10:01:00+00:00\n"
    )
    assert summarise_training(load_run(run).history, {}).wall_seconds == 120


def test_the_page_loads_nothing_and_has_all_sections(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run"))
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    assert page == tmp_path / "run" / "report" / "index.html"
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", html)
    assert not re.search(r"<script[^>]|<link|@import|url\((?!#)", html)
    assert html.count("<svg") == 6 and html.count("data:image/png;base64,") == 6
    for text in ("49.0 to 94.3", "-19.5", "AA 48.0 %", "3 min 03 s", "queries 5000"):
        assert text in html and text in markdown
    for text in ("one &amp; two ✓", "best epoch 1", "amplified\n10 times", "validation split"):
        assert text in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    folder = page.parent
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = ("jacobian", "robust-accuracy", "clean-accuracy", "loss", "learning-rate", "eps")
    figures = {f"figures/{name}.svg" for name in names}
    tables = {f"tables/accuracy.{kind}" for kind in ("csv", "tex")}
    assert files == {"index.html", "report.md"} | figures | tables
    assert (folder / "figures/loss.svg").read_text().startswith("<?xml")
    with (folder / "tables/accuracy.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["evaluation"] == "clean"


def test_the_names_of_run_and_attacks_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", name="<script>alert(1)</script> | x")
    change(run, attacks=[{"name": "<img src=x>|", "examples": 10, "robust_accuracy": 0.4}])
    page = write_report(run)
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    assert "<script>alert" not in html and "<img src=x" not in html
    assert "&lt;script&gt;" in html and "&lt;img src=x&gt;" in html
    text = [line for line in markdown.splitlines() if not line.startswith("    ")]  # without code
    assert not re.search(r"<script|<img|[^\\]\| x", "\n".join(text))


def test_the_report_of_a_killed_evaluation_names_the_pending_attacks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    change(run, pending=["FAB-T", "Square"])
    assert "not finished: FAB-T, Square did not" in write_report(run).read_text()


def test_a_folder_without_a_config_has_a_report(tmp_path: Path) -> None:
    """`evaluate(..., folder=...)` leaves such a folder."""
    run = make_run(tmp_path / "mine")
    for name in ("config.yaml", "history.csv"):
        (run / name).unlink()
    record = load_run(run)
    assert record.config == {"name": "mine", "data": {"name": "digits"}}
    summary = headline(record.config, record.evaluation)
    assert summary.startswith("mine on digits: 80.0 % clean, 30.0 % under the worst of 2 attacks")
    assert summary in write_report(run).read_text()


def test_a_report_without_history_paper_and_probes_has_no_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", paper=None, method=None)
    (run / "history.csv").unlink()
    (run / "probes.npz").unlink()
    html = write_report(run).read_text()
    assert "No training history" in html and "<svg" not in html and "<img" not in html
    assert "Paper:" not in html and 'scope="col">difference' not in html


def test_without_attacks_only_clean_accuracy_is_claimed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", attacks=[])
    change(run, attacks=[], robust_accuracy=None, worst_case_examples=0)
    record = load_run(run)
    assert [row.name for row in accuracy_rows(record.config, record.evaluation)] == ["clean"]
    assert "under" not in headline(record.config, record.evaluation)


def test_the_page_of_an_l2_threat_and_colour_images(tmp_path: Path) -> None:
    threat = {"norm": "l2", "eps": 128 / 255}
    html = write_report(make_run(tmp_path / "run", channels=3, threat=threat)).read_text()
    assert "l2, eps 128/255 = 0.502" in html
    assert html.count("data:image/png;base64,") == 6


def test_rendering_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run"))
    first = page.read_bytes()
    shutil.rmtree(page.parent)
    assert write_report(tmp_path / "run").read_bytes() == first


def test_an_evaluation_without_a_schema_version_makes_the_same_page(tmp_path: Path) -> None:
    """The pages are equal byte for byte if every attack ran on all images."""
    run = make_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    record = Record.load(run)
    record.schema_version = 1
    record.threat.box = [0.0, 1.0]
    record.save(run)
    assert "schema_version" in (run / "eval.json").read_text()
    assert write_report(run).read_bytes() == first


def test_a_missing_evaluation_is_an_error_that_names_the_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "eval.json").unlink()
    with pytest.raises(ValueError, match="expected the result of the stage attack_eval"):
        write_report(run)


DAMAGED = list(product(["config.yaml", "eval.json", "probes.npz"], [b"{", b"\x00\xff", b""]))
DAMAGED += [
    ("history.csv", text) for text in (b"epoch,loss\n0,abc\n", b"loss\n0\n", b"epoch\n0,1\n")
]


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_bytes(content)
    message = r"history\.csv: expected" if name == "history.csv" else name
    with pytest.raises(ValueError, match=message) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
