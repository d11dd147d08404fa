"""The command line: exit codes, errors of one line, and no files left after a mistake."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import config as configs
from pipelines import quiet
from pipelines.runner import main, run
from tests.e2e.conftest import Command
from tests.e2e.runs import start
from tfrobust.errors import UserError

MISTAKES = {
    ("method.alhpa=1",): "method.alhpa: unknown key: .*did you mean 'alpha'",
    ("methd.alpha=1",): "^--set methd.alpha=1: methd: unknown key.*did you mean 'method'",
    ("method.alpha=abc",): "method.alpha: expected a valid number, received 'abc'",
    ("method.alpha=-1",): "method.alpha: expected a number >= 0, received -1",
    ("method.name=atlsa",): "method.name: .*did you mean 'atlas'",
    ("method.attack.steps=3",): "method.attack.steps: unknown key",
    ("data.name=mnits",): "data.name: .*did you mean 'mnist'",
    ("data.batch_size=0",): "data.batch_size: expected int >= 1, received 0",
    ("data={name: npz, path: nowhere.npz}",): "data.path: .*nowhere.npz",
    ("data.validation=0", "train.schedule=guided"): "data.validation: expected examples to hold",
    ("threat.eps=8/0",): "threat.eps: expected a fraction",
    ("threat.eps=big",): "threat.eps: expected a number or a fraction",
    ("threat.box=[0, 255]",): "threat.box: expected .0, 1., as the data have it",
    ("threat.norm=l3",): "threat.norm: expected one of l1, l2, linf",
    ("train.epochs=1.5",): "train.epochs: expected a valid integer, received 1.5",
    ("train.epochs=10",): "train.epsilon_ramp_epochs: expected a number from 0 to the 10",
    (
        "train.epsilon_warmup_epochs=30",
    ): "train.epsilon_ramp_epochs: expected a number from 0 to the 10 epochs after the warm-up",
    ("train.monitor=val_acuracy",): "train.monitor: .*did you mean 'val_accuracy'",
    (
        "train.init_from=no.keras",
    ): "train.init_from: expected a .keras or .h5 file, or a run folder",
    ("train.schedule.name=guide",): "train.schedule.name: .*did you mean 'guided'",
    ("optimizer.momentum=high",): "optimizer.momentum: expected a valid number",
    ("model.depth=3",): "model.depth: unknown key",
    ("train.init_from=no.keras", "model.outputs=probabilities"): "model.outputs: expected none",
    ("model={path: x.keras}",): "model.path: expected a model.name where a method trains",
    ("precision=fp16",): "precision: expected one of",
    ("seed=-3",): "seed: expected an int from 0",
    ("attacks=[{name: pgdd}]",): "attacks.0..name: .*did you mean 'pgd'",
    ("attacks=[pgd, pgd]",): "attacks: expected attacks whose labels differ",
    ("attacks=[{name: pgd, steps: 0}]",): "attacks.0..steps: expected int >= 1, received 0",
    ("stages=[trian]",): "stages: .*did you mean 'train'",
    ("method.alpha=${nope}",): "nope",
    ("data.name=${oc.env:HOME}",): "data.name: expected references to keys, such as .{threat.eps}",
    ("seed=9223372036854775808",): "seed: expected an int of at most 64 bits",
    ("train.eps=-1",): "train.eps: expected a number >= 0, received -1",
    ("optimizer.momentum=2",): "optimizer: .*momentum",
    ("optimizer={name: adam, beta_1: 2}",): r"optimizer.beta_1: expected a number in \[0",
    ("optimizer={name: adamw, weight_decay: -1}",): "optimizer.weight_decay: expected a number",
    ("method=null", "stages=[attack_eval]"): "model.path: expected the network to evaluate",
    ("method.attack={name: saved_images, path: x.npz}",): "method.attack: expected an attack that",
    ("method.attack={name: transfer, source: x}",): "method.attack.source: expected a .keras",
    ("method.attack=rays", "threat.norm=l2"): "method.attack.threat.norm: expected linf for RayS",
    ("attacks=[pgd, rays]", "threat.norm=l2"): r"attacks\[1\].threat.norm: expected linf for RayS",
    ("optimizer.learning_rate=-1",): "optimizer.learning_rate: expected a number > 0",
    ("attacks={name: transfer, source: nowhere}",): r"attacks\[0\].source: expected a .keras",
    ("attacks={name: saved_images, path: no.npz}",): r"attacks\[0\].path: expected an .npz file",
    ("evaluation.mode=cascad",): "evaluation.mode: .*did you mean 'cascade'",
    ("model.filters=[0]",): r"model.filters\[0\]: expected int >= 1, received 0",
    ("model={name: small_cnn, filters: [2, 2, 2, 2]}",): "model.filters: expected at most 3",
    (
        "train.schedule={name: guided, factor: 2}",
    ): r"train.schedule.factor: expected a number in \(0",
    ("train.schedule={name: piecewise, epochs: []}",): "train.schedule.epochs: expected rising",
    ("train=null",): "train: expected a section",
    ("seed=5000000000",): "seed: expected an int from 0",
    ("threat.eps=.inf",): "threat.eps: expected a number",
    ("paper={source: x, clean: 99.5}",): r"paper.clean: expected a number in \[0, 1\]",
    ("attacks=[{name: pgd, label: clean}]",): "attacks: expected labels other than",
    ("threat=[1]",): "threat: expected",
    ("require.robust_accuracy=45",): "require.robust_accuracy: expected a fraction above 0 and",
    ("require.level=0.9",): "require.clean_accuracy: expected a value, or one for robust_accuracy",
    ("require={clean_accuracy: 0.9, level: 95}",): "require.level: expected a fraction from 0.5",
    ("require.clean_accuracy=0.9", "stages=[train]"): "require: expected the stage attack_eval",
    ("require.robust_accuracy=0.4", "attacks=[]"): "require.robust_accuracy: expected none",
    ("method.alpha",): "--set: expected key=value",
}


@pytest.mark.parametrize("overrides", MISTAKES, ids="+".join)
def test_a_mistake_is_one_line_and_writes_nothing(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=MISTAKES[overrides]) as error:
        run("digits_atlas", list(overrides), tmp_path / "runs", None, smoke=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_mistake_in_a_config_file_names_the_file(tmp_path: Path) -> None:
    def fails(text: str, match: str) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        with pytest.raises(UserError, match=match) as error:
            run(str(path), [], tmp_path / "runs", None, smoke=False)
        assert "\n" not in str(error.value) and "mine.yaml" in str(error.value)

    fails("method: [1, 2", "expected YAML")
    fails("- 1\n- 2\n", "expected a mapping")
    fails("include: nowhere.yaml\n", "include: expected a file")
    fails("include: digits_atlass.yaml\n", "did you mean 'digits_atlas.yaml'")
    fails("include: base/digits.yaml\n", "method: expected a section")
    fails("include: mine.yaml\n", "does not include itself")
    fails("seed: 1\n", "expected a value for threat, data")
    base = configs.CONFIGS / "base" / "digits.yaml"
    fails(f"include: {base}\n", "method: expected a section")
    fails(f"include: {base}\nmethod: atlas\n", "method: expected a value for alpha, beta")


def test_exit_codes_and_messages_of_the_command(command: Command, tmp_path: Path) -> None:
    wrong = start("digits_atlass", workdir=tmp_path)
    _, err = wrong.communicate()
    (line,) = err.splitlines()  # no line of TensorFlow
    assert wrong.returncode == 2 and line.startswith("error: ")
    assert "did you mean 'digits_atlas'" in line

    flag = command("digits_atlas", "--smok")
    assert flag.returncode == 2 and "Traceback" not in flag.stderr

    both = command("digits_atlas", "digits_adv")
    assert both.returncode == 2 and "expected one config" in both.stderr

    process = start("digits_natural", "--smoke", workdir=tmp_path, overrides=["attacks=fgsm"])
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")


def test_the_resolved_config_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"overrides": ["threat.eps=2/10"], "smoke": False, "print_config": True}
    main("digits_atlas", Namespace(workdir=Path("runs"), **options))
    assert "eps: 2/10" in capsys.readouterr().out


def test_only_the_greeting_of_tensorflow_is_hidden(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "W0000 00:00:1.2 7 gpu_device.cc:1] Cannot dlopen some GPU libraries.\nits second line\n"
    greeting = (
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        "I0000 00:00:1.2 7 port.cc:153] oneDNN custom operations are on.\n"
        "E0000 00:00:1.2 7 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)\n"
    )
    config = SimpleNamespace(list_physical_devices=lambda: os.write(2, (greeting + text).encode()))
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(config=config))
    quiet.import_quietly()
    assert capfd.readouterr().err == text

    monkeypatch.setitem(sys.modules, "tensorflow", None)  # an import that fails
    with pytest.raises(ImportError):
        quiet.import_quietly()
    os.write(2, b"later")
    assert capfd.readouterr().err == "later"


def test_missing_data_set_is_one_line(command: Command, tmp_path: Path) -> None:
    run = command(
        "mnist_adv", "--set", f"data.dir={tmp_path / 'none'}", "--set", "data.download=false"
    )
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert str(tmp_path / "none") in line and "TFDS_DATA_DIR" in line
