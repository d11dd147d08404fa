"""What a config asks for reaches the evaluation of a run, its verdict and its exports."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from pipelines.resolve import load_spec
from pipelines.run_folder import RunFolder
from pipelines.sections import Requirements
from pipelines.spec import Spec
from pipelines.stages import attack_eval, verdict
from pipelines.stages.evaluated_network import load_evaluated
from pipelines.stages.export import Export, Measured, _row
from tests.unit.test_compare import saved_run
from tfrobust.errors import UserError
from tfrobust.evaluation import Evaluation, Result
from tfrobust.report.compare import Difference

LAMBDAS = ["evaluation.lambdas=[0.2, 1.0]", "evaluation.widths=[0.5, 1.0]"]
OPTIONS = {
    "mode": "each",
    "craft_precision": "mixed_bfloat16",
    "binarisation": 2,
    "batch_size": 7,
    "save": "uint8",
    "corruptions": True,
    "jit_compile": False,
}


def run(name: str, overrides: list[str], folder: Path, smoke: bool) -> tuple[Spec, RunFolder]:
    """Return a config, and a folder with its untrained network."""
    spec = load_spec(name, overrides, smoke=smoke)
    assert spec.network is not None
    keras.utils.set_random_seed(0)
    spec.network().save(folder / "model.keras")
    return spec, RunFolder(folder)


def test_a_once_for_all_network_is_evaluated_at_its_first_lambda_and_width(tmp_path: Path) -> None:
    network = load_evaluated(*run("digits_oats", LAMBDAS, tmp_path, smoke=True))
    assert (network.strength, network.width) == (0.2, 0.5)


def test_a_point_of_the_curve_is_the_network_at_its_lambda_and_width(tmp_path: Path) -> None:
    spec, folder = run("digits_oats", LAMBDAS, tmp_path, smoke=True)
    network = load_evaluated(spec, folder)
    points = [attack_eval._at(network, each) for each in attack_eval._points(spec.evaluation)]
    found = [(each.width, each.strength) for each in points]
    assert found == [(0.5, 0.2), (0.5, 1.0), (1.0, 0.2), (1.0, 1.0)]


def test_the_section_evaluation_reaches_the_evaluation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    class Seen(Exception):
        pass

    def evaluate(*_: Any, **options: Any) -> None:
        seen.update(options)
        raise Seen

    monkeypatch.setattr(attack_eval, "evaluate", evaluate)
    overrides = ["seed=3", *(f"evaluation.{key}={value}" for key, value in OPTIONS.items())]
    spec, folder = run("digits_adv", overrides, tmp_path, smoke=False)
    with pytest.raises(Seen):
        attack_eval.AttackEval().run(spec, folder)
    expected = {**OPTIONS, "seed": 3}
    assert {key: seen.get(key) for key in expected} == expected


def test_an_export_that_is_less_robust_has_a_negative_difference() -> None:
    def measured(*right: bool) -> Measured:
        clean, attacked = (
            Result(name, np.array(flags), 0.0)
            for name, flags in (("clean", [True] * 4), ("PGD", right))
        )
        return Measured(np.eye(4), Evaluation([clean, attacked]))

    network, export = measured(True, True, True, False), measured(True, True, False, False)
    row = _row("saved_model", "saved_model", export, network)
    assert (row.robust_accuracy, row.difference, row.p) == (0.5, -0.25, 1.0)


def test_a_verdict_is_at_the_level_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.arange(100) < 60
    flags = SimpleNamespace(right={"clean": right, "PGD": right})
    judged: Any = SimpleNamespace(flags=flags, record=SimpleNamespace(history=[], config={}))
    rows = [verdict._judged(judged, Requirements(0.5, level=level))[0] for level in (0.8, 0.99)]
    low, high = (row.bound for row in rows)
    assert low is not None and high is not None and low > high
    assert [row.level for row in rows] == [0.8, 0.99]
    pair = Difference(100, 1, 2), Difference(100, 20, 3)
    monkeypatch.setattr(verdict, "paired", lambda *_: pair)
    required = Requirements(robust_gain=0.0, clean_loss=0.05, level=0.8)
    assert [row.level for row in verdict._changed([judged, judged], required)] == [0.8, 0.8]


@pytest.mark.parametrize("changed", ["baseline", "before"])
def test_a_verdict_is_made_again_when_what_it_compares_with_changes(
    tmp_path: Path, changed: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    other = saved_run(tmp_path / changed if changed == "baseline" else folder.before, 10, 8)
    baseline = Requirements(no_worse_than=str(other))
    required = baseline if changed == "baseline" else Requirements(robust_gain=0.0)
    spec: Any = SimpleNamespace(requirements=required, config={})
    before = verdict.Verdict().inputs(spec, folder)
    (other / "flags.npz").write_bytes(b"others")
    assert verdict.Verdict().inputs(spec, folder) != before


def test_an_evaluation_is_made_again_when_what_decides_it_changes(tmp_path: Path) -> None:
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    keras.Sequential(layers).save(tmp_path / "my.keras")
    network = f"model.path={tmp_path / 'my.keras'}"

    def inputs(*changes: str) -> str:
        overrides = [network, "data=digits", "threat.eps=0.1", "attacks=fgsm", *changes]
        spec = load_spec("evaluate", overrides, smoke=False)
        return attack_eval.AttackEval().inputs(spec, RunFolder(tmp_path / "run"))

    before = inputs()
    changes = ("seed=1", "threat.eps=0.2", "model.outputs=probabilities", "attacks=pgd")
    for change in (*changes, "evaluation.mode=each"):
        assert inputs(change) != before, change
    assert inputs("evaluation.batch_size=7", "evaluation.rerun=true") == before


def test_attacks_of_an_export_in_a_wrong_order_are_refused_before_a_stage_runs(
    tmp_path: Path,
) -> None:
    """They run as a cascade."""
    attacks = "[{name: square, queries: 9, examples: 100}, {name: rays, queries: 9}]"
    exports = f"export={{formats: [saved_model], attacks: {attacks}}}"
    overrides = [exports, "evaluation.save=uint8"]
    spec, folder = run("digits_adv", overrides, tmp_path, smoke=False)
    planned = {"train", "attack_eval", "export"}
    with pytest.raises(UserError, match="^export.attacks: expected Square-9, on 100 images, after"):
        Export().check(spec, folder, planned)
