"""The losses of the methods against the float64 formulae of their papers in formulae.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import pytest

from tests.errors import error_line
from tests.unit.formulae import (
    BATCH,
    FACTS,
    FORMULAE,
    MEANS,
    THREAT,
    WEIGHT,
    X_ADV,
    Formula,
    W,
    X,
    Y,
    jac,
    kl,
    log_p,
)
from tfrobust import FGSM, PGD, Adv, Atlas, Jac, Natural, Trades, TradesJac
from tfrobust.errors import UserError
from tfrobust.methods import Gkl, Mma, Oat, local_global

RAMPED = ("alpha", "beta", "weight")  # coefficients that grow with eps and are logged


def make(method: Any, network: Any, terms: dict[str, Any], **options: Any) -> Any:
    """Return a model of the method; OAT's network has a second input, GKL's class means are set."""
    if method is Oat:
        image, strength = keras.Input((2, 2, 1), name="image"), keras.Input((), name="strength")
        scaled = network(image) * (1 + strength)[:, None]
        network = keras.Model({"image": image, "strength": strength}, scaled)
    model = method(network, threat=THREAT, **FACTS, **terms, **options)
    if method is Gkl:
        model.class_means.assign(MEANS)
    return model


@pytest.fixture
def network(linear: Callable[..., Any]) -> Any:
    return linear(W, power=2)


@pytest.mark.parametrize(("method", "terms", "formula"), FORMULAE.values(), ids=FORMULAE)
def test_loss_is_the_papers_formula(network: Any, method: Any, terms: Any, formula: Any) -> None:
    """With a ramp, alpha and beta grow in proportion to eps (Eq. 14), and are logged."""
    model = make(method, network, terms)
    w = W.astype(np.float64)
    np.testing.assert_allclose(model.robust_loss(BATCH)["loss"], formula(w, w, 1.0), rtol=1e-5)
    model = make(method, network, terms, ramp_steps=8)
    for step, scale in ((0, 0.0), (4, 0.5), (8, 1.0), (20, 1.0)):
        getattr(model, "inner", model).step.assign(step)  # AWP's ramp is the inner method's
        expected = formula(w, w, scale)
        np.testing.assert_allclose(model.robust_loss(BATCH)["loss"], expected, rtol=1e-5)
        logged = {name: float(value) for name, value in model.scalars().items()}
        logged.pop("patience", None)  # FAT's
        adversary = {"eps": 0.2} if method not in (Natural, Jac, Mma) else {}
        ramped = {} if method is Gkl else terms
        coefficients = {name: value for name, value in ramped.items() if name in RAMPED}
        expected = {k: scale * v for k, v in (adversary | coefficients).items() if v}
        assert logged == pytest.approx(expected)


@pytest.mark.parametrize(("scale", "weight"), [(1.0, None), (0.0, None), (1.0, WEIGHT)])
@pytest.mark.parametrize(("method", "terms", "formula"), FORMULAE.values(), ids=FORMULAE)
def test_gradient_is_that_of_the_formula(
    network: Any, method: Any, terms: Any, formula: Any, scale: float, weight: Any
) -> None:
    """The gradient of the mean agrees with central differences in float64.

    Constants of the paper are constants here too. At the first step of a ramp, scale 0, the terms
    with a coefficient are 0. The weight is that of the extra examples.
    """
    model = make(method, network, terms, ramp_steps=0 if scale else 8)
    model.compile("sgd")
    _, (result,), _ = model.gradients(BATCH if weight is None else BATCH | {"weight": weight})
    expected = differences(formula, scale, 1.0 if weight is None else weight)
    assert np.linalg.norm(result - expected) < 1e-5 * np.linalg.norm(expected)


def differences(formula: Formula, scale: float = 1.0, share: Any = 1.0) -> np.ndarray:
    """Return the gradient of the mean of share * formula at W by central differences."""
    w, h = W.astype(np.float64), 1e-6
    gradient = np.zeros_like(w)
    for place in np.ndindex(*w.shape):
        step = np.zeros_like(w)
        step[place] = h
        up, down = ((share * formula(w + sign * step, w, scale)).mean() for sign in (1, -1))
        gradient[place] = (up - down) / (2 * h)
    return gradient


def test_atlas_reports_its_terms_and_accuracies(network: Any) -> None:
    terms = Atlas(network, threat=THREAT, alpha=0.3, beta=2.0).robust_loss(BATCH)
    np.testing.assert_allclose(terms["jacobian"], jac(X_ADV, W), rtol=1e-4)
    np.testing.assert_allclose(terms["kl"], kl(X_ADV, X, W), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(terms["accuracy"], log_p(X, W).argmax(1) == Y)
    np.testing.assert_array_equal(terms["robust_accuracy"], log_p(X_ADV, W).argmax(1) == Y)


@pytest.mark.parametrize(
    ("method", "terms", "passes", "entries"),
    [
        (Natural, {}, 1, set()),
        (Jac, {"alpha": 0.3}, 1, {"projection"}),
        (Jac, {"alpha": 0.0}, 1, set()),
        (Adv, {}, 1, {"adv"}),
        (Trades, {"beta": 2.0}, 2, {"adv"}),
        (Trades, {"beta": 0.0}, 1, set()),
        (Atlas, {"alpha": 0.3, "beta": 2.0}, 2, {"adv", "projection"}),
        (Atlas, {"alpha": 0.3, "beta": 0.0}, 1, {"adv", "projection"}),
        (Atlas, {"alpha": 0.0, "beta": 2.0}, 2, {"adv"}),
        (TradesJac, {"alpha": 0.3, "beta": 0.0}, 1, {"projection"}),
    ],
)
def test_a_term_of_weight_zero_takes_no_pass(
    network: Any,
    monkeypatch: pytest.MonkeyPatch,
    method: Any,
    terms: Any,
    passes: int,
    entries: set[str],
) -> None:
    model = method(network, threat=THREAT, **terms)
    assert set(model.perturb(BATCH)) == entries
    forward = Mock(side_effect=model.forward)
    jacobian = Mock(side_effect=local_global.squared_jacobian)
    monkeypatch.setattr(model, "forward", forward)
    monkeypatch.setattr(local_global, "squared_jacobian", jacobian)
    reported = model.robust_loss(BATCH)
    assert (forward.call_count, jacobian.call_count) == (passes, bool(terms.get("alpha")))
    assert ("jacobian" in reported) == bool(terms.get("alpha"))
    assert ("kl" in reported) == bool(terms.get("beta"))


def test_the_distance_of_the_adversary_grows_with_the_ramp(network: Any) -> None:
    model = Adv(network, threat=THREAT, ramp_steps=10, attack=PGD(steps=3))
    for step, eps in ((0, 0.0), (5, 0.1), (10, 0.2), (99, 0.2)):
        model.step.assign(step)
        distance = np.abs(model.perturb(BATCH)["adv"] - X).max()
        assert distance == pytest.approx(eps, abs=1e-6)


@pytest.mark.parametrize(
    ("ramp_steps", "scales"), [(10, {0: 0, 4: 0, 9: 0.5, 14: 1, 99: 1}), (0, {0: 0, 3: 0, 4: 1})]
)
def test_the_ramp_begins_after_the_warm_up(
    network: Any, ramp_steps: int, scales: dict[int, float]
) -> None:
    model = Adv(network, threat=THREAT, warmup_steps=4, ramp_steps=ramp_steps)
    for step, scale in scales.items():
        model.step.assign(step)
        assert float(model.scale) == pytest.approx(scale)


def test_noise_depends_on_the_step_and_the_seed_alone(network: Any) -> None:
    def entries(step: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Return the entries that ATLAS adds to the batch."""
        model = Atlas(network, threat=THREAT, alpha=0.3, beta=2.0, seed=seed)
        model.step.assign(step)
        return {name: value.numpy() for name, value in model.perturb(BATCH).items()}

    first = entries(3)
    np.testing.assert_allclose(np.linalg.norm(first["projection"], axis=1), 1.0, rtol=1e-5)
    for name, value in entries(3).items():
        np.testing.assert_array_equal(value, first[name])
    for changed in (entries(4), entries(3, seed=1)):
        assert all((changed[name] != first[name]).any() for name in first)


