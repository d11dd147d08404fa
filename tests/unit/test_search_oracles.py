"""KerasTuner's oracles on a function with a known maximum: ranges, resumption, damaged state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.sections import CLEAN, ROBUST, Search
from pipelines.space import ranges
from pipelines.stages.tuner import SCORE, _oracle, _reload
from tests.products import slow_but
from tfrobust.errors import UserError

SPACE = ranges(
    {
        "method.alpha": {"log": [1e-6, 1e-2]},
        "model.units": {"int": [4, 8]},
        "method.attack": {"choice": ["fgsm", {"name": "pgd", "steps": 2}]},
    }
)


def height(values: dict[str, Any]) -> float:
    """Return the height, at most 1 at alpha 1e-4 and units 6."""
    away = abs(math.log10(values["method.alpha"]) + 4) / 4 + abs(values["model.units"] - 6) / 8
    return 1 - away / 2


def made(folder: Path, plan: Search, ended: Callable[[str], None] = lambda name: None) -> Any:
    oracle = _oracle(plan, 0, 3, ended)
    oracle._set_project_dir(str(folder), "search")
    oracle.verbose = 0
    return oracle


def begin(oracle: Any) -> Any:
    trial = oracle.create_trial("tuner0")
    return trial if trial.status == "RUNNING" else None


def end(oracle: Any, trial: Any) -> dict[str, Any]:
    drawn = trial.hyperparameters.values
    values = {key: expected.value(drawn[key]) for key, expected in SPACE.items()}
    result = {SCORE: height(values), CLEAN: 1.0, ROBUST: height(values), "epochs": 3.0}
    oracle.update_trial(trial.trial_id, result)
    trial.status = "COMPLETED"
    oracle.end_trial(trial)
    return values


def search(oracle: Any) -> list[dict[str, Any]]:
    results = []
    while (trial := begin(oracle)) is not None:
        results.append(end(oracle, trial))
    return results


@pytest.mark.parametrize(
    "tuner", slow_but(["random", "bayesian", "hyperband"], ["random", "hyperband"])
)
def test_every_tuner_stays_in_the_space_and_ends(tuner: str, tmp_path: Path) -> None:
    lines: list[str] = []
    results = search(made(tmp_path, Search(SPACE, tuner, 14), lines.append))
    assert len(results) == len(lines) == (6 if tuner == "hyperband" else 14)
    for values in results:
        assert 1e-6 <= values["method.alpha"] <= 1e-2
        assert values["model.units"] in range(4, 9)
        assert values["method.attack"] in SPACE["method.attack"].values
    if tuner == "bayesian":  # nine are drawn at random before it has learnt anything
        assert max(map(height, results[9:])) > 0.9


def test_a_seed_is_a_search(tmp_path: Path) -> None:
    plan = Search(SPACE, "random", 4)
    first, again = (search(made(tmp_path / name, plan)) for name in "ab")
    assert first == again
    other = _oracle(plan, 1, 3, lambda name: None)
    other._set_project_dir(str(tmp_path / "c"), "search")
    other.verbose = 0
    assert not [values for values in search(other) if values in first]


def test_a_stopped_search_goes_on_with_the_trial_that_was_running(tmp_path: Path) -> None:
    plan = Search(SPACE, "random", 5)
    straight = search(made(tmp_path / "straight", plan))

    before = made(tmp_path / "cut", plan)
    before.save()
    results = [end(before, begin(before)), end(before, begin(before))]
    running = begin(before).trial_id
    after = made(tmp_path / "cut", plan)
    _reload(after, tmp_path / "cut" / "search" / "oracle.json")
    trial = begin(after)
    assert trial.trial_id == running == "2"
    results.append(end(after, trial))
    assert results + search(after) == straight


def test_a_trial_that_was_written_but_not_noted_is_drawn_again(tmp_path: Path) -> None:
    plan = Search(SPACE, "random", 3)
    straight = search(made(tmp_path / "straight", plan))
    cut = made(tmp_path / "cut", plan)
    cut.save()
    results, noted = [end(cut, begin(cut))], tmp_path / "cut" / "search" / "oracle.json"
    state = noted.read_bytes()
    begin(cut)
    noted.write_bytes(state)  # killed after trial_1/trial.json, before oracle.json
    after = made(tmp_path / "cut", plan)
    _reload(after, noted)
    assert list(after.trials) == ["0"]
    assert results + search(after) == straight


@pytest.mark.parametrize("name", ["oracle.json", "trial_0/trial.json"])
def test_damaged_state_is_one_line(name: str, tmp_path: Path) -> None:
    plan = Search(SPACE, "random", 1)
    search(made(tmp_path, plan))
    file = tmp_path / "search" / name
    content = file.read_text()
    for damaged in ("", content[: len(content) // 2], "[]", json.dumps({"seed": 1})):
        file.write_text(damaged)
        with pytest.raises(UserError, match="oracle.json: expected KerasTuner's state") as error:
            _reload(made(tmp_path, plan), tmp_path / "search" / "oracle.json")
        assert "\n" not in str(error.value)
