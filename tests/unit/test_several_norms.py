"""Several norms at once, on a linear network, where every margin has a closed form.

Three classes on 16 pixels. Towards class 1 every pixel counts a little, which a small change of all
of them exploits (Linf); towards class 2 two pixels count much, which a large change of those
exploits (L2). An image of class 0 with the margins m_k = z_0 - z_k, of gradients g_k, stands in the
ball of norm p exactly where m_k > eps * ||g_k||_q for both k, with 1/p + 1/q = 1.
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
from tfrobust.attacks import PGD, MultiTargeted, Square
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
    flat = tf.reshape(x, [-1, 16]) - 0.5
    dense, sparse = (tf.linalg.matvec(flat, w) for w in (DENSE, SPARSE))
    return tf.stack([tf.zeros_like(dense), dense - 0.2, sparse - 0.2], axis=1)


def stands(flat: np.ndarray, threat: Threat) -> np.ndarray:
    """Whether images [n, 16] of class 0 stand in the ball, by the closed form."""
    over = [
        0.2 - (flat - 0.5) @ w - threat.eps * np.linalg.norm(w, DUAL[threat.norm])
        for w in (DENSE, SPARSE)
    ]
    sure = np.minimum(*map(np.abs, over)) > 2e-3  # rounding and the last step of PGD aside
    return np.where(sure, np.minimum(*over) > 0, -1)


def images() -> np.ndarray:
    """Images far from the box, so that it cuts no ball, without the wrong and the close ones."""
    flat = np.random.default_rng(0).uniform(0.4, 0.6, (400, 16)).astype(np.float32)
    flat[:, 2:] = 0.5 + 0.5 * (flat[:, 2:] - 0.5) + 0.02
    clean = np.maximum((flat - 0.5) @ DENSE, (flat - 0.5) @ SPARSE) < 0.2
    sure = np.logical_and.reduce([clean, *(stands(flat, t) >= 0 for t in (LINF, L2))])
    return flat[sure][:150]


FLAT = images()
X, Y = FLAT.reshape(-1, 4, 4, 1), np.zeros(len(FLAT), np.int32)


@pytest.mark.parametrize("mode", ["cascade", "each"])
def test_the_union_is_what_stands_under_every_norm(mode: str) -> None:
    result = evaluate(network, X, Y, [LINF, L2], EXACT, mode=mode, **OPTIONS)
    each = {threat.norm: stands(FLAT, threat) == 1 for threat in (LINF, L2)}
    only = [int((each["linf"] & ~each["l2"]).sum()), int((each["l2"] & ~each["linf"]).sum())]
    assert min(only) > 5  # each norm breaks images that the other does not
    assert result.norms == {norm: right.mean() for norm, right in each.items()}
    np.testing.assert_array_equal(result.robust, each["linf"] & each["l2"])
    assert "worst case in l2: " in str(result)


def test_under_each_norm_all_is_as_if_it_were_the_only_one() -> None:
    attacks = [PGD(steps=3), Square(queries=30)]
    both = evaluate(network, X, Y, [LINF, L2], attacks, **OPTIONS)
    for threat in (LINF, L2):
        alone = evaluate(network, X, Y, threat, attacks, **OPTIONS)
        mine = [r for r in both.results if r.name.startswith(f"{threat.norm}: ")]
        for one, other in zip(mine, alone.results[1:], strict=True):
            assert one.name == f"{threat.norm}: {other.name}"
            assert (one.attacked, one.queries) == (other.attacked, other.queries)
            np.testing.assert_array_equal(one.robust, other.robust)
        assert both.norms[threat.norm] == alone.robust_accuracy
        assert alone.norms == {}


def test_attacks_of_a_list_of_threats() -> None:
    names = [t.name for t in list_attacks(["pgd", {"name": "rays", "norm": "linf"}], [L2, LINF])]
    assert names == ["l2: PGD-10", "linf: PGD-10", "linf: RayS-10000"]
    listed = list_attacks({"name": "autoattack", "label": "AA"}, [LINF, L2])
    assert listed == list_attacks(listed, [LINF, L2])
    assert {t.suite for t in listed} == {"linf: AA", "l2: AA"}
    assert listed[0].name == "linf: AA: APGD-CE" and listed[4].threat == L2
    step = list_attacks([{"name": "pgd", "step_size": 0.01, "norm": "linf"}, "pgd"], [LINF, L2])
    assert [t.attack.step_size for t in step] == [0.01, None, None]


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ({"name": "pgd", "step_size": 0.01}, r"attacks\[0\].step_size: expected none, a fraction"),
        ({"name": "pgd", "norm": "linf"}, "attacks: expected an attack under l2"),
        ({"name": "pgd", "norm": "l1"}, r"attacks\[0\].norm: expected one of l2, linf"),
        (["pgd", {"name": "fgsm", "norm": "l2"}, "rays"], r"attacks\[2\]"),
        (
            [{"name": "pgd", "norm": "linf", "examples": 5}, {"name": "pgd", "norm": "l2"}],
            "attacks: expected an attack on the same number of images under every norm",
        ),
    ],
)
def test_refused_attacks(attacks: Any, message: str) -> None:
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
def test_refused_threats(threats: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(network, X, Y, threats, "pgd", **OPTIONS)
    if len(threats) > 1 and threats[1].eps == 5.0:
        with pytest.raises(UserError, match="save: expected none with several threats"):
            evaluate(network, X, Y, [LINF, L2], "pgd", save="uint8", folder="unused", **OPTIONS)


def test_the_record_and_its_page(tmp_path: Path) -> None:
    options = {"progress": False, "folder": tmp_path}
    result = evaluate(network, X, Y, [LINF, L2], [EXACT], **options)
    record = Record.load(tmp_path)
    assert record.radii == [("linf", 0.025), ("l2", 0.08)]
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
    evaluate(network, X, Y, LINF, [EXACT], check=False, **options)  # another threat: moved aside
    assert (tmp_path / "evaluation.1/eval.json").read_text() == before


def test_an_interrupted_union_has_no_headline(tmp_path: Path) -> None:
    """It is written after the first norm, whose accuracy is not that of the union."""

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
def test_refused_in_a_config(threat: Any, message: str) -> None:
    _, config = read_config("digits_adv", [])
    with pytest.raises(UserError, match=message):
        parse("run", config | {"threat": threat})


def test_a_mistyped_key_in_a_list_of_threats() -> None:
    _, config = read_config("digits_adv", [])
    with pytest.raises(UserError, match="threat.epsilon: unknown key"):
        check_keys(config | {"threat": [{"norm": "linf", "epsilon": 0.1}]})


def test_an_evaluation_of_several_norms_in_a_config(tmp_path: Path) -> None:
    """The spec has every threat, and its attacks each their own."""
    threat = [{"norm": "linf", "eps": "8/255"}, {"norm": "l2", "eps": 0.5}]
    path = tmp_path / "net.keras"
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]).save(
        path
    )
    config = {"threat": threat, "data": "digits", "model": {"path": str(path)}}
    config |= {"attacks": ["pgd"], "stages": ["attack_eval"]}
    spec = parse("run", config)
    assert [(t.norm, t.eps) for t in spec.threats] == [("linf", 8 / 255), ("l2", 0.5)]
    assert [(a.name, a.threat) for a in spec.attack_list] == [
        ("linf: PGD-10", spec.threats[0]),
        ("l2: PGD-10", spec.threats[1]),
    ]


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
