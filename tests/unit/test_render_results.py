"""The rendered results agree with the run folders, and --check notices when they do not."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import render_results as tool

from tfrobust.flags import Flags


def make_run(
    run: Path,
    robust: float = 0.3,
    attack: str = "PGD-20",
    pending: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """Write a finished run of one attack; `changes` replace keys of the config."""
    run.mkdir(parents=True)
    config: dict[str, Any] = {
        "name": "digits_atlas",
        "seed": 0,
        "precision": "float32",
        "data": {"name": "digits", "dir": "/somewhere/data"},
        "method": {"name": "atlas"},
        "attacks": [attack],
        "paper": {"source": "ATLAS, Table 1", attack: 0.5},
    } | changes
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "history.csv").write_text(
        "epoch,finished_at,val_robust_accuracy,seconds_per_batch\n"
        "0,100,0.5,0.04\n1,110,0.6,0.05\n2,120,0.4,0.06\n"
    )
    spec = {"name": "pgd", "steps": 20}
    row = {
        "name": attack,
        "examples": 10,
        "robust_accuracy": robust,
        "seconds": 3.1,
        "config": spec,
    }
    evaluation = {
        "examples": 10,
        "clean_accuracy": 0.8,
        "robust_accuracy": robust,
        "worst_case_examples": 10,
        "attacks": [row],
        "threat": {"norm": "linf", "eps": 8 / 255},
        "pending": list(pending),
        "seed": 5,
        "versions": {"tfrobust": "0.1.0"},
        "commit": "abc123",
        "data": {"name": config["data"]["name"], "split": "test"},
    }
    (run / "eval.json").write_text(json.dumps(evaluation))
    return run


def test_a_summary_holds_command_training_and_no_paths_of_the_machine(tmp_path: Path) -> None:
    command = "python -m pipelines.run digits_atlas --set data.dir=/tmp/data --set seed=0"
    run, flags = make_run(tmp_path / "run", command=command), {"clean": np.arange(10) < 8}
    Flags(np.arange(10), np.zeros(10, int), flags | {"PGD-20": np.arange(10) < 3}).save(run)
    path = tool.add_run(run, tmp_path / "results")
    summary = json.loads(path.read_text())
    assert path.name == "digits_atlas.json"
    assert summary["command"] == "python -m pipelines.run digits_atlas --set seed=0"
    assert summary["training"] == {
        "epochs": 3,
        "best_epoch": 1,
        "seconds_per_batch": 0.05,
        "validation_share": None,
        "wall_seconds": 30.0,
        "training_seconds": None,
        "robust_over_time": [],
        "jacobian_over_time": [],
        "overfitted_seconds": [],
    }
    assert summary["flags"]["right"] == {"clean": "ff00", "PGD-20": "e000"}  # 0xff: eight are right
    assert "somewhere" not in path.read_text() and "/tmp" not in path.read_text()
    assert summary["config"]["data"] == {"name": "digits"}


def test_the_page_shows_accuracies_times_and_provenance(tmp_path: Path) -> None:
    tool.add_run(make_run(tmp_path / "run"), tmp_path / "results")
    page = tool.render(tmp_path)
    # The Wilson interval of 3 out of 10 is 0.1078 to 0.6032.
    assert "| 30.0 % (10.8 to 60.3)<br>n=10<br>paper 50.0 %, -20.0 |" in page
    assert "| 80.0 % (49.0 to 94.3)<br>n=10 |" in page
    assert "linf, eps 8/255 = 0.03137 |" in page
    assert "| 50.0 ms | 30.0 s | 3 | float32 |" in page
    assert "    python -m pipelines.run digits_atlas\n" in page
    for fact in (
        "- PGD-20: 20 steps, 3.1 s",
        "- paper: ATLAS, Table 1",
        "- commit: training not recorded, evaluation abc123",
        "- seed: training 0, evaluation 5",
        "- versions: tfrobust 0.1.0",
    ):
        assert fact in page
    assert "Over seeds" not in page and page.startswith("# Results\n")


def test_the_page_says_in_which_precision_attacks_searched(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    record = json.loads((run / "eval.json").read_text()) | {"craft_precision": "mixed_bfloat16"}
    (run / "eval.json").write_text(json.dumps(record))
    tool.add_run(run, tmp_path / "results")
    assert "- attacks: searched in mixed_bfloat16, judged in float32\n" in tool.render(tmp_path)


def test_runs_are_grouped_by_data_set_and_a_group_has_its_note_once(tmp_path: Path) -> None:
    note = "the images are a JPEG-recompressed copy"
    cifar = {"data": {"name": "cifar10"}, "note": note}
    for name in ("cifar_a", "cifar_b"):
        tool.add_run(make_run(tmp_path / name, name=name, **cifar), tmp_path / "results")
    tool.add_run(make_run(tmp_path / "d", attack="Square"), tmp_path / "results")
    page = tool.render(tmp_path)
    cifar_part, digits_part = page.split("## digits\n")
    assert cifar_part.count(note) == 1 and note not in digits_part
    assert "Square" not in cifar_part and "PGD-20" not in digits_part


def test_runs_of_several_seeds_have_a_row_of_mean_and_deviation(tmp_path: Path) -> None:
    for seed, robust in ((1, 0.5), (0, 0.3)):
        run = make_run(tmp_path / str(seed), robust=robust, seed=seed)
        tool.add_run(run, tmp_path / "results")
    tool.add_run(make_run(tmp_path / "other", name="digits_adv", seed=3), tmp_path / "results")
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == ["digits_adv.json", "digits_atlas.json", "digits_atlas_seed0.json"]
    page = tool.render(tmp_path)
    # The mean of 0.3 and 0.5 is 0.4, their sample standard deviation 0.1 * sqrt(2).
    row = next(line for line in page.splitlines() if "±" in line and line.startswith("|"))
    assert "0, 1 |" in row and "| 40.0 ± 14.1 % (30.0 to 50.0) |" in row
    assert "digits_atlas (seed 1)" in page


def test_the_runs_of_a_suite_have_a_table_over_seeds_and_a_folder_of_records(
    tmp_path: Path,
) -> None:
    docs = tmp_path / "docs"
    assert tool.main(docs, add=[str(make_run(tmp_path / "alone", seed=3))]) == 0
    for ending, robust in (("", 0.2), ("_silu", 0.6)):
        for seed in (0, 1):
            name = f"digits_atlas_seed-{seed}{ending}"
            run = make_run(tmp_path / name, robust + seed / 5, name=name, seed=seed)
            assert tool.main(docs, add=[str(run)], suite="ingredients") == 0
    assert len(list((docs / "results" / "ingredients").glob("*.json"))) == 4
    before, part = (docs / "results.md").read_text().split("## ingredients\n")
    assert "ingredients" not in before and "### digits_atlas, seed 3" in before
    rows = [line for line in part.splitlines() if line.startswith("| digits")]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| digits_atlas", "0, 1"],
        ["| digits_atlas_silu", "0, 1"],
    ]
    # The means of 0.2 and 0.4, and of 0.6 and 0.8, with a deviation of 0.1 * sqrt(2).
    assert "30.0 ± 14.1 % (20.0 to 40.0)" in rows[0] and "70.0 ± 14.1 %" in rows[1]
    assert "###" not in part and "`docs/results/ingredients/` has the record" in part
    assert (docs / "results" / "ingredients.svg").is_file() and tool.outdated(docs) == []


def test_runs_of_one_name_in_two_suites_are_two_lines(tmp_path: Path) -> None:
    docs, readme = tmp_path / "docs", tmp_path / "README.md"
    readme.write_text("<!-- leaderboard: second/digits_atlas -->\n<!-- end -->\n")
    for suite, robust in (("first", 0.2), ("second", 0.3)):
        for seed in (0, 1):
            name = f"digits_atlas_seed-{seed}"
            run = autoattack(tmp_path / suite / name, robust + seed / 5, name=name, seed=seed)
            # The README names a run that the first suite does not have.
            assert tool.main(docs, add=[str(run)], suite=suite) == (1 if suite == "first" else 0)
    page = (docs / "results.md").read_text()
    for suite, robust in (("first", "30.0"), ("second", "40.0")):
        row = next(line for line in page.splitlines() if f"| {suite}/digits_atlas |" in line)
        assert "| 0, 1 |" in row and f"| {robust} % of 10" in row
    assert "second/digits_atlas" in readme.read_text()
    assert "first/digits_atlas |" not in readme.read_text()


def test_a_suite_of_one_seed_has_a_line_for_each_run(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for name in ("ADV_eps-0.1", "ADV_eps-0.2"):
        run = make_run(tmp_path / name, name=name)
        assert tool.main(docs, add=[str(run)], suite="tradeoff") == 0
    part = (docs / "results.md").read_text().split("## tradeoff\n")[1]
    rows = [line.split(" | ")[0] for line in part.splitlines() if line.startswith("| ADV")]
    assert rows == ["| ADV_eps-0.1", "| ADV_eps-0.2"] and "Over seeds" not in part


def test_adding_a_run_again_replaces_it(tmp_path: Path) -> None:
    tool.add_run(make_run(tmp_path / "a"), tmp_path / "results")
    path = tool.add_run(make_run(tmp_path / "b", robust=0.6), tmp_path / "results")
    assert [path] == list((tmp_path / "results").iterdir())
    assert json.loads(path.read_text())["evaluation"]["robust_accuracy"] == 0.6


def test_a_run_is_added_under_another_name_with_as(tmp_path: Path, capsys: Any) -> None:
    runs = [str(make_run(tmp_path / "a")), str(make_run(tmp_path / "b", robust=0.6))]
    assert tool.main(tmp_path / "docs", add=runs[:1]) == 0
    assert tool.main(tmp_path / "docs", add=runs[1:], name="digits_other") == 0
    names = sorted(path.name for path in (tmp_path / "docs" / "results").glob("digits_*.json"))
    assert names == ["digits_atlas.json", "digits_other.json"]
    assert "### digits_other, seed 0" in (tmp_path / "docs" / "results.md").read_text()
    capsys.readouterr()
    assert tool.main(tmp_path / "docs", add=runs, name="digits_other") == 1
    assert capsys.readouterr().err == "--as: expected one --add with it, received 2\n"


def test_names_and_notes_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", attack="<script>|", note="<b>|")
    tool.add_run(run, tmp_path / "results")
    page = tool.render(tmp_path)
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;\\|" in page


def test_runs_that_are_unfinished_or_have_a_path_as_their_name_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "short", pending=["b"])
    with pytest.raises(ValueError, match="finished evaluation; not run: b"):
        tool.add_run(run, tmp_path / "results")
    with pytest.raises(ValueError, match="file name"):
        tool.add_run(make_run(tmp_path / "name", name="../x"), tmp_path / "results")


def test_a_figure_goes_with_its_runs(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for suite in ("", "ingredients"):
        assert tool.main(docs, add=[str(make_run(tmp_path / f"run{suite}"))], suite=suite) == 0
    figures = {path.name for path in (docs / "results").glob("*.svg")}
    assert figures == {"digits.svg", "ingredients.svg"}
    (docs / "results" / "digits_atlas.json").unlink()
    assert tool.main(docs) == 0
    assert [path.name for path in (docs / "results").glob("*.svg")] == ["ingredients.svg"]


def test_check_fails_for_an_outdated_page_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    docs = tmp_path / "docs"
    assert tool.main(docs, check=True) == 1 and not docs.exists()
    assert tool.main(docs, add=[str(make_run(tmp_path / "run"))]) == 0
    assert tool.main(docs, check=True) == 0
    (docs / "results" / "intro.md").write_text("# Measured\n\nBy hand.\n")
    before = (docs / "results.md").read_text()
    capsys.readouterr()
    assert tool.main(docs, check=True) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert (docs / "results.md").read_text() == before
    assert tool.main(docs) == 0
    assert (docs / "results.md").read_text().startswith("# Measured\n\nBy hand.\n\n## All runs\n")


def test_a_damaged_summary_is_named_in_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text('{"name": 1}')
    assert tool.main(tmp_path) == 1
    error = capsys.readouterr().err
    assert "x.json: expected a run summary" in error and error.count("\n") == 1


def test_the_command_line_takes_add_and_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def status(*words: str) -> int:
        """Return the exit status of the command."""
        monkeypatch.setattr(sys, "argv", ["render_results.py", f"--docs={tmp_path}/docs", *words])
        return tool.command()

    assert status("--add", str(make_run(tmp_path / "run"))) == 0
    (tmp_path / "docs" / "results.md").write_text("old")
    assert status("--check") == 1 and "results.md: out of date" in capsys.readouterr().err


def autoattack(run: Path, robust: float, **changes: Any) -> Path:
    """Write a finished run of AutoAttack."""
    return make_run(run, robust, "AutoAttack", **{"paper": None} | changes)


def test_the_leaderboard_has_a_row_for_each_run_in_robustbench_fields(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    model = {"name": "wide_resnet", "depth": 28, "width": 10}
    first = autoattack(tmp_path / "a", 0.3, model=model)
    assert tool.main(docs, add=[str(first), str(make_run(tmp_path / "b", name="weak"))]) == 0
    row, weak = json.loads((docs / "results" / "leaderboard.json").read_text())
    assert row == {
        "name": "digits_atlas",
        "seed": 0,
        "method": "atlas",
        "dataset": "digits",
        "architecture": "wide_resnet-28-10",
        "norm": "Linf",
        "eps": "8/255",
        "additional_data": False,
        "split": "test",
        "clean_acc": "80.00",
        "clean_examples": 10,
        "autoattack_acc": "30.00",
        "autoattack_examples": 10,
        "runtime": 3.1,
        "training_seconds": 30.0,
        "training_hardware": None,
        "hardware": None,
        "training_commit": None,
        "commit": "abc123",
        "stale": None,
    }
    assert weak["autoattack_acc"] is None and list(weak) == list(row)


def test_no_norm_stands_for_the_union_in_the_leaderboard(tmp_path: Path) -> None:
    run = autoattack(tmp_path / "run", 0.5)
    names = [f"{norm}: mine (AutoAttack)" for norm in ("linf", "l2")]
    rows = [{"name": name, "examples": 10, "robust_accuracy": 0.5} for name in names]
    threats = [{"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": 1.0}]
    record = json.loads((run / "eval.json").read_text()) | {"attacks": rows, "threat": threats}
    (run / "eval.json").write_text(json.dumps(record))
    assert tool.main(tmp_path / "docs", add=[str(run)]) == 0
    (row,) = tool.leaderboard.read(tmp_path / "docs")
    assert row["norm"] == "Linf + L2" and row["autoattack_acc"] is None


def test_runs_with_a_clock_have_a_figure_of_accuracy_over_time(tmp_path: Path) -> None:
    docs, runs = tmp_path / "docs", []
    for seed in (0, 1):
        runs.append(autoattack(tmp_path / str(seed), 0.3, seed=seed))
        path = runs[-1] / "history.csv"
        head, *rows = path.read_text().splitlines()
        lines = [f"{row},{10.5 * (place + 1)}" for place, row in enumerate(rows)]
        path.write_text("\n".join([f"{head},training_seconds", *lines]))
        assert tool.main(docs, add=[str(runs[-1])]) == 0
        shown = (docs / "results" / "digits_time.svg").is_file()
        assert shown == ("digits_time.svg" in (docs / "results.md").read_text()) == bool(seed)
    summary = json.loads((docs / "results" / "digits_atlas.json").read_text())["training"]
    assert summary["robust_over_time"] == [[10.5, 0.5], [21.0, 0.6], [31.5, 0.4]]
    assert "Jacobian" not in (docs / "results" / "digits_time.svg").read_text()
    assert [row["training_seconds"] for row in tool.leaderboard.read(docs)] == [31.5, 31.5]


def test_overfitting_and_the_jacobian_are_in_the_figure_over_time(tmp_path: Path) -> None:
    """In epochs 2 and 3 robust accuracy is low, but accuracy under FGSM is not."""
    docs = tmp_path / "docs"
    for name in ("lost", "other"):
        run = autoattack(tmp_path / name, 0.3, name=name)
        (run / "history.csv").write_text(
            "epoch,training_seconds,val_robust_accuracy,val_fgsm_accuracy,val_jacobian\n"
            "0,10,0.5,0.6,1\n1,20,0.6,0.7,2\n2,30,0.2,0.9,90\n3,40,0.1,0.9,95\n"
        )
        assert tool.main(docs, add=[str(run)]) == 0
    training = json.loads((docs / "results" / "lost.json").read_text())["training"]
    assert training["jacobian_over_time"] == [[10.0, 1.0], [20.0, 2.0], [30.0, 90.0], [40.0, 95.0]]
    assert training["overfitted_seconds"] == [40.0]
    figure = (docs / "results" / "digits_time.svg").read_text()
    assert "Jacobian" in figure and "catastrophic overfitting" in figure


def test_all_seeds_of_a_run_are_one_line_of_page_and_readme(tmp_path: Path, capsys: Any) -> None:
    docs, readme = tmp_path / "docs", tmp_path / "README.md"
    runs = [autoattack(tmp_path / str(seed), 0.2 + seed / 10, seed=seed) for seed in (1, 2)]
    runs.append(autoattack(tmp_path / "c", 0.5, name="better"))
    readme.write_text("top\n<!-- leaderboard: digits_atlas -->\nold\n<!-- end -->\nbottom\n")
    assert tool.main(docs, add=[str(run) for run in runs]) == 0
    line = "| digits_atlas | Linf, eps 8/255 | 1, 2 | 80.0 % of 10 (80.0 to 80.0) | "
    line += "35.0 % of 10 (30.0 to 40.0) | 30.0 s |"
    # The Wilson interval of 5 out of 10 is 0.2366 to 0.7634.
    best = "| better | Linf, eps 8/255 | 0 | 80.0 % of 10 (49.0 to 94.3) | "
    best += "50.0 % of 10 (23.7 to 76.3) | 30.0 s |"
    assert f"{best}\n{line}\n" in (docs / "results.md").read_text()
    text = readme.read_text()
    assert line in text and "better" not in text and "old" not in text
    assert text.startswith("top\n") and text.endswith("<!-- end -->\nbottom\n")
    assert tool.outdated(docs) == []
    readme.write_text(text.replace("35.0", "99.0"))
    assert tool.outdated(docs) == [readme]
    readme.write_text(text.replace(": digits_atlas -->", ": digits_atlas none -->"))
    capsys.readouterr()
    assert tool.main(docs) == 1 and "received none" in capsys.readouterr().err


def test_results_whose_code_has_changed_are_marked(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    files: list[str] | None = []
    monkeypatch.setattr(tool.stale, "changed_files", lambda summary: files)
    assert tool.main(docs, add=[str(autoattack(tmp_path / "run", 0.3))]) == 0
    assert "| digits_atlas |" in (docs / "results.md").read_text()
    files = ["a.py", "b.py", "c.py", "d.py"]
    capsys.readouterr()
    assert tool.main(docs, check=True) == 0
    line = "digits_atlas, seed 0: stale: changed since abc123: a.py, b.py, c.py and 1 more\n"
    assert capsys.readouterr().out == line
    assert tool.main(docs) == 0
    assert (docs / "results.md").read_text().count("| digits_atlas † |") == 2
    files = None  # the history is unknown, so the mark remains
    assert tool.main(docs) == 0 and tool.main(docs, check=True) == 0
    assert "| digits_atlas † |" in (docs / "results.md").read_text()
    assert "unknown" in capsys.readouterr().out
