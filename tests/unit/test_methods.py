"""The methods' losses against the papers' formulae, in NumPy.

The network is z = (x W)^2: at x its Jacobian is J = 2 diag(x W) W^T, so that
C ||v^T J||^2 = C ||sum_c v_c 2 (x W)_c W[:, c]||^2 depends on where it is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import FGSM, PGD, Adv, Atlas, Jac, Natural, Threat, Trades, TradesJac
from tfrobust.methods import local_global
from tfrobust.registry import UserError

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3)).astype("float32")
X, X_ADV = (RNG.random((5, 2, 2, 1)).astype("float32") for _ in range(2))
Y = np.array([0, 1, 2, 1, 0], np.int32)
V = RNG.normal(size=(5, 3)).astype("float32")
V /= np.linalg.norm(V, axis=1, keepdims=True)
BATCH = {"image": X, "label": Y, "adv": X_ADV, "projection": V}
BATCH = {name: tf.constant(value) for name, value in BATCH.items()}
THREAT = Threat("linf", 0.2)


def log_p(x: np.ndarray) -> np.ndarray:
    z = (x.reshape(5, 4) @ W) ** 2
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def ce(x: np.ndarray) -> np.ndarray:
    return -log_p(x)[np.arange(5), Y]


def kl(base: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(p(base) || p(other))."""
    return np.sum(np.exp(log_p(base)) * (log_p(base) - log_p(other)), axis=1)


def jac(x: np.ndarray) -> np.ndarray:
    return 3 * np.sum(((2 * (x.reshape(5, 4) @ W) * V) @ W.T) ** 2, axis=1)


FORMULAE: dict[str, tuple[type, dict[str, float], Callable[[float], np.ndarray]]] = {
    "natural": (Natural, {}, lambda s: ce(X)),
    "adv": (Adv, {}, lambda s: ce(X_ADV)),
    "jac": (Jac, {"alpha": 0.3}, lambda s: ce(X) + s * 0.3 * jac(X)),
    "trades": (Trades, {"beta": 2.0}, lambda s: ce(X) + s * 2 * kl(X, X_ADV)),
    "atlas, eq. 14": (
        Atlas,
        {"alpha": 0.3, "beta": 2.0},
        lambda s: ce(X_ADV) + s * (0.3 * jac(X_ADV) + 2 * kl(X_ADV, X)),
    ),
    "atlas-l, eq. 20": (
        Atlas,
        {"alpha": 0.3, "beta": 0.0},
        lambda s: ce(X_ADV) + s * 0.3 * jac(X_ADV),
    ),
    "atlas-g, eq. 21": (
        Atlas,
        {"alpha": 0.0, "beta": 2.0},
        lambda s: ce(X_ADV) + s * 2 * kl(X_ADV, X),
    ),
    "trades-jac, D.1": (
        TradesJac,
        {"alpha": 0.3, "beta": 2.0},
        lambda s: ce(X) + s * (0.3 * jac(X) + 2 * kl(X, X_ADV)),
    ),
}


@pytest.fixture
def network(linear: Callable[..., Any]) -> Any:
    return linear(W, power=2)


@pytest.mark.parametrize(("method", "terms", "formula"), FORMULAE.values(), ids=FORMULAE)
def test_loss_is_the_papers_formula(network: Any, method: Any, terms: Any, formula: Any) -> None:
    model = method(network, threat=THREAT, **terms)
    np.testing.assert_allclose(model.robust_loss(BATCH)["loss"], formula(1.0), rtol=1e-4)
    # Eq. 14 with eps growing: alpha and beta become eps / v of themselves.
    model = method(network, threat=THREAT, ramp_steps=8, **terms)
    for step, scale in ((0, 0.0), (4, 0.5), (8, 1.0), (20, 1.0)):
        model.step.assign(step)
        np.testing.assert_allclose(model.robust_loss(BATCH)["loss"], formula(scale), rtol=1e-4)
        logged = {name: float(value) for name, value in model.scalars().items()}
        adversary = {"eps": 0.2} if model.attack is not None else {}
        expected = {k: scale * v for k, v in (adversary | terms).items() if v}
        assert logged == pytest.approx(expected)


