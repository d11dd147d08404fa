"""Several norms at once, on a linear network, where every margin has a closed form.

The network has three classes and 16 pixels. The logit of class 1 depends a little on every pixel,
so that small changes of all pixels (Linf) raise it most. The logit of class 2 depends much on two
pixels, so that a large change of these (L2) does. An image of class 0 with margins m_k = z_0 - z_k,
whose gradients are g_k, is robust in the ball of norm p exactly where m_k > eps * ||g_k||_q for
both k, with 1/p + 1/q = 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines.early_check import check_keys, read_config
from pipelines.spec import parse
from tfrobust import Threat
from tfrobust.attacks import EOT, PGD, MultiTargeted, Square
from tfrobust.errors import UserError
from tfrobust.evaluation import Details, Record, evaluate, list_attacks
from tfrobust.report import write_report

DENSE, SPARSE = np.full(16, 0.25, np.float32), np.zeros(16, np.float32)
SPARSE[:2] = 1.0
LINF, L2 = Threat("linf", 0.025), Threat("l2", 0.08)
DUAL = {"linf": 1, "l2": 2}
EXACT = MultiTargeted(steps=40, restarts=1)
OPTIONS: Any = {"progress": False, "check": False}


def network(x: Any) -> Any:
    """Return the logits, [B, 3]."""
    flat = tf.reshape(x, [-1, 16]) - 0.5
    dense, sparse = (tf.linalg.matvec(flat, w) for w in (DENSE, SPARSE))
    return tf.stack([tf.zeros_like(dense), dense - 0.2, sparse - 0.2], axis=1)


def least_margin(flat: np.ndarray, threat: Threat) -> np.ndarray:
    """Return the least margin in the ball of images [n, 16] of class 0 by the closed form, [n]."""
    order = DUAL[threat.norm]
    margins = [
        0.2 - (flat - 0.5) @ w - threat.eps * np.linalg.norm(w, order) for w in (DENSE, SPARSE)
    ]
    return np.minimum(*margins)


def images() -> np.ndarray:
    """Return 150 images, [150, 16], that are right and whose balls the box does not cut.

    None is so near to the edge of its robustness that the last step of PGD and rounding decide.
    """
    flat = np.random.default_rng(0).uniform(0.4, 0.6, (400, 16)).astype(np.float32)
    flat[:, 2:] = 0.5 + 0.5 * (flat[:, 2:] - 0.5) + 0.02
    right = np.maximum((flat - 0.5) @ DENSE, (flat - 0.5) @ SPARSE) < 0.2
    for threat in (LINF, L2):
        right &= np.abs(least_margin(flat, threat)) > 2e-3
    return flat[right][:150]


FLAT = images()
X, Y = FLAT.reshape(-1, 4, 4, 1), np.zeros(len(FLAT), np.int32)


@pytest.mark.parametrize("mode", ["cascade", "each"])
def test_an_image_is_robust_in_the_union_if_it_is_under_every_norm(mode: str) -> None:
    result = evaluate(network, X, Y, [LINF, L2], EXACT, mode=mode, **OPTIONS)
    linf, l2 = (least_margin(FLAT, threat) > 0 for threat in (LINF, L2))
    assert (linf & ~l2).sum() > 5 and (l2 & ~linf).sum() > 5
    assert result.norms == {"linf": linf.mean(), "l2": l2.mean()}
    np.testing.assert_array_equal(result.robust, linf & l2)
    assert "worst case in l2: " in str(result)


def test_the_results_of_each_norm_equal_those_of_an_evaluation_of_it_alone() -> None:
    attacks = [PGD(steps=3), Square(queries=30)]
    union = evaluate(network, X, Y, [LINF, L2], attacks, **OPTIONS)
    for threat in (LINF, L2):
        single = evaluate(network, X, Y, threat, attacks, **OPTIONS)
        results = [r for r in union.results if r.name.startswith(f"{threat.norm}: ")]
        for result, expected in zip(results, single.results[1:], strict=True):
            assert result.name == f"{threat.norm}: {expected.name}"
            assert (result.attacked, result.queries) == (expected.attacked, expected.queries)
            np.testing.assert_array_equal(result.robust, expected.robust)
        assert union.norms[threat.norm] == single.robust_accuracy
        assert single.norms == {}


def test_each_attack_is_listed_under_every_norm_unless_it_names_one() -> None:
    names = [t.name for t in list_attacks(["pgd", {"name": "rays", "norm": "linf"}], [L2, LINF])]
    assert names == ["l2: PGD-10", "linf: PGD-10", "linf: RayS-10000"]
    listed = list_attacks({"name": "autoattack", "label": "AA"}, [LINF, L2])
    assert listed == list_attacks(listed, [LINF, L2])
    assert {t.suite for t in listed} == {f"{norm}: AA (AutoAttack)" for norm in ("linf", "l2")}
    assert listed[0].name == "linf: AA (AutoAttack): APGD-CE" and listed[4].threat == L2
    suite = list_attacks("paper", [LINF, L2])  # its step sizes are those of each threat
    steps = {t.threat: t.attack.step_size for t in suite if t.name.endswith(": PGD-20")}
    assert steps[LINF] / LINF.eps == pytest.approx(steps[L2] / L2.eps) and len(steps) == 2
    step = list_attacks([{"name": "pgd", "step_size": 0.01, "norm": "linf"}, "pgd"], [LINF, L2])
    assert [t.attack.step_size for t in step] == [0.01, None, None]


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ({"name": "pgd", "step_size": 0.01}, r"attacks\[0\].step_size: expected none, a fraction"),
        (EOT(PGD(step_size=0.01)), r"attacks\[0\].attack.step_size: expected none, a fraction"),
        ({"name": "pgd", "norm": "linf"}, "attacks: expected an attack under l2"),
        ({"name": "pgd", "label": "worst case, first try"}, "attacks: expected labels other than"),
        ({"name": "pgd", "norm": "l1"}, r"attacks\[0\].norm: expected one of l2, linf"),
        (["pgd", {"name": "fgsm", "norm": "l2"}, "rays"], r"attacks\[2\]"),
        (
            [{"name": "pgd", "norm": "linf", "examples": 5}, {"name": "pgd", "norm": "l2"}],
            "attacks: expected an attack on the same number of images under every norm",
        ),
    ],
)
def test_attacks_that_do_not_fit_several_norms_are_refused(attacks: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(network, X, Y, [LINF, L2], attacks, **OPTIONS)


@pytest.mark.parametrize(
    ("threats", "message"),
    [
        ([], "threat: expected a tfrobust.Threat or a list"),
        ([LINF, Threat("linf", 0.1)], "threat: expected threats of different norms"),
        ([LINF, Threat("l2", 0.1, (-1, 1))], "threat: expected threats of one box"),
        ([LINF, Threat("l2", 0.0)], "threat.eps: expected a number > 0"),
        ([LINF, Threat("l2", 5.0)], "threat.eps: expected at most"),
    ],
)
def test_threats_that_do_not_fit_together_are_refused(threats: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(network, X, Y, threats, "pgd", **OPTIONS)


def test_images_of_several_threats_cannot_be_saved() -> None:
    with pytest.raises(UserError, match="save: expected none with several threats"):
        evaluate(network, X, Y, [LINF, L2], "pgd", save="uint8", folder="unused", **OPTIONS)


@pytest.mark.usefixtures("short_closing")
def test_the_record_and_its_page_have_every_norm_and_their_union(tmp_path: Path) -> None:
    options = {"progress": False, "folder": tmp_path}
    result = evaluate(network, X, Y, [LINF, L2], [EXACT], **options)
    record = Record.load(tmp_path)
    assert record.balls == [("linf", 0.025, None), ("l2", 0.08, None)]
    assert [row.norm for row in record.attacks] == ["linf", "l2"]
    assert {row.norm: row.robust_accuracy for row in record.norms} == result.norms
    assert record.robust_accuracy == result.robust_accuracy < min(result.norms.values())
    assert {check.name.partition(": ")[0] for check in record.checks} == {"linf", "l2"}
    write_report(tmp_path)
    text = (tmp_path / "report/report.md").read_text()
    assert "union of linf, eps 0.025 and l2, eps 0.08" in text
    assert "l2: worst case" in text and "robust in the union of the norms" in text
    before = (tmp_path / "eval.json").read_text()
    evaluate(network, X, Y, [LINF, L2], [EXACT], **options)
    assert (tmp_path / "eval.json").read_text() == before
    evaluate(network, X, Y, LINF, [EXACT], check=False, **options)
    assert (tmp_path / "evaluation.1/eval.json").read_text() == before


def test_a_result_under_one_norm_is_not_reused_under_another(tmp_path: Path) -> None:
    """The settings of Square are the same under every norm."""
    first, square = {"name": "pgd", "norm": "linf"}, {"name": "square", "queries": 30}
    evaluate(network, X, Y, [LINF, L2], [first, square], folder=tmp_path, **OPTIONS)
    of_l2 = [first, square | {"norm": "l2"}]
    again = evaluate(network, X, Y, [LINF, L2], of_l2, folder=tmp_path, **OPTIONS)
    assert again.norms == evaluate(network, X, Y, [LINF, L2], of_l2, **OPTIONS).norms
    assert len(set(again.norms.values())) == 2


def test_an_interrupted_union_has_no_headline(tmp_path: Path) -> None:
    """The accuracy of the first norm is not that of the union."""

    def stop(line: str) -> None:
        if line.startswith("linf"):
            raise KeyboardInterrupt

    details = Details(say=stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(network, X, Y, [LINF, L2], [EXACT], folder=tmp_path, details=details, **OPTIONS)
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["robust_accuracy"] is None and len(content["pending"]) == 1
    assert [row["norm"] for row in content["norms"]] == ["linf"]
    full = evaluate(network, X, Y, [LINF, L2], [EXACT], folder=tmp_path, **OPTIONS)
    assert Record.load(tmp_path).robust_accuracy == full.robust_accuracy


@pytest.mark.parametrize(
    ("threat", "message"),
    [
        ([{"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": 1}], "validation_attack.step_size: "),
        ([{"norm": "linf", "eps": 0.1}, {"norm": "l3", "eps": 1}], r"threat\[1\].norm: expected"),
        ([{"norm": "linf", "eps": 0.1}, {"norm": "l2", "box": [0, 2]}], r"threat\[1\].box: exp"),
        ([{"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": 99}], "threat.eps: expected at most"),
    ],
)
def test_mistakes_in_the_threats_of_a_config_are_named(threat: Any, message: str) -> None:
    _, config = read_config("digits_adv", [])
    with pytest.raises(UserError, match=message):
        parse("run", config | {"threat": threat})


def test_a_mistyped_key_in_a_list_of_threats_is_named() -> None:
    _, config = read_config("digits_adv", [])
    with pytest.raises(UserError, match="threat.epsilon: unknown key"):
        check_keys(config | {"threat": [{"norm": "linf", "epsilon": 0.1}]})


def test_a_config_may_have_a_list_of_threats(tmp_path: Path) -> None:
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    keras.Sequential(layers).save(tmp_path / "net.keras")
    threat = [{"norm": "linf", "eps": "8/255"}, {"norm": "l2", "eps": 0.5}]
    config = {"threat": threat, "data": "digits", "model": {"path": str(tmp_path / "net.keras")}}
    spec = parse("run", config | {"attacks": ["pgd"], "stages": ["attack_eval"]})
    assert [(t.norm, t.eps) for t in spec.threats] == [("linf", 8 / 255), ("l2", 0.5)]
    names = zip(["linf: PGD-10", "l2: PGD-10"], spec.threats, strict=True)
    assert [(attack.name, attack.threat) for attack in spec.attack_list] == list(names)


def test_a_list_of_threats_replaces_the_one_of_an_included_file(tmp_path: Path) -> None:
    path = tmp_path / "union.yaml"
    path.write_text(
        "include: digits_adv.yaml\n"
        "threat: [{norm: linf, eps: 0.15}, {norm: l2, eps: 0.8}]\n"
        "train: {validation_attack: {step_size: null}}\n"
        "attacks: [{name: pgd, steps: 20}]\n"
    )
    spec = parse("union", read_config(str(path), [])[1])
    assert [threat.norm for threat in spec.threats] == ["linf", "l2"]
    assert spec.method is not None and spec.method.keywords["threat"] == spec.threats
