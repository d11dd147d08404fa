"""The space of a search, mistakes in it, and the best trials by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines import config as configs
from pipelines import search_cluster
from pipelines.resolve import load_spec
from pipelines.space import Range, ranges
from pipelines.spec import RUN_STAGES, trial_spec
from tests.errors import error_line
from tfrobust.errors import UserError
from tfrobust.report import SearchTrial, best_trial, read_trials, unbeaten, write_trials

NAME = "digits_atlas_search"
TINY = ["model={name: small_cnn, filters: [2], units: 2}"]


def test_the_keys_of_a_space_are_paths_or_nested() -> None:
    log, linear = {"log": [1e-6, 1e-3]}, {"linear": [0, 10]}
    flat = ranges({"method.alpha": log, "method.beta": linear})
    assert flat == ranges({"method": {"alpha": log, "beta": linear}})
    assert flat["method.beta"].plain == {"linear": [0.0, 10.0]}
    # --set may have added the second mapping: its range replaces the first, and null removes it.
    both = ranges({"method.alpha": log, "method": {"alpha": linear, "beta": linear}})
    assert both == {"method.alpha": Range("linear", [0, 10]), "method.beta": flat["method.beta"]}
    assert list(ranges({"method.alpha": log, "seed": linear, "method": {"alpha": None}})) == [
        "seed"
    ]


def test_the_ends_of_a_range_may_be_fractions() -> None:
    space = ranges({"threat.eps": {"linear": ["2/255", "8/255"]}})
    assert space["threat.eps"].values == [2 / 255, 8 / 255]


def test_a_drawn_number_is_rounded_to_four_digits_within_its_range() -> None:
    log = Range("log", [1e-6, 8 / 255])
    assert log.value(0.000123456) == 0.0001235
    assert log.value(8 / 255) == 0.03137
    assert Range("linear", [0, 2 / 3]).value(2 / 3) == 2 / 3  # 0.6667 is outside
    assert Range("linear", [1 / 3, 1]).value(1 / 3) == 1 / 3  # 0.3333 is outside
    assert Range("int", [1, 4]).value(3.0) == 3
    choice = Range("choice", [[4, 8], "fgsm", None, {"name": "pgd", "steps": 2}])
    assert [choice.value(text) for text in choice.drawn] == choice.values


MISTAKES = {
    "search.space.method={alhpa: {log: [1e-6, 1]}}": (
        r"^--set .*: search.space.method.alhpa: unknown key: .*did you mean 'alpha'"
    ),
    "search.space.methd.alpha={log: [1, 2]}": (
        "search.space.methd.alpha: expected one of .*did you mean 'method'"
    ),
    "search.space.method.alpha={lgo: [1, 2]}": "search.space.method.alpha: .*did you mean 'log'",
    "search.space.method.alpha=3": "search.space.method.alpha: expected a range such as .* 3$",
    "search.space.method.alpha={log: [0, 1]}": (
        r"search.space.method.alpha.log: expected two rising numbers > 0, received \[0, 1\]"
    ),
    "search.space.method.alpha={log: [1, 0.5]}": "alpha.log: expected two rising numbers > 0",
    "search.space.method.alpha={linear: [0, 1, 2]}": "alpha.linear: expected two rising numbers",
    "search.space.method.alpha={linear: [0, big]}": "alpha.linear: expected a number or a fraction",
    "search.space.method.alpha={linear: [-1, 1]}": (
        "search.space.method.alpha: expected a number >= 0, received -1"
    ),
    "search.space.model.units={int: [1.5, 4]}": "units.int: expected two rising ints",
    "search.space.model.units={linear: [4, 8]}": "model.units: expected a valid integer",
    "search.space.model.kernel={choice: []}": "kernel.choice: expected a list of values",
    "search.space.model.kernel={choice: [3, 3]}": "kernel.choice: expected a list of values",
    "search.space.optimizer.name={choice: [sgd, adm]}": (
        "search.space.optimizer.name: .*did you mean 'adam'"
    ),
    "search.space.attacks={choice: [pgd, fgsm]}": "search.space.attacks: expected one of data, ",
    "search.space.seed.x={int: [0, 1]}": "search.space.seed",
    "search.space={}": "search.space: expected a mapping of keys of the config, each a range",
    "search.space=3": "search.space: expected a mapping of keys of the config",
    "search={space: {method.alpha: {log: [1e-4, 1]}}}": "search.trials: expected int >= 1",
    "search.trials=0": "search.trials: expected int >= 1, received 0",
    "search.trials=two": "search.trials: expected a valid integer",
    "search.tuner=bayes": "search.tuner: .*did you mean 'bayesian'",
    "search.trails=3": "search.trails: unknown key: .*did you mean 'trials'",
    "search.min_clean=98": r"search.min_clean: expected a fraction in \[0, 1\], received 98",
    "search=[1]": "search: expected a mapping with 'space'",
    "stages=[search, train]": "stages: expected one of report, search, received 'train'",
    "stages=[report]": "stages: expected search, and report or not",
    "search=null": r"search: expected a section \(stages has search\)",
    "data.validation=0": "data.validation: expected examples to hold out",
    "method.l2=-1": "^--set method.l2=-1: method.l2: expected",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(override: str) -> None:
    overrides = [*TINY, "train.schedule=constant", override]
    assert re.search(MISTAKES[override], error_line(lambda: load_spec(NAME, overrides, False)))


def test_a_range_of_epochs_is_refused_for_hyperband() -> None:
    epochs = ["search.tuner=hyperband", "search.space.train.epochs={int: [4, 8]}"]
    with pytest.raises(UserError, match="search.space.train.epochs: expected none: hyperband"):
        load_spec(NAME, [*TINY, *epochs], False)
    assert load_spec(NAME, [*TINY, "search.tuner=hyperband", "search.trials=null"], False).search


def test_the_ends_of_a_range_are_checked_at_the_first_value_of_the_others() -> None:
    both = [
        "search.space.train.epochs={int: [4, 8]}",
        "search.space.train.epsilon_ramp_epochs={int: [1, 6]}",
    ]
    expected = "search.space.train.epsilon_ramp_epochs: expected a number from 0 to the 4 epochs"
    with pytest.raises(UserError, match=expected):
        load_spec(NAME, [*TINY, *both], False)


def test_the_values_of_a_trial_replace_keys_of_its_config() -> None:
    config = load_spec(NAME, TINY, False).config
    values = {"method.alpha": 0.5, "method.attack": {"name": "pgd", "steps": 3}, "seed": 4}
    spec = trial_spec("one", config, values)
    assert spec.method.keywords["alpha"] == 0.5 and spec.method.keywords["attack"].steps == 3
    assert spec.seed == 4 and spec.stages == list(RUN_STAGES) and spec.search is None
    assert config["method"]["alpha"] == 2e-3  # the config of the search is unchanged


def test_the_requirements_of_a_search_are_those_of_its_best_config() -> None:
    """They were refused, as those of a training without an evaluation."""
    config = load_spec(NAME, [*TINY, "require.robust_accuracy=0.3"], False).config
    spec = trial_spec("best", config, {"method.alpha": 0.5})
    assert spec.config["require"] == {"robust_accuracy": 0.3} and spec.requirements is not None


def test_a_reference_follows_the_key_that_is_searched(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"include: {configs.find(NAME)}\nmethod: {{l2: '${{method.alpha}}'}}\n")
    spec = load_spec(str(path), TINY, False)
    assert spec.config["method"]["l2"] == 2e-3
    trial = trial_spec("one", spec.unresolved, {"method.alpha": 0.5})
    assert trial.method.keywords["l2"] == trial.config["method"]["l2"] == 0.5


def trials(*accuracies: tuple[float, float]) -> list[SearchTrial]:
    """Return completed trials 0, 1, ... of these clean and robust accuracies."""
    return [
        SearchTrial(str(place), {"method.alpha": 0.1 * place}, "completed", 3, clean, robust)
        for place, (clean, robust) in enumerate(accuracies)
    ]


FAILED = SearchTrial("9", {"method.alpha": 7.0}, "failed", reason="the loss, so, is not finite")


def test_the_pareto_front_by_hand() -> None:
    """Trial 1 beats 0 in both accuracies and 4 in one; 3 equals it."""
    completed = trials((0.90, 0.50), (0.95, 0.60), (0.99, 0.40), (0.95, 0.60), (0.95, 0.55))
    assert [trial.name for trial in unbeaten([FAILED, *completed])] == ["1", "3", "2"]
    assert unbeaten([FAILED]) == []


def test_the_best_trial_is_the_most_robust_of_enough_clean_accuracy() -> None:
    completed = trials((0.90, 0.70), (0.96, 0.60), (0.98, 0.60), (0.99, 0.40))
    for least, best in ((None, 0), (0.95, 2), (0.985, 3)):
        assert best_trial([FAILED, *completed], least) == completed[best]
    assert best_trial(completed, 0.999) is None
    assert best_trial([FAILED], None) is None


def test_a_table_of_trials_is_read_back_and_a_damaged_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    values: list[Any] = [0.0001235, 3, "fgsm", {"name": "pgd", "steps": 2}, [4, 8], None, True]
    completed = [
        SearchTrial(str(place), {"method.attack": value}, "completed", 2, 0.9, 0.5)
        for place, value in enumerate(values)
    ]
    write_trials(path, ["method.attack"], completed)
    assert read_trials(path) == (["method.attack"], completed)
    write_trials(path, ["method.alpha"], [FAILED, *trials((0.5, 0.25))])
    assert path.read_text().splitlines() == [
        "trial,method.alpha,epochs,val_accuracy,val_robust_accuracy,status,pareto,reason",
        '9,7.0,,,,failed,,"the loss, so, is not finite"',
        "0,0.0,3,0.5,0.25,completed,yes,",
    ]
    _, (failed, _) = read_trials(path)
    assert failed.reason == FAILED.reason and math.isnan(failed.clean)
    rows = read_trials(path)
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as a spreadsheet saves it
    assert str(read_trials(path)) == str(rows)
    for damaged in (b"", b"trial\n1\n", b"\xff\xfe", path.read_bytes().replace(b"0.25", b"25")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="trials.csv: expected the trials of a search"):
            read_trials(path)


def test_the_role_and_address_of_a_process_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The chief is on the loopback interface unless an address is set."""
    for name in (search_cluster.ID, search_cluster.IP, search_cluster.PORT):
        monkeypatch.setenv(name, "")  # so that the address that `role` sets does not outlive this
    assert search_cluster.role() == "alone"
    monkeypatch.setenv(search_cluster.ID, "chief")
    with pytest.raises(UserError, match="KERASTUNER_ORACLE_PORT: expected a port"):
        search_cluster.role()
    monkeypatch.setenv(search_cluster.PORT, "5001")
    assert search_cluster.role() == "chief" and search_cluster.address() == "127.0.0.1:5001"
    monkeypatch.setenv(search_cluster.IP, "10.0.0.7")
    monkeypatch.setenv(search_cluster.ID, "worker1")
    assert search_cluster.role() == "worker" and search_cluster.address() == "10.0.0.7:5001"
    monkeypatch.delenv(search_cluster.ID)
    with pytest.raises(UserError, match="KERASTUNER_TUNER_ID: expected chief, or a name"):
        search_cluster.role()
