"""Commands: mistakes are answered before TensorFlow is imported; importing has no effects."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from argparse import Namespace
from pathlib import Path

import pytest

from pipelines import command_line, early_check
from pipelines import config as configs
from pipelines.resolve import load_spec
from tests.products import slow_but
from tfrobust import __version__
from tfrobust.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# An import of TensorFlow ends in a traceback.
BLOCKED = "import runpy, sys; sys.modules['tensorflow'] = None; sys.argv[0] = 'python'; "
COMMANDS = {
    "tfrobust": "from pipelines.command_line import main; main()",
    "run": "runpy.run_module('pipelines.run', run_name='__main__')",
    "compare": "runpy.run_module('pipelines.compare', run_name='__main__')",
}
SEARCH = "search={trials: 1, space: %s}"
# Overrides of digits_atlas with one typing mistake each.
MISTAKES: list[list[str]] = [
    ["methd.alpha=1"],
    ["method.alhpa=1"],
    ["method.name=atlsa"],
    ["method.attack={name: pgdd}"],
    ["method.attack={name: pgd, step: 3}"],
    ["method.attack.steps=3"],
    ["data.name=mnits"],
    ["data.bacth_size=3"],
    ["data.extra={name: digits, shar: 0.5}"],
    ["threat.epsilon=0.1"],
    ["model.depth=3"],
    ["model={name: small_cnn, unit: 3}"],
    ["model={path: x.keras, output_name: y}", "method=null", "stages=[attack_eval]"],
    ["train.epoch=3"],
    ["train.schedule.name=guide"],
    ["train.schedule={name: guided, facto: 2}"],
    ["train.validation_attack=pdg"],
    ["optimizer.momentm=0.9"],
    ["evaluation.mod=each"],
    ["evaluation.corruptions.example=3"],
    ["require.robust_acuracy=0.4"],
    ["attacks=pgdd"],
    ["attacks=[pgd, {name: autoattack, versio: rand}]"],
    ["attacks=[{name: fgsm, exmples: 3}]"],
    ["name=a/b"],
    ["seed=1", "trian=2"],
    [SEARCH % "{method.alhpa: {log: [1e-6, 1e-3]}}", "stages=[search]"],
    [SEARCH % "{methd.alpha: {log: [1e-6, 1e-3]}}"],
    [SEARCH % "{optimizer.name: {choice: [sgdd]}}", "stages=[search]"],
    ["search={trial: 1}"],
]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    settings |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env=settings, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("overrides", MISTAKES, ids="+".join)
def test_early_check_gives_the_message_of_the_full_check(
    overrides: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as full:
        load_spec("digits_atlas", overrides, smoke=False)
    with pytest.raises(UserError) as early:
        early_check.check("digits_atlas", overrides, tmp_path)
    assert str(early.value) == str(full.value)


CONFIGS = [*configs.available(), *configs.suites()]
# A run, a conditional network, a search, a file, data beside the data set, a suite, a grid.
FAST = ("digits_atlas", "digits_oats", "digits_atlas_search", "digits_finetune", "cifar10_rst",
        "digits_table", "cifar10_table1")  # fmt: skip


@pytest.mark.parametrize("name", slow_but(CONFIGS, FAST))
def test_every_config_and_suite_passes_the_early_check(name: str, tmp_path: Path) -> None:
    data = ["threat.eps=0.3", "data.name=npz", "data.path=x.npz"]
    required = {
        "evaluate": [*data, "model.path=x.keras"],
        "harden": [*data, "train.init_from=x.keras"],
    }
    early_check.check(name, required.get(name, []), tmp_path)


def test_early_check_leaves_wrong_values_to_the_full_check(tmp_path: Path) -> None:
    for override in ("method=3", "attacks=3", "threat=[1]", "model={name: [1]}", "train=x"):
        early_check.check("digits_atlas", [override], tmp_path)


def test_early_check_looks_at_the_members_of_a_suite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=": --set trian.epochs=1: trian: unknown key: .*'train'"):
        early_check.check("digits_table", ["trian.epochs=1"], tmp_path)
    with pytest.raises(UserError, match="--stages: expected none, for a suite"):
        early_check.check("digits_table", [], tmp_path, ["train"])


@pytest.mark.parametrize(
    ("command", "arguments", "line"),
    [
        ("run", ["digits_atlass"], "did you mean 'digits_atlas'"),
        ("run", ["digits_atlas", "--smok"], "did you mean '--smoke'"),
        ("run", ["--smoke", "digits_atlas", "--set", "method.alhpa=1"], "did you mean 'alpha'"),
        ("run", ["digits_atlas", "--stages", "train,reprot"], "did you mean 'report'"),
        ("run", ["digits_atlas", "--stages", ","], "--stages: expected at least one stage, rec"),
        (
            "run",
            ["digits_table", "--stages", ""],
            "--stages: expected at least one stage, received",
        ),
        ("run", ["a", "--smoke", "b"], "expected one config, received a, b; usage: python -m"),
        ("run", ["digits_adv", "seed=3"], "received digits_adv, seed=3 (did you mean --set seed=3"),
        ("run", ["elsewhere/digits_atlass.yaml"], "none there (did you mean 'digits_atlas'?)"),
        ("run", [], "expected one config, received none"),
        ("run", ["digits_atlas", "--set"], "--set: expected one argument"),
        ("compare", ["runs/a"], "expected two run folders or more, received ['runs/a']"),
        ("compare", ["runs/a", "runs/b", "--outt", "x"], "did you mean '--out'"),
        ("compare", ["no/run", "no/more"], "run/eval.json: expected"),
        ("tfrobust", ["run", "digits_atlas", "--set", "trian.epochs=1"], "did you mean 'train'"),
        ("tfrobust", ["evaluate", "x", "--set", "evaluation.mod=each"], "did you mean 'mode'"),
        ("tfrobust", ["evaluate", "x.keras", "y.keras"], "expected one network at most"),
        ("tfrobust", ["evaluate", "x.keras"], "threat.eps: expected a value, received none; --set"),
        ("tfrobust", ["evaluate", "--set", "attacks=pdg"], "--set attacks=pdg: attacks[0].name"),
        (
            "tfrobust",
            ["evaluate", "--set", "attacks={name: pgd}", "--set", "attacks.name=pdg"],
            "--set attacks.name=pdg: attacks[0].name",
        ),
        ("run", ["digits_adv", "--set", "attacks=PGD"], "did you mean 'pgd'"),
        ("tfrobust", ["evalute"], "did you mean 'evaluate'"),
        ("tfrobust", [], "COMMAND: expected one of run, evaluate, harden, compare, received none"),
        ("tfrobust", ["harden", "x.keras", "--data", "photos"], "--eps: expected a value (4/255"),
        ("tfrobust", ["harden", "x.keras", "--dta", "photos"], "did you mean '--data'"),
    ],
)
def test_typing_mistake_is_one_line_without_tensorflow(
    command: str, arguments: list[str], line: str
) -> None:
    process = python(BLOCKED + COMMANDS[command], *arguments)
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert line in process.stderr


def test_file_in_the_working_directory_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").touch()
    for name in ("digits", "digts.yaml"):
        with pytest.raises(UserError, match=r"\(did you mean 'digits.yaml'\?\)"):
            configs.find(name)
    Path("runs", "mine").mkdir(parents=True)
    Path("runs", "mine", "config.yaml").touch()
    with pytest.raises(UserError, match=r"file \(did you mean 'runs/mine/config.yaml'\?\)$"):
        configs.find("runs/mine")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_are_printed_without_tensorflow(command: str) -> None:
    usage = python(BLOCKED + COMMANDS[command], "--help")
    assert (usage.returncode, usage.stderr) == (0, "") and usage.stdout.startswith("usage: ")
    version = python(BLOCKED + COMMANDS[command], "--version")
    assert (version.returncode, version.stdout) == (0, f"tfrobust {__version__}\n")


def test_a_folder_in_the_home_is_not_made_under_the_name_of_a_tilde() -> None:
    for command, option in (("run", "--workdir"), ("compare", "--out")):
        parser = command_line._parser(command, "tfrobust")
        options, _ = command_line._parse(parser, [f"{option}=~/mine"])
        assert getattr(options, option.removeprefix("--")) == Path.home() / "mine"


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("caf\udce9", "expected a path in UTF-8, received 'caf\\udce9'"),
        ("~nobody-at-all/x", "path: expected a path in the home of a known user, received '~nobo"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_in_one_line(
    folder: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorFlow writes to no path that is not UTF-8."""
    with pytest.raises(SystemExit):
        command_line.run_command("run", ["digits_adv", "--workdir", folder], "tfrobust run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --workdir: {message}")


