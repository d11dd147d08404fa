"""Published weights under `tfrobust evaluate`, and their figures in docs/zoo.md."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import command_line
from pipelines.early_check import check_keys, read_config
from pipelines.runner import run
from tests.e2e.runs import ROOT
from tests.parity.zoo_weights import draw
from tfrobust import zoo
from tfrobust.errors import UserError
from tfrobust.models import load_network
from tfrobust.record import Record
from tfrobust.zoo.architectures import TRADES, wide
from tfrobust.zoo.loading import shapes

PAGE = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of random weights of an architecture `small`."""
    small = wide(TRADES, 10, 1)
    monkeypatch.setitem(zoo.ARCHITECTURES, "small", small)
    file = tmp_path / "WRN.npz"
    np.savez(file, **{name: draw(name, shape) for name, shape in shapes(small, 10).items()})
    return file


def test_published_weights_are_evaluated_and_exported(weights: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 32, 32, 3)).astype(np.float32) / 255
    network = zoo.load(weights, "small")
    labels = np.argmax(network(images), axis=-1)
    labels[:5] = np.where(labels[:5] == 9, 0, 9)
    np.savez(tmp_path / "my.npz", x_test=images, y_test=labels)
    overrides = [f"model.path={weights}", "model.architecture=small", "attacks=[]"]
    overrides += ["data.name=npz", f"data.path={tmp_path / 'my.npz'}", "threat.eps=8/255"]
    overrides += ["stages=[attack_eval, export]", "evaluation.batch_size=20"]
    folder = run("evaluate", overrides, tmp_path / "runs", None, smoke=False)
    assert Record.load(folder).clean_accuracy == 0.75
    exported = load_network(folder / "saved_model")
    np.testing.assert_allclose(exported(images), network(images), atol=1e-5)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.architecture=smal", r"model.architecture: .*did you mean 'small'"),
        ("model.outputs=probabilities", "model.outputs: expected none"),
        ("model.output=fc", "model.output: expected none"),
        ("model.path=WRN.pt", "model.path: 'WRN.pt': no such file"),
    ],
)
def test_wrong_settings_beside_an_architecture_are_refused(
    weights: Path, tmp_path: Path, override: str, line: str
) -> None:
    overrides = [f"model.path={weights}", "model.architecture=small"]
    overrides += ["data.name=digits", "threat.eps=0.1", override]
    with pytest.raises(UserError, match=line):
        run("evaluate", overrides, tmp_path / "runs", None, smoke=False)


def test_option_architecture_sets_the_threat_of_robustbench(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Overrides come after the option, and replace what it sets."""
    calls: list[Any] = []

    def run_command(name: str, options: argparse.Namespace) -> None:
        calls.append((name, options.overrides))

    monkeypatch.setattr(command_line, "_run", run_command)
    arguments = ["--architecture", "wrn_28_10", "--set", "threat.eps=0.031"]
    for network in (["WRN.pt"], ["--model", "WRN.pt"]):
        command_line.run_command("evaluate", [*network, *arguments], "tfrobust evaluate")
    expected = ["model.path=WRN.pt", "model.architecture=wrn_28_10"]
    expected += ["data.name=cifar10", "threat.eps=8/255", "threat.eps=0.031"]
    assert calls == [("evaluate", expected)] * 2
    with pytest.raises(SystemExit):
        command_line.run_command("evaluate", ["a.pt", "--model", "b.pt"], "tfrobust evaluate")


def test_file_of_torch_without_an_architecture_is_refused_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "WRN.pt").touch()
    overrides = [f"model.path={tmp_path / 'WRN.pt'}", "data.name=digits", "threat.eps=0.1"]
    with pytest.raises(UserError, match="tfrobust evaluate FILE --architecture NAME"):
        run("evaluate", overrides, tmp_path / "runs", None, smoke=False)


def test_published_commands_set_the_published_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(command_line, "_run", lambda name, options: calls.append(options.overrides))
    for entry in zoo.PUBLISHED:
        command_line.main(shlex.split(entry.command)[1:])
        _, config = read_config("evaluate", calls.pop())
        check_keys(config)
        assert config["model"] == {"path": f"{entry.name}.pt", "architecture": entry.architecture}
        assert config["data"]["name"] == entry.data
        threat = config["threat"]
        assert (threat["norm"], str(threat["eps"])) == (entry.norm, entry.eps)
        figures = {"clean": entry.clean / 100, "AutoAttack": entry.autoattack / 100}
        assert config["paper"] == pytest.approx({"source": entry.paper, **figures})


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_page_has_every_architecture(name: str) -> None:
    assert f"\n| `{name}` |" in PAGE


@pytest.mark.parametrize("entry", zoo.PUBLISHED, ids=lambda entry: f"{entry.data}-{entry.name}")
def test_page_has_every_published_figure(entry: zoo.Published) -> None:
    assert entry.architecture in zoo.ARCHITECTURES
    figures = f"| {entry.clean:.2f} | {entry.autoattack:.2f} |"
    assert f"| {entry.name} | `{entry.architecture}` | {entry.paper} {figures}" in PAGE
    assert f"\n{entry.command}\n" in PAGE