def test_terms_of_the_logs(network: Any) -> None:
    terms = Atlas(network, threat=THREAT, alpha=0.3, beta=2.0).robust_loss(BATCH)
    np.testing.assert_allclose(terms["jacobian"], jac(X_ADV), rtol=1e-4)
    np.testing.assert_allclose(terms["kl"], kl(X_ADV, X), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(terms["accuracy"], log_p(X).argmax(1) == Y)
    np.testing.assert_array_equal(terms["robust_accuracy"], log_p(X_ADV).argmax(1) == Y)


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
def test_a_term_without_weight_costs_nothing(
    network: Any,
    monkeypatch: pytest.MonkeyPatch,
    method: Any,
    terms: Any,
    passes: int,
    entries: set[str],
) -> None:
    model = method(network, threat=THREAT, **terms)
    assert set(model.perturb(BATCH)) == entries
    calls, jacobians, run = [], [], model.run
    squared = local_global.squared_jacobian
    monkeypatch.setattr(model, "run", lambda *a: (calls.append(1), run(*a))[1])
    monkeypatch.setattr(
        local_global, "squared_jacobian", lambda *a: (jacobians.append(1), squared(*a))[1]
    )
    reported = model.robust_loss(BATCH)
    assert (len(calls), len(jacobians)) == (passes, bool(terms.get("alpha")))
    assert ("jacobian" in reported) == bool(terms.get("alpha"))
    assert ("kl" in reported) == bool(terms.get("beta"))


def test_the_adversary_grows_with_the_ramp(network: Any) -> None:
    model = Adv(network, threat=THREAT, ramp_steps=10, attack=PGD(steps=3))
    for step, eps in ((0, 0.0), (5, 0.1), (10, 0.2), (99, 0.2)):
        model.step.assign(step)
        distance = np.abs(model.perturb(BATCH)["adv"] - X).max()
        assert distance == pytest.approx(eps, abs=1e-6)


def test_no_ramp_is_the_full_eps_at_once(network: Any) -> None:
    assert float(Adv(network, threat=THREAT).scale) == 1.0


def test_noise_changes_with_the_step_and_with_nothing_else(network: Any) -> None:
    def entries(step: int, seed: int = 0) -> dict[str, np.ndarray]:
        model = Atlas(network, threat=THREAT, alpha=0.3, beta=2.0, seed=seed)
        model.step.assign(step)
        return {name: value.numpy() for name, value in model.perturb(BATCH).items()}

    first = entries(3)
    np.testing.assert_allclose(np.linalg.norm(first["projection"], axis=1), 1.0, rtol=1e-5)
    for name, value in entries(3).items():
        np.testing.assert_array_equal(value, first[name])
    for other in (entries(4), entries(3, seed=1)):
        assert all((other[name] != first[name]).any() for name in first)


def test_crafting_loss(network: Any) -> None:
    """TRADES crafts on the KL divergence unless the attack names its loss."""
    two = PGD(steps=2)
    assert Trades(network, threat=THREAT, beta=1.0).attack == FGSM(loss="kl")
    assert Trades(network, threat=THREAT, beta=1.0, attack=two).attack == PGD(steps=2, loss="kl")
    own = PGD(steps=2, loss="margin")
    assert TradesJac(network, threat=THREAT, alpha=1.0, beta=1.0, attack=own).attack == own
    atlas = Atlas(network, threat=THREAT, alpha=1.0, beta=1.0, attack=two)
    assert atlas.attack == PGD(steps=2, loss="cross_entropy")
    assert atlas.validation_attack == PGD(steps=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: Natural(n, threat=THREAT, attack=FGSM()), "attack: expected none (Natural make"),
        (lambda n: Jac(n, threat=THREAT, alpha=1.0, attack=FGSM()), "attack: expected none (Jac m"),
        (lambda n: Jac(n, threat=THREAT, alpha=-1.0), "alpha: expected a number >= 0, received -1"),
        (lambda n: Trades(n, threat=THREAT, beta=-1.0), "beta: expected a number >= 0"),
        (lambda n: Adv(n, threat=THREAT, craft="evall"), "craft: expected one of eval, frozen, tr"),
        (lambda n: Adv(n, threat=0.1), "threat: expected a tfrobust.Threat, received 0.1"),
        (lambda n: Adv(n, threat=THREAT, attack="pgd"), "attack: expected an Attack"),
        (lambda n: Adv(n, threat=THREAT, ramp_steps=-1), "ramp_steps: expected int >= 0"),
        (lambda n: Adv(n, threat=THREAT, l2=-1.0), "l2: expected a number >= 0"),
        (lambda n: Adv(keras.Sequential([]), threat=THREAT), "network: expected a built keras.M"),
        (lambda n: Adv(n, threat=THREAT).compile("sgd", loss="mse"), "loss: expected none (the me"),
        (lambda n: Adv(n, threat=THREAT).compile("sgd", metrics=["acc"]), "metrics: expected none"),
    ],
)
def test_mistakes_are_one_line(network: Any, make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make(network)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