@pytest.mark.parametrize(("data", "kind"), [("MY.NPZ", "npz"), ("photos", "folder")])
def test_harden_knows_arrays_by_their_suffix_in_any_case(data: str, kind: str) -> None:
    options = Namespace(data=data, eps="4/255", overrides=[])
    assert f"data.name={kind}" in command_line._hardened(["good.keras"], options)


@pytest.mark.parametrize(
    ("command", "arguments", "line"),
    [
        ("evaluate", "a.keras --set model.path=b.keras", "none beside 'a.keras', which is model.p"),
        ("harden", "a.keras --data b --eps 0.1 --set threat.eps=1", "none beside '0.1', which is"),
        ("run", "digits_atlas_search --set method.alpha=1", "search.space.method.alpha=null takes"),
    ],
)
def test_a_value_that_would_be_left_out_in_silence_is_refused(
    command: str, arguments: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command_line.run_command(command, arguments.split(), "tfrobust")
    error = capsys.readouterr().err
    assert error.startswith("error: --set ") and line in error and error.count("\n") == 1


def test_installed_script_runs_the_command_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"tfrobust": "pipelines.command_line:main"}


def test_importing_pipelines_has_no_side_effects() -> None:
    code = (
        "import os, sys; before = dict(os.environ), os.fstat(2).st_ino, sys.stderr;"
        "import pipelines, pipelines.run, pipelines.command_line, pipelines.early_check;"
        "import pipelines.runner, absl.flags;"
        "assert before == (dict(os.environ), os.fstat(2).st_ino, sys.stderr);"
        "assert not {'smoke', 'workdir', 'out'} & set(absl.flags.FLAGS)"
    )
    process = python(code)
    assert process.returncode == 0, process.stderr
