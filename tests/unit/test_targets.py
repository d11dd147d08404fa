"""Smoothed and mixed labels in the loss of every method, by the formulae of the papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit import formulae
from tests.unit.formulae import BATCH, FORMULAE, W, Y
from tests.unit.test_methods import differences, make
from tfrobust.errors import UserError


@pytest.fixture
def network(linear: Callable[..., Any]) -> Any:
    return linear(W, power=2)


@pytest.mark.parametrize(("method", "terms", "formula"), FORMULAE.values(), ids=FORMULAE)
def test_label_smoothing_is_in_the_formulas_cross_entropies(
    network: Any, method: Any, terms: Any, formula: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets are 0.7 + 0.3 / 3 at the label and 0.3 / 3 at the two other classes.

    Smoothing does not change the adversarial images, p_y in MART and the label in GradAlign.
    """
    model = make(method, network, terms, label_smoothing=0.3)
    model.compile("sgd")
    monkeypatch.setattr(formulae, "TARGETS", np.where(formulae.TARGETS == 1, 0.8, 0.1))
    reported, (result,), _ = model.gradients(BATCH)
    w = W.astype(np.float64)
    np.testing.assert_allclose(reported["loss"], formula(w, w, 1.0), rtol=1e-5)
    expected = differences(formula)
    assert np.linalg.norm(result - expected) < 1e-5 * np.linalg.norm(expected)
    batch = BATCH | {"index": tf.range(5, dtype=tf.int64)}
    entries, expected = model.perturb(batch), make(method, network, terms).perturb(batch)
    assert entries.keys() == expected.keys()
    for name, values in entries.items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize(("method", "terms", "formula"), FORMULAE.values(), ids=FORMULAE)
def test_mixed_labels_are_in_the_formulas_cross_entropies(
    network: Any, method: Any, terms: Any, formula: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of the probability of each label is that of another class.

    Methods with a table for the images or with a loss for a single label refuse mixed labels.
    """
    model = make(method, network, terms)
    other, share = (Y + 1) % 3, np.array([0.0, 0.1, 0.2, 0.3, 0.5], np.float32)
    batch = BATCH | {"other_label": tf.constant(other), "other_share": tf.constant(share)}
    if not method.mixed_labels:
        with pytest.raises(UserError, match="expected labels that are not mixed"):
            model.robust_loss(batch)
        return
    mixed = (1 - share[:, None]) * formulae.TARGETS + share[:, None] * np.eye(3)[other]
    monkeypatch.setattr(formulae, "TARGETS", mixed)
    w = W.astype(np.float64)
    np.testing.assert_allclose(model.robust_loss(batch)["loss"], formula(w, w, 1.0), rtol=1e-5)