def test_trades_crafts_on_the_kl_divergence_unless_the_attack_names_its_loss(network: Any) -> None:
    two = PGD(steps=2)
    authors = PGD(steps=10, start="normal", loss="kl")
    assert Trades(network, threat=THREAT, beta=1.0).attack == authors
    assert Trades(network, threat=THREAT, beta=1.0, attack=two).attack == PGD(steps=2, loss="kl")
    margin = PGD(steps=2, loss="margin")
    assert Trades(network, threat=THREAT, beta=1.0, attack=margin).attack == margin
    both = TradesJac(network, threat=THREAT, alpha=1.0, beta=1.0, attack=margin)
    assert both.attack == margin
    atlas = Atlas(network, threat=THREAT, alpha=1.0, beta=1.0, attack=two)
    assert atlas.attack == PGD(steps=2, loss="cross_entropy")
    assert atlas.validation_attack == PGD(steps=10)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (Natural, {"attack": FGSM()}, "attack: expected none (Natural take"),
        (Jac, {"alpha": 1.0, "attack": FGSM()}, "attack: expected none (Jac t"),
        (Jac, {"alpha": -1.0}, "alpha: expected a number >= 0, received -1"),
        (Trades, {"beta": -1.0}, "beta: expected a number >= 0"),
        (Adv, {"craft": "evall"}, "craft: expected one of eval, frozen, tr"),
        (
            Adv,
            {"threat": 0.1},
            "threat: expected a tfrobust.Threat or a list of them, received 0.1",
        ),
        (Adv, {"attack": "pgd"}, "attack: expected an Attack"),
        (Adv, {"ramp_steps": -1}, "ramp_steps: expected int >= 0"),
        (Adv, {"l2": -1.0}, "l2: expected a number >= 0"),
        (Adv, {"network": keras.Sequential([])}, "network: expected a built keras.M"),
    ],
)
def test_a_mistaken_argument_is_named_in_one_line(
    network: Any, method: Any, options: dict[str, Any], message: str
) -> None:
    arguments = {"network": network, "threat": THREAT} | options
    assert message in error_line(lambda: method(**arguments))


def test_compile_refuses_a_loss_and_metrics(network: Any) -> None:
    model = Adv(network, threat=THREAT)
    with pytest.raises(UserError, match=r"loss: expected none \(the me"):
        model.compile("sgd", loss="mse")
    with pytest.raises(UserError, match="metrics: expected none"):
        model.compile("sgd", metrics=["acc"])
