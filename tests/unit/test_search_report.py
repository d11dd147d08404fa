"""The report of a search from its two files, for any trials, with all text escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tfrobust.errors import UserError
from tfrobust.report import SearchTrial, write_search_report, write_trials


def made(run: Path, space: dict[str, Any], trials: Sequence[SearchTrial], **search: Any) -> Path:
    config = {
        "name": "mine",
        "threat": {"norm": "linf", "eps": 0.15},
        "data": {"name": "digits", "validation": 60},
        "search": {"tuner": "random", "trials": 9, "space": space, **search},
    }
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_trials(run / "search" / "trials.csv", list(space), trials)
    return run


def done(name: str, clean: float, robust: float, **values: Any) -> SearchTrial:
    named = {key.replace("_", "."): value for key, value in values.items()}
    return SearchTrial(name, named, "completed", 3, clean, robust)


SPACE = {"method.alpha": {"log": [1e-4, 1.0]}, "method.attack": {"choice": ["fgsm", "<script>"]}}


def test_the_page_says_what_was_best(tmp_path: Path) -> None:
    trials = [
        done("0", 0.9, 0.5, method_alpha=0.001, method_attack="fgsm"),
        done("1", 0.8, 0.7, method_alpha=0.1, method_attack="<script>"),
        SearchTrial(
            "2", {"method.alpha": 1.0, "method.attack": "fgsm"}, "failed", reason="NaN | x"
        ),
    ]
    page = write_search_report(made(tmp_path / "run", SPACE, trials, min_clean=0.85))
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    message = (
        "Random search, 3 trials, 1 of them failed: the best of at least 85.0 % clean has 50.0 %"
    )
    assert message in html and message in markdown and "on 60 validation images" in html
    assert re.search(r"<tr><th scope=row>0</th>.*<td>best, on the front</td></tr>", html)
    assert "&lt;script&gt;" in html and not re.search(r"<script>(?!\n)", html)
    assert "NaN \\| x" in markdown
    assert html.count("<svg") == 4 and 'class="sortable"' in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    first = page.read_bytes()
    assert write_search_report(tmp_path / "run").read_bytes() == first


@pytest.mark.parametrize("count", [1, 2])
def test_few_or_equal_trials_are_drawn(tmp_path: Path, count: int) -> None:
    trials = [done(str(n), 0.9, 0.5, method_alpha=0.1, method_attack="fgsm") for n in range(count)]
    assert write_search_report(made(tmp_path / "run", SPACE, trials)).read_text().count("<svg") == 4


def test_trials_that_all_failed_are_a_table(tmp_path: Path) -> None:
    failed = SearchTrial(
        "0", {"method.alpha": 1.0, "method.attack": "fgsm"}, "failed", reason="NaN"
    )
    page = write_search_report(made(tmp_path / "run", SPACE, [failed])).read_text()
    assert "<svg" not in page and "Random search, 1 trial, 1 of them failed: none" in page


def test_a_key_that_changes_the_measure_is_told(tmp_path: Path) -> None:
    space = {"threat.eps": {"linear": [0.0, 0.1]}, "train.epochs": {"int": [1, 3]}}
    trials = [SearchTrial("0", {"threat.eps": 0.1, "train.epochs": 2}, "completed", 2, 0.9, 0.5)]
    page = write_search_report(made(tmp_path / "run", space, trials)).read_text()
    assert "threat.eps changes how accuracy is measured" in page


def test_missing_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.yaml: expected the config of a search"):
        write_search_report(tmp_path)
    run = made(tmp_path / "run", SPACE, [])
    with pytest.raises(UserError, match="trials.csv: expected the trials of a search"):
        write_search_report(run)
