"""The file of a suite: its runs, their names and labels, and mistakes in it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from pipelines import config as configs
from pipelines import suite_runner
from pipelines.children import Children
from pipelines.early_check import FOLDER
from pipelines.suite import Suite, is_suite, load_suite
from tests.errors import error_line
from tfrobust.errors import UserError


def suite(tmp_path: Path, text: str, *overrides: str) -> Suite:
    """Return the suite mine.yaml of this text."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_suite(path, list(overrides), tmp_path / "runs")


def test_a_suite_is_a_file_with_runs() -> None:
    assert is_suite(configs.find("digits_table"))
    assert is_suite(configs.find("mnist_table1_fixed"))  # its runs are in the included file
    assert not is_suite(configs.find("digits_adv"))


def test_there_is_a_run_for_each_combination_of_a_grid(tmp_path: Path) -> None:
    text = """
    grid: {seed: [0, 1]}
    runs:
      - digits_adv
      - {config: digits_atlas, label: A, grid: {method.beta: [0.0, 1.0]}}
    """
    loaded = suite(tmp_path, text).members
    assert [(m.name, m.label, m.config) for m in loaded] == [
        ("digits_adv_seed-0", "adv", "digits_adv"),
        ("digits_adv_seed-1", "adv", "digits_adv"),
        ("A_seed-0_beta-0.0", "A beta=0.0", "digits_atlas"),
        ("A_seed-0_beta-1.0", "A beta=1.0", "digits_atlas"),
        ("A_seed-1_beta-0.0", "A beta=0.0", "digits_atlas"),
        ("A_seed-1_beta-1.0", "A beta=1.0", "digits_atlas"),
    ]
    assert loaded[3].varied == {"seed": 0, "method.beta": 1.0}
    assert loaded[3].overrides == ("seed=0", "method.beta=1.0")


def test_a_long_label_or_grid_gives_names_that_a_folder_can_have(tmp_path: Path) -> None:
    text = f"{{runs: [digits_adv], grid: {{note: [{'ü' * 300}, {'ü' * 300}x]}}}}"
    one, other = (member.name for member in suite(tmp_path, text).members)
    for name in (one, other):
        (tmp_path / f".{name}.lock").touch()
        assert name.startswith("digits_adv_note-ü") and FOLDER.fullmatch(name)
    assert one != other


