"""The report of a search from its two files, its config and its table of trials."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tfrobust.errors import UserError
from tfrobust.report import SearchTrial, write_search_report, write_trials
from tfrobust.report.search import _ticks


def write(run: Path, space: dict[str, Any], trials: Sequence[SearchTrial], **search: Any) -> Path:
    """Write the files of a search and return its folder."""
    config = {
        "name": "mine",
        "threat": {"eps": 0.15},
        "data": {"name": "digits", "validation": 60},
        "search": {"tuner": "random", "trials": 9, "space": space, **search},
    }
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_trials(run / "search" / "trials.csv", list(space), trials)
    return run


def completed(
    name: str, clean: float, robust: float, alpha: float = 0.1, attack: str = "fgsm"
) -> SearchTrial:
    values = {"method.alpha": alpha, "method.attack": attack}
    return SearchTrial(name, values, "completed", 3, clean, robust)


def failed(name: str, reason: str) -> SearchTrial:
    values = {"method.alpha": 1.0, "method.attack": "fgsm"}
    return SearchTrial(name, values, "failed", reason=reason)


SPACE = {"method.alpha": {"log": [1e-4, 1.0]}, "method.attack": {"choice": ["fgsm", "<script>"]}}


def test_the_names_on_an_axis_differ() -> None:
    names = [f"name wide_resnet, depth {depth}" for depth in (10, 16)]
    assert _ticks(names) == ["10", "16"]
    assert _ticks(["fgsm", "a name of more than 18 characters"]) == ["fgsm", "a name of more tha"]


def test_the_page_names_the_best_trial_and_escapes_all_text(tmp_path: Path) -> None:
    trials = [completed("0", 0.9, 0.5, alpha=0.001), completed("1", 0.8, 0.7, attack="<script>")]
    trials.append(failed("2", "NaN | x"))
    page = write_search_report(write(tmp_path / "run", SPACE, trials, min_clean=0.85))
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    message = "Random search, 3 trials, 1 of them failed: the best of at least 85.0 % clean has 50"
    assert (
        f"{message}.0 %" in html
        and f"{message}.0 %" in markdown
        and "on 60 validation images" in html
    )
    assert re.search(r"<tr><th scope=row>0</th>.*<td>best, on the front</td></tr>", html)
    assert "&lt;script&gt;" in html and not re.search(r"<script>(?!\n)", html)
    assert "NaN \\| x" in markdown
    assert html.count("<svg") == 4 and 'class="sortable"' in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    first = page.read_bytes()
    assert write_search_report(tmp_path / "run").read_bytes() == first


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_trial_and_equal_trials_have_figures(tmp_path: Path, count: int) -> None:
    trials = [completed(str(number), 0.9, 0.5) for number in range(count)]
    page = write_search_report(write(tmp_path / "run", SPACE, trials)).read_text()
    assert page.count("<svg") == 4


def test_a_search_whose_trials_all_failed_has_no_figures(tmp_path: Path) -> None:
    page = write_search_report(write(tmp_path / "run", SPACE, [failed("0", "NaN")])).read_text()
    assert "<svg" not in page and "Random search, 1 trial, 1 of them failed: none" in page


def test_the_page_warns_of_a_searched_key_that_changes_the_threat(tmp_path: Path) -> None:
    space = {"threat.eps": {"linear": [0.0, 0.1]}, "train.epochs": {"int": [1, 3]}}
    trials = [SearchTrial("0", {"threat.eps": 0.1, "train.epochs": 2}, "completed", 2, 0.9, 0.5)]
    page = write_search_report(write(tmp_path / "run", space, trials)).read_text()
    assert "threat.eps changes how accuracy is measured" in page


def test_a_missing_config_and_a_table_without_trials_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.yaml: expected the config of a search"):
        write_search_report(tmp_path)
    run = write(tmp_path / "run", SPACE, [])
    with pytest.raises(UserError, match="trials.csv: expected the trials of a search"):
        write_search_report(run)
