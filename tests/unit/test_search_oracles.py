"""KerasTuner's oracles on a function whose maximum is exact: ranges, resumption, damaged state.

The oracle is asked for trials and given their results as a search does, without any training.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras_tuner as kt
import pytest

from pipelines import search_cluster
from pipelines.resolve import load_spec
from pipelines.run_folder import RunFolder
from pipelines.sections import CLEAN, ROBUST, Search
from pipelines.space import ranges
from pipelines.stages import tuner
from pipelines.stages.train import Train
from pipelines.stages.tuner import _oracle, _reload, _Tuner
from tests.errors import error_line
from tests.products import slow_but
from tfrobust.io import lock

SPACE = ranges(
    {
        "method.alpha": {"log": [1e-6, 1e-2]},
        "model.units": {"int": [4, 8]},
        "method.attack": {"choice": ["fgsm", {"name": "pgd", "steps": 2}]},
    }
)


def height(values: dict[str, Any]) -> float:
    """Return the accuracy of a trial, at most 1 at alpha 1e-4 and units 6."""
    distance = abs(math.log10(values["method.alpha"]) + 4) / 4 + abs(values["model.units"] - 6) / 8
    return 1 - distance / 2


def oracle_in(
    folder: Path, plan: Search, ended: Callable[[str], None] = lambda name: None, seed: int = 0
) -> Any:
    """Return an oracle of trials of three epochs whose state is in folder/search."""
    oracle = _oracle(plan, seed, 3, ended)
    oracle._set_project_dir(str(folder), "search")
    oracle.verbose = 0
    return oracle


def begin(oracle: Any) -> Any:
    """Return the next trial, or None at the end of the search."""
    trial = oracle.create_trial("tuner0")
    return trial if trial.status == "RUNNING" else None


def end(oracle: Any, trial: Any) -> dict[str, Any]:
    """Complete a trial with its height and return its values."""
    drawn = trial.hyperparameters.values
    values = {key: place.value(drawn[key]) for key, place in SPACE.items()}
    result = {CLEAN: 1.0, ROBUST: height(values), "epochs": 3.0}
    oracle.update_trial(trial.trial_id, result)
    trial.status = "COMPLETED"
    oracle.end_trial(trial)
    return values


def search(oracle: Any) -> list[dict[str, Any]]:
    """Return the values of all trials that remain."""
    results = []
    while (trial := begin(oracle)) is not None:
        results.append(end(oracle, trial))
    return results


@pytest.mark.parametrize(
    "tuner", slow_but(["random", "bayesian", "hyperband"], ["random", "hyperband"])
)
def test_every_tuner_stays_in_the_space_and_ends(tuner: str, tmp_path: Path) -> None:
    lines: list[str] = []
    results = search(oracle_in(tmp_path, Search(SPACE, tuner, 14), lines.append))
    assert len(results) == len(lines) == (6 if tuner == "hyperband" else 14)
    for values in results:
        assert 1e-6 <= values["method.alpha"] <= 1e-2
        assert values["model.units"] in range(4, 9)
        assert values["method.attack"] in SPACE["method.attack"].values
    if tuner == "bayesian":  # the first nine trials are drawn at random
        assert max(map(height, results[9:])) > 0.9


def test_the_trials_of_a_search_depend_on_its_seed_alone(tmp_path: Path) -> None:
    plan = Search(SPACE, "random", 4)
    first, again = (search(oracle_in(tmp_path / name, plan)) for name in "ab")
    assert first == again
    of_seed_1 = search(oracle_in(tmp_path / "c", plan, seed=1))
    assert not [values for values in of_seed_1 if values in first]


def test_a_stopped_search_goes_on_with_the_trial_that_was_running(tmp_path: Path) -> None:
    plan = Search(SPACE, "random", 5)
    straight = search(oracle_in(tmp_path / "straight", plan))

    before = oracle_in(tmp_path / "cut", plan)
    before.save()
    results = [end(before, begin(before)), end(before, begin(before))]
    running = begin(before).trial_id
    after = oracle_in(tmp_path / "cut", plan)
    _reload(after, tmp_path / "cut" / "search" / "oracle.json")
    trial = begin(after)
    assert trial.trial_id == running == "2"
    results.append(end(after, trial))
    assert results + search(after) == straight


def test_a_trial_that_is_missing_in_the_state_of_the_oracle_is_drawn_again(tmp_path: Path) -> None:
    """A kill between trial_1/trial.json and oracle.json leaves such a trial."""
    plan = Search(SPACE, "random", 3)
    straight = search(oracle_in(tmp_path / "straight", plan))
    cut = oracle_in(tmp_path / "cut", plan)
    cut.save()
    results, file = [end(cut, begin(cut))], tmp_path / "cut" / "search" / "oracle.json"
    state = file.read_bytes()
    begin(cut)
    file.write_bytes(state)
    after = oracle_in(tmp_path / "cut", plan)
    _reload(after, file)
    assert list(after.trials) == ["0"]
    assert results + search(after) == straight


def test_a_trial_whose_sizes_do_not_fit_the_data_fails_alone(tmp_path: Path) -> None:
    """There are fewer images of digits than in this batch. Any other error ends the search."""
    space = "search.space={data.batch_size: {int: [32, 4096]}}"
    overrides = ["model={name: small_cnn, filters: [2], units: 2}", space]
    tuner = _Tuner(load_spec("digits_atlas_search", overrides, False), RunFolder(tmp_path))
    values = SimpleNamespace(values={"data.batch_size": 4096})
    with pytest.raises(kt.errors.FailedTrialError, match="data.batch_size: expected at most the"):
        tuner.run_trial(SimpleNamespace(trial_id="0", hyperparameters=values))


@pytest.mark.parametrize("name", ["oracle.json", "trial_0/trial.json"])
def test_a_damaged_state_is_an_error_of_one_line(name: str, tmp_path: Path) -> None:
    plan = Search(SPACE, "random", 1)
    search(oracle_in(tmp_path, plan))
    file, oracle = tmp_path / "search" / name, tmp_path / "search" / "oracle.json"
    content = file.read_text()
    for damaged in ("", content[: len(content) // 2], "[]", json.dumps({"seed": 1})):
        file.write_text(damaged)
        line = error_line(lambda: _reload(oracle_in(tmp_path, plan), oracle))
        assert "oracle.json: expected KerasTuner's state" in line


def test_a_trial_whose_folder_is_gone_is_an_error_of_one_line(tmp_path: Path) -> None:
    """Somebody removed it to save space. A new trial would get the number of another."""
    plan = Search(SPACE, "random", 2)
    search(oracle_in(tmp_path, plan))
    folder = tmp_path / "search" / "trial_0"
    shutil.rmtree(folder)
    line = error_line(lambda: _reload(oracle_in(tmp_path, plan), folder.parent / "oracle.json"))
    assert line.startswith(f"{folder}: expected the folder of a trial with its trial.json; put it")


def test_trials_of_a_stopped_search_are_scored_by_the_min_clean_of_now(tmp_path: Path) -> None:
    overrides = ["search.trials=2", "model={name: small_cnn, filters: [2], units: 2}"]

    def tuner(min_clean: float) -> Any:
        sets = [*overrides, f"search.min_clean={min_clean}"]
        return _Tuner(load_spec("digits_atlas_search", sets, False), RunFolder(tmp_path))

    first = tuner(0.9)
    trial = begin(first.oracle)
    first.oracle.update_trial(trial.trial_id, {CLEAN: 0.8, ROBUST: 0.5, "epochs": 3})
    trial.status = "COMPLETED"
    first.oracle.end_trial(trial)
    assert first.oracle.trials["0"].score == pytest.approx(-0.1)
    for min_clean, score in ((0.9, -0.1), (0.8, 0.5), (0.85, -0.05)):
        again = tuner(min_clean).oracle.trials["0"]
        assert again.score == pytest.approx(score)


def test_a_worker_has_the_settings_of_the_chief_and_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others trained trials that the tables took for those of the chief's config."""
    for name, value in ((search_cluster.PORT, "5001"), (search_cluster.IP, "10.0.0.7")):
        monkeypatch.setenv(name, value)
    of_chief, other = (load_spec("digits_atlas_search", [f"seed={seed}"], False) for seed in (0, 1))
    folder, searched = RunFolder(tmp_path / "run"), []
    folder.search.mkdir(parents=True)
    folder.mark("train", Train().inputs(of_chief, folder), done=False)

    class Worker(_Tuner):
        def __init__(self, spec: Any, folder: RunFolder):
            self.spec, self.folder, self.is_owner = spec, folder, False
            self.tuner_id, self.oracle = "one/1", SimpleNamespace(get_space=lambda: None)

        def search(self) -> None:
            self.on_trial_begin(None)
            searched.append(self.spec)

    monkeypatch.setattr(tuner, "_Tuner", Worker)
    tuner.work(of_chief, folder)
    assert searched == [of_chief]
    line = error_line(lambda: tuner.work(other, folder))
    expected = "expected the settings of the chief (the same config and --set for all), received"
    assert line.startswith(f"{folder.path}: {expected}")
    worker = Worker(of_chief, folder)
    worker.check_chief()
    folder.mark("train", Train().inputs(other, folder), done=False)  # the chief began again
    assert error_line(lambda: worker.on_trial_begin(None)).startswith(f"{folder.path}: {expected}")
    held = lock(folder.search / ".one%2F1.lock")
    line = error_line(lambda: tuner.work(of_chief, folder))
    os.close(held)
    expected = "expected another name for each worker, received 'one/1'"
    assert line == f"KERASTUNER_TUNER_ID: {expected}" and searched == [of_chief]