def test_a_config_is_looked_up_beside_the_file_of_the_suite_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file that is included is."""
    monkeypatch.chdir(tmp_path)
    for folder, method in (("study", "trades"), (".", "adv")):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "one.yaml").write_text(f"include: digits_{method}.yaml")
    Path("other.yaml").write_text("include: digits_mart.yaml")
    file = Path("study", "suite.yaml")
    file.write_text("runs: [one.yaml, other.yaml, digits_atlas]")
    members = load_suite(file, [], Path("runs")).members
    assert [(m.name, m.label, m.config) for m in members] == [
        ("one", "trades", "study/one.yaml"),
        ("other", "mart", "other.yaml"),
        ("digits_atlas", "atlas", "digits_atlas"),
    ]


def test_configs_of_one_method_are_no_seeds_of_each_other(tmp_path: Path) -> None:
    text = "{grid: {seed: [0, 1]}, runs: [cifar10_adv, cifar10_adv_10step, cifar10_atlas]}"
    labels = dict.fromkeys(member.label for member in suite(tmp_path, text).members)
    assert list(labels) == ["cifar10_adv", "cifar10_adv_10step", "atlas"]


def test_entries_that_differ_in_more_than_the_seed_are_no_seeds_of_each_other(
    tmp_path: Path,
) -> None:
    text = """
    runs:
      - {{config: digits_adv, grid: {{seed: [0, 1]}}{}}}
      - {{config: digits_adv, grid: {{seed: [2]}}, set: {{method.l2: {}}}{}}}
    """
    with pytest.raises(UserError, match=r"mine.yaml: runs: expected labels for entries that diff"):
        suite(tmp_path, text.format("", 0.0, ""))
    for mine in (("", 0.0, ", label: plain"), (", label: a", 0.0, ", label: a")):
        assert len(suite(tmp_path, text.format(*mine)).members) == 3
    same = text.format(", set: {method.l2: 0.0}", 0.0, "")
    assert {member.label for member in suite(tmp_path, same).members} == {"adv"}


def test_no_run_has_the_folder_of_the_surrogate(tmp_path: Path) -> None:
    text = "{surrogate: {config: digits_natural}, runs: [{config: digits_adv, label: surrogate}]}"
    line = error_line(lambda: suite(tmp_path, text))
    assert "runs: expected no run with the label surrogate, whose folder is that of the" in line


@pytest.mark.parametrize("label", ["report", "logs", "table.csv"])
def test_no_run_has_the_folder_of_the_page_or_the_logs_of_its_suite(
    tmp_path: Path, label: str
) -> None:
    """The page of the suite and the files of the run lay in one folder."""
    text = f"runs: [digits_adv, {{config: digits_adv, label: {label}}}]"
    line = error_line(lambda: suite(tmp_path, text))
    assert "runs: expected labels other than logs, report, table.csv, its own files" in line


def test_overrides_budget_and_run_replace_the_set_of_the_suite(tmp_path: Path) -> None:
    text = """
    set: {seed: 1, train.epochs: 2, method.l2: 0.0}
    budget: small
    budgets: {small: {train.epochs: 3, attacks: [{name: pgd, steps: 3}]}, large: {}}
    runs: [{config: digits_adv, set: {method.l2: 0.1}}]
    """
    (member,) = suite(tmp_path, text, "seed=5").members
    config = configs.load(configs.find(member.config), member.overrides)
    assert config["seed"] == 5 and config["train"]["epochs"] == 3
    assert config["method"]["l2"] == 0.1
    assert config["attacks"] == [{"name": "pgd", "steps": 3}]
    (member,) = suite(tmp_path, text, "budget=large", "runs[0].set={}").members
    config = configs.load(configs.find(member.config), member.overrides)
    assert config["train"]["epochs"] == 2 and config["method"]["l2"] == 0.0


def test_attacks_name_the_folder_of_the_surrogate_of_their_suite(tmp_path: Path) -> None:
    text = """
    surrogate: {config: digits_adv, set: {seed: 9}}
    set: {attacks: [{name: transfer, source: "${surrogate.folder}", attack: fgsm}]}
    runs: [digits_atlas]
    """
    loaded = suite(tmp_path, text)
    (member,) = loaded.members
    source = str(tmp_path / "runs" / "mine" / "surrogate")
    config = configs.load(configs.find(member.config), member.overrides)
    assert config["attacks"] == [{"name": "transfer", "source": source, "attack": "fgsm"}]
    assert loaded.surrogate is not None and loaded.surrogate.name == "surrogate"
    assert "seed=9" in loaded.surrogate.overrides
    without = suite(tmp_path, "runs: [digits_adv]\nsurrogate: {config: x}", "surrogate=null")
    assert without.surrogate is None


def test_a_run_that_was_killed_is_said_to_be_killed(tmp_path: Path) -> None:
    """The reason was the last line of its log, such as that of an epoch."""
    code = "import os; print('epoch 3 of 10', flush=True); os.kill(os.getpid(), 9)"
    line = [sys.executable, "-c", code]
    reason, summary, _ = suite_runner._run(line, tmp_path, "mine", os.environ, Children())
    assert reason == "killed by SIGKILL, as happens where memory runs out"
    assert reason in summary and str(tmp_path / "logs" / "mine.log") in summary


def test_a_run_that_outlived_its_suite_writes_to_no_other_log(tmp_path: Path) -> None:
    """A suite was killed, and its runs work on while the same suite is started again."""
    log = tmp_path / "mine.log"
    with log.open("wb") as former:
        former.write(b"epoch 3 of 10\n")
        former.flush()
        Children().run([sys.executable, "-c", "print('new')"], log, os.environ)
        former.write(b"epoch 4 of 10\n")
    assert log.read_text() == "new\n"


@pytest.mark.parametrize("begun", [True, False])
def test_a_suite_keeps_the_folders_of_runs_that_failed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    begun: bool,
) -> None:
    """A diverged loss or a full disk ends a run with the exit status of a refused one."""

    def fails(line: object, folder: Path, name: str, *_: object) -> tuple[str, str, int]:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        if begun:
            (folder / name).mkdir()
        return "no", "no", suite_runner.REFUSED

    monkeypatch.setattr(suite_runner, "_run", fails)
    path, runs = tmp_path / "mine.yaml", tmp_path / "runs"
    path.write_text("runs: [digits_adv, digits_natural]")
    if begun:
        folder, rows = suite_runner.run_suite(str(path), [], runs, smoke=True)
        assert [row.reason for row in rows] == ["no", "no"] and (folder / "digits_adv").is_dir()
    else:
        with pytest.raises(UserError, match="mine: every run is refused; digits_adv: no"):
            suite_runner.run_suite(str(path), [], runs, smoke=True)
        assert not runs.exists()
    begin, *ends = capsys.readouterr().out.splitlines()
    assert begin == f"mine: 2 runs to do, with logs in {runs / 'mine' / 'logs'}"
    assert sorted(ends) == ["digits_adv: no", "digits_natural: no"]


@pytest.mark.parametrize(
    ("grid", "override"),
    [
        ("{seed: [0, 1]}", "seed=3"),
        ("{method.alpha: [0.1, 0.2]}", "method=trades"),
        ("{'attacks[0].steps': [1, 2]}", "attacks=[fgsm]"),
        ("{method.alpha: [0.1], method: [atlas, adv]}", "seed=3"),
    ],
)
def test_a_run_has_the_values_of_the_grid_by_which_it_is_named(
    tmp_path: Path, grid: str, override: str
) -> None:
    """All runs of a grid over the seed had the seed of the command line, and were pooled."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"runs: [digits_atlas]\ngrid: {grid}\n")
    with pytest.raises(UserError, match=r"runs\[0\]: .*: expected a key that no grid varies"):
        load_suite(path, [override], tmp_path)


