"""The methods' losses against the papers' formulae, in NumPy's float64.

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
from tfrobust.errors import UserError
from tfrobust.methods import (
    Alp,
    Awp,
    Fat,
    FgsmPgi,
    FgsmReg,
    Free,
    Gkl,
    GradAlign,
    Iaat,
    Llr,
    Mart,
    Mma,
    Nfgsm,
    Nuat,
    Oat,
    Squeeze,
    local_global,
)

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3)).astype("float32")
X, X_ADV, X_LOW, NOISY = (RNG.random((5, 2, 2, 1)).astype("float32") for _ in range(4))
Y = np.array([0, 1, 2, 1, 0], np.int32)
V, G = RNG.normal(size=(5, 3)).astype("float32"), RNG.normal(size=X.shape).astype("float32")
V /= np.linalg.norm(V, axis=1, keepdims=True)
LAMBDA = np.array([0.0, 0.2, 0.2, 1.0, 0.0], np.float32)
WEIGHT = np.array([0.5, 1.5, 0.5, 1.5, 1.0], np.float32)  # of extra examples
MARGIN = np.array([0.1, 0.4, 0.2, 0.3, 0.5], np.float32)
BATCH = {
    "image": X,
    "label": Y,
    "adv": X_ADV,
    "projection": V,
    "collaborative": X_LOW,
    "gradient": G,
    "noisy": NOISY,
    "margin": MARGIN,
    "radius": MARGIN,
    "accuracy": Y == 0,
    "strength": LAMBDA,
}
BATCH = {name: tf.constant(value) for name, value in BATCH.items()}
THREAT = Threat("linf", 0.2)
FACTS = {"num_examples": 5, "batch_size": 5, "steps_per_epoch": 2}
TARGETS = np.eye(3)[Y]  # of the cross entropies; a test of label smoothing replaces them
MEANS = RNG.dirichlet(np.ones(3), size=3)  # GKL's

Formula = Callable[..., np.ndarray]  # of the weights w, those that count as constants, the scale


def logits(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return (x.reshape(5, 4).astype(np.float64) @ w) ** 2


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def log_p(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return log_softmax(logits(x, w))


def ce(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return -np.sum(TARGETS * log_p(x, w), axis=1)


def divergence(log_base: np.ndarray, log_other: np.ndarray) -> np.ndarray:
    return np.sum(np.exp(log_base) * (log_base - log_other), axis=1)


def kl(base: np.ndarray, other: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return KL(p(base) || p(other))."""
    return divergence(log_p(base, w), log_p(other, w))


