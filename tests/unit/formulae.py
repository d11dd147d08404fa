"""The formulae of the methods' papers, in NumPy's float64, on a network with a known Jacobian.

The network is z = (x W)^2. Its Jacobian J = 2 diag(x W) W^T depends on x, and so does
C ||v^T J||^2 = C ||sum_c v_c 2 (x W)_c W[:, c]||^2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfrobust import Adv, Atlas, Jac, Natural, Threat, Trades, TradesJac
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
MEANS = RNG.dirichlet(np.ones(3), size=3)  # the class means of GKL

# A function of the weights w [4, 3], the weights without gradients w0, and the scale s of
# `RobustModel`; it returns the loss of each example, [5].
Formula = Callable[..., np.ndarray]


def logits(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the logits [5, 3]."""
    return (x.reshape(5, 4).astype(np.float64) @ w) ** 2


def log_softmax(z: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities of logits z."""
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def log_p(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the logarithms of the network's probabilities, [5, 3]."""
    return log_softmax(logits(x, w))


def ce(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the cross entropies [5] with TARGETS."""
    return -np.sum(TARGETS * log_p(x, w), axis=1)


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Return KL(p || q), [5]."""
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=1)


def kl(x1: np.ndarray, x2: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return KL(p(x1) || p(x2)), [5]."""
    return divergence(log_p(x1, w), log_p(x2, w))


def jac(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return C ||v^T J||^2, [5], with the projections V."""
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
    at_image, at_noisy = G.reshape(5, 4), slope(NOISY, w, np.eye(3)[Y])
    cosine = np.sum(at_image * at_noisy, axis=1)
    cosine /= np.linalg.norm(at_image, axis=1) * np.linalg.norm(at_noisy, axis=1)
    return ce(X_ADV, w) + s * 0.3 * (1 - cosine)


def llr(w: np.ndarray, _: np.ndarray, s: float) -> np.ndarray:
    linear = np.sum((X_ADV - X).reshape(5, 4) * slope(X, w, TARGETS), axis=1)
    remainder = np.abs(ce(X_ADV, w) - ce(X, w) - linear)
    return ce(X, w) + s * (0.7 * remainder + 0.3 * np.abs(linear))


def extremes(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log p [5, 3] at that of the three points where each loss is highest, and lowest."""
    points = np.stack([log_p(x, w) for x in (X, X_LOW, X_ADV)])
    rows = np.arange(5)
    at_label = points[:, rows, Y]
    return points[at_label.argmin(0), rows], points[at_label.argmax(0), rows]


def squeeze(kind: str) -> Formula:
    """Return the formula of squeeze training with a regulariser."""

    def formula(w: np.ndarray, w0: np.ndarray, s: float) -> np.ndarray:
        (high, low), (high0, low0) = extremes(w), extremes(w0)
        mean = np.log(0.5 * (np.exp(high) + np.exp(low)))
        distance = {
            "symmetric_kl": 0.5 * (divergence(low0, high) + divergence(high0, low)),
            "js": 0.5 * (divergence(high, mean) + divergence(low, mean)),
            "l2": np.sum((np.exp(high) - np.exp(low)) ** 2, axis=1),
        }[kind]
        return ce(X, w) + s * 2 * distance

    return formula


def mma(w: np.ndarray, _: np.ndarray, s: float) -> np.ndarray:
    inside = log_p(X, w)[np.arange(5), Y] > -np.log(2)
    boundary = np.where(inside, (MARGIN < 0.35) * ce(X_ADV, w), ce(X, w))
    return ce(X, w) / 3 + 2 / 3 * boundary


def gkl(w: np.ndarray, w0: np.ndarray, s: float) -> np.ndarray:
    """Return the paper's double sum over pairs of classes."""
    change = logits(X, w) - logits(X_ADV, w)
    weight = MEANS[Y] ** 0.4
    weight /= weight.sum(axis=1, keepdims=True)
    pairs = weight[:, :, None] * weight[:, None] * (change[:, :, None] - change[:, None]) ** 2
    soft = -np.sum(np.exp(log_p(X, w0)) * log_p(X_ADV, w), axis=1)
    return ce(X, w) + 0.5 * soft + 2 / 4 * pairs.sum(axis=(1, 2))


def oat(w: np.ndarray, _: np.ndarray, s: float) -> np.ndarray:
    """Return the loss of the network whose logits are (1 + lambda) z."""
    scale = 1 + LAMBDA[:, None]
    clean = -np.sum(TARGETS * log_softmax(scale * logits(X, w)), axis=1)
    adversarial = -np.sum(TARGETS * log_softmax(scale * logits(X_ADV, w)), axis=1)
    return LAMBDA * adversarial + (1 - LAMBDA) * clean


def nuat(w: np.ndarray, _: np.ndarray, s: float) -> np.ndarray:
    """Return the loss whose groups are images 0 and 1, images 2 and 3, and image 4."""
    change = logits(X, w) - logits(X_ADV, w)
    means = [np.linalg.norm(group, "nuc") / len(group) for group in np.split(change, [2, 4])]
    return ce(X, w) + s * 0.3 * np.repeat(means, [2, 2, 1])


FORMULAE: dict[str, tuple[type, dict[str, Any], Formula]] = {
    "natural": (Natural, {}, lambda w, _, s: ce(X, w)),
    "adv": (Adv, {}, lambda w, _, s: ce(X_ADV, w)),
    "adv with a clean weight": (
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
    "awp with gamma 0": (Awp, {"gamma": 0.0}, lambda w, _, s: ce(X_ADV, w)),
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
    "gkl without its terms": (Gkl, {"alpha": 0.0, "beta": 0.0}, lambda w, _, s: ce(X, w)),
}