def test_a_grid_replaces_a_section_of_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "runs: [{config: digits_atlas, set: {threat: {norm: l2, eps: 1}}}]\n"
        "set: {threat.eps: 0.1}\ngrid: {threat.eps: [0.5]}\n"
    )
    (member,) = load_suite(path, [], tmp_path).members
    assert member.overrides == ("threat={eps: 1, norm: l2}", "threat.eps=0.5")


def test_a_suite_does_not_replace_the_report_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("runs: [digits_adv, digits_natural]")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "stages.json").write_text("{}")
    with pytest.raises(UserError, match="^mine: expected a folder that is not a run's"):
        suite_runner.run_suite(str(path), [], tmp_path / "runs", smoke=True)


def test_printed_commands_are_those_of_the_runs(tmp_path: Path) -> None:
    """Each run has its own folder in that of the suite, and the surrogate comes first."""
    text = "{surrogate: {config: digits_natural}, grid: {seed: [0, 1]}, runs: [digits_adv]}"
    first, *others = suite_runner.commands(suite(tmp_path, text), tmp_path / "my runs", False)
    end = shlex.join(["--workdir", str(tmp_path / "my runs" / "mine")])
    assert first.endswith(f"--set name=surrogate --set 'attacks=[]' {end} --stages train")
    assert others == [
        f"python -m pipelines.run digits_adv --set name=digits_adv_seed-{seed} --set seed={seed} "
        f"{end}"
        for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs: []", "runs: expected a list of runs"),
        ("runs: [{config: []}]", r"runs\[0\].config: expected a config's name, or a list of at le"),
        ("runs: [digits_adv, digits_adv]", r"runs that differ.*\['digits_adv'\]"),
        ("runs: [digits_advv]", "did you mean 'digits_adv'"),
        ("runs: [{config: digits_adv, sett: {}}]", r"runs\[0\].sett: unknown key.*'set'"),
        ("runs: [{config: digits_adv, grid: {seed: []}}]", r"runs\[0\].grid: expected a list"),
        ("runs: [3]", r"runs\[0\]: expected a config's name or a mapping, received 3"),
        ("runs: [{config: digits_adv, label: '..'}]", r"runs\[0\].label: expected one with lett"),
        ("{runs: [digits_adv], jobs: 0}", "jobs: expected int >= 1"),
        ("{runs: [digits_adv], budgets: {a: {}}}", "budget: expected one of a, received None"),
        ("{runs: [digits_adv], budget: b}", "budget: expected none .*received 'b'"),
        ("{runs: [digits_adv], budget: b, budgets: {bb: {}}}", "did you mean 'bb'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    assert re.search(message, error_line(lambda: suite(tmp_path, text)))