def jac(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return 3 * np.sum(((2 * (x.reshape(5, 4).astype(np.float64) @ w) * V) @ w.T) ** 2, axis=1)


def slope(x: np.ndarray, w: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the gradient of the cross entropy at x, [5, 4]."""
    error = np.exp(log_p(x, w)) - targets
    return (error * 2 * (x.reshape(5, 4).astype(np.float64) @ w)) @ w.T


def mart(w: np.ndarray, _: np.ndarray, s: float) -> np.ndarray:
    p, p_adv = np.exp(log_p(X, w)), np.exp(log_p(X_ADV, w))
    rival = np.where(np.eye(3)[Y] == 1, 0, p_adv).max(axis=1)
    boosted = ce(X_ADV, w) - np.log(1.0001 - rival)
    return boosted + s * 2 * kl(X, X_ADV, w) * (1 - p[np.arange(5), Y])


def gradalign(w: np.ndarray, _: np.ndarray, s: float) -> np.ndarray:
    here, there = G.reshape(5, 4), slope(NOISY, w, np.eye(3)[Y])
    cosine = np.sum(here * there, axis=1)
    cosine /= np.linalg.norm(here, axis=1) * np.linalg.norm(there, axis=1)
    return ce(X_ADV, w) + s * 0.3 * (1 - cosine)


def llr(w: np.ndarray, _: np.ndarray, s: float) -> np.ndarray:
    along = np.sum((X_ADV - X).reshape(5, 4) * slope(X, w, TARGETS), axis=1)
    gap = np.abs(ce(X_ADV, w) - ce(X, w) - along)
    return ce(X, w) + s * (0.7 * gap + 0.3 * np.abs(along))


def squeeze(kind: str) -> Formula:
    def formula(w: np.ndarray, w0: np.ndarray, s: float) -> np.ndarray:
        pairs = []
        for v in (w, w0):  # the extremes of the three points, for each example
            three = np.stack([log_p(x, v) for x in (X, X_LOW, X_ADV)])
            at_label, row = three[:, np.arange(5), Y], np.arange(5)
            pairs += [three[at_label.argmin(0), row], three[at_label.argmax(0), row]]
        high, low, high0, low0 = pairs
        mean = np.log(0.5 * (np.exp(high) + np.exp(low)))
        apart = {
            "symmetric_kl": 0.5 * (divergence(low0, high) + divergence(high0, low)),
            "js": 0.5 * (divergence(high, mean) + divergence(low, mean)),
            "l2": np.sum((np.exp(high) - np.exp(low)) ** 2, axis=1),
        }[kind]
        return ce(X, w) + s * 2 * apart

    return formula


def mma(w: np.ndarray, _: np.ndarray, s: float) -> np.ndarray:
    inside = log_p(X, w)[np.arange(5), Y] > -np.log(2)
    boundary = np.where(inside, (MARGIN < 0.35) * ce(X_ADV, w), ce(X, w))
    return ce(X, w) / 3 + 2 / 3 * boundary


def gkl(w: np.ndarray, w0: np.ndarray, s: float) -> np.ndarray:
    """Return the paper's double sum over pairs of classes."""
    apart = logits(X, w) - logits(X_ADV, w)
    weight = MEANS[Y] ** 0.4
    weight /= weight.sum(axis=1, keepdims=True)
    pairs = weight[:, :, None] * weight[:, None] * (apart[:, :, None] - apart[:, None]) ** 2
    soft = -np.sum(np.exp(log_p(X, w0)) * log_p(X_ADV, w), axis=1)
    return ce(X, w) + 0.5 * soft + 2 / 4 * pairs.sum(axis=(1, 2))


def oat(w: np.ndarray, _: np.ndarray, s: float) -> np.ndarray:
    """Return the loss of the network whose logits are (1 + lambda) z."""
    hard, clean = (
        -np.sum(TARGETS * log_softmax((1 + LAMBDA[:, None]) * logits(x, w)), axis=1)
        for x in (X_ADV, X)
    )
    return LAMBDA * hard + (1 - LAMBDA) * clean


def nuat(w: np.ndarray, _: np.ndarray, s: float) -> np.ndarray:
    """Of images 0 and 1, 2 and 3, and 4 alone."""
    apart = logits(X, w) - logits(X_ADV, w)
    means = [np.linalg.norm(part, "nuc") / len(part) for part in np.split(apart, [2, 4])]
    return ce(X, w) + s * 0.3 * np.repeat(means, [2, 2, 1])


FORMULAE: dict[str, tuple[type, dict[str, Any], Formula]] = {
    "natural": (Natural, {}, lambda w, _, s: ce(X, w)),
    "adv": (Adv, {}, lambda w, _, s: ce(X_ADV, w)),
    "adv, clean too": (
        Adv,
        {"clean_weight": 0.3},
        lambda w, _, s: 0.7 * ce(X_ADV, w) + 0.3 * ce(X, w),
    ),
    "fgsm_reg": (FgsmReg, {}, lambda w, _, s: 0.5 * (ce(X_ADV, w) + ce(X, w))),
    "jac": (Jac, {"alpha": 0.3}, lambda w, _, s: ce(X, w) + s * 0.3 * jac(X, w)),
    "trades": (Trades, {"beta": 2.0}, lambda w, _, s: ce(X, w) + s * 2 * kl(X, X_ADV, w)),
    "atlas, eq. 14": (
        Atlas,
        {"alpha": 0.3, "beta": 2.0},
        lambda w, _, s: ce(X_ADV, w) + s * (0.3 * jac(X_ADV, w) + 2 * kl(X_ADV, X, w)),
    ),
    "atlas-l, eq. 20": (
        Atlas,
        {"alpha": 0.3, "beta": 0.0},
        lambda w, _, s: ce(X_ADV, w) + s * 0.3 * jac(X_ADV, w),
    ),
    "atlas-g, eq. 21": (
        Atlas,
        {"alpha": 0.0, "beta": 2.0},
        lambda w, _, s: ce(X_ADV, w) + s * 2 * kl(X_ADV, X, w),
    ),
    "trades-jac, D.1": (
        TradesJac,
        {"alpha": 0.3, "beta": 2.0},
        lambda w, _, s: ce(X, w) + s * (0.3 * jac(X, w) + 2 * kl(X, X_ADV, w)),
    ),
    "nfgsm": (Nfgsm, {}, lambda w, _, s: ce(X_ADV, w)),
    "free": (Free, {}, lambda w, _, s: ce(X_ADV, w)),
    "fat": (Fat, {}, lambda w, _, s: ce(X_ADV, w)),
    "awp, weights that do not move": (Awp, {"gamma": 0.0}, lambda w, _, s: ce(X_ADV, w)),
    "oat": (Oat, {"lambdas": [0.0, 0.2, 1.0]}, oat),
    "iaat": (Iaat, {}, lambda w, _, s: ce(X_ADV, w)),
    "mart": (Mart, {"beta": 2.0}, mart),
    "alp": (
        Alp,
        {"weight": 0.3},
        lambda w, _, s: (
            0.5 * (ce(X_ADV, w) + ce(X, w))
            + s * 0.3 * np.mean((logits(X, w) - logits(X_ADV, w)) ** 2, axis=1)
        ),
    ),
    "fgsm_pgi": (
        FgsmPgi,
        {"weight": 0.3},
        lambda w, _, s: (
            ce(X_ADV, w) + s * 0.3 * np.mean((logits(X_ADV, w) - logits(NOISY, w)) ** 2, axis=1)
        ),
    ),
    "nuat": (Nuat, {"weight": 0.3, "warmup_epochs": 0, "group": 2}, nuat),
    "gradalign": (GradAlign, {"weight": 0.3}, gradalign),
    "llr": (Llr, {"alpha": 0.7, "beta": 0.3}, llr),
    "squeeze": (Squeeze, {"beta": 2.0}, squeeze("symmetric_kl")),
    "squeeze, js": (Squeeze, {"beta": 2.0, "regularizer": "js"}, squeeze("js")),
    "squeeze, l2": (Squeeze, {"beta": 2.0, "regularizer": "l2"}, squeeze("l2")),
    "mma": (Mma, {"max_margin": 0.35}, mma),
    "gkl": (Gkl, {"alpha": 0.5, "beta": 2.0, "gamma": 0.4}, gkl),
    "gkl, no terms": (Gkl, {"alpha": 0.0, "beta": 0.0}, lambda w, _, s: ce(X, w)),
}
RAMPED = ("alpha", "beta", "weight")  # what grows with eps and is logged


def make(method: Any, network: Any, terms: dict[str, Any], **options: Any) -> Any:
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
    model = make(method, network, terms)
    w = W.astype(np.float64)
    np.testing.assert_allclose(model.robust_loss(BATCH)["loss"], formula(w, w, 1.0), rtol=1e-5)
    # Eq. 14 with eps growing: alpha and beta become eps / v of themselves.
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
    """The gradient is that of central differences of the mean, in float64. What the paper holds
    constant is constant here too. At the first step of a ramp, scale 0, the terms with a
    coefficient are 0. Each extra example counts by its weight."""
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


def test_terms_of_the_logs(network: Any) -> None:
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


@pytest.mark.parametrize(
    ("ramp_steps", "scales"), [(10, {0: 0, 4: 0, 9: 0.5, 14: 1, 99: 1}), (0, {0: 0, 3: 0, 4: 1})]
)
def test_a_warm_up_at_eps_0(network: Any, ramp_steps: int, scales: dict[int, float]) -> None:
    model = Adv(network, threat=THREAT, warmup_steps=4, ramp_steps=ramp_steps)
    for step, scale in scales.items():
        model.step.assign(step)
        assert float(model.scale) == pytest.approx(scale)


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
    authors = PGD(steps=10, start="normal", loss="kl")
    assert Trades(network, threat=THREAT, beta=1.0).attack == authors
    assert Trades(network, threat=THREAT, beta=1.0, attack=two).attack == PGD(steps=2, loss="kl")
    explicit = PGD(steps=2, loss="margin")
    assert (
        TradesJac(network, threat=THREAT, alpha=1.0, beta=1.0, attack=explicit).attack == explicit
    )
    atlas = Atlas(network, threat=THREAT, alpha=1.0, beta=1.0, attack=two)
    assert atlas.attack == PGD(steps=2, loss="cross_entropy")
    assert atlas.validation_attack == PGD(steps=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: Natural(n, threat=THREAT, attack=FGSM()), "attack: expected none (Natural take"),
        (lambda n: Jac(n, threat=THREAT, alpha=1.0, attack=FGSM()), "attack: expected none (Jac t"),
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
