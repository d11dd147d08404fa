"""Training on several replicas: what looks at the gradient of the whole batch, and refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from tfrobust.methods.replicas import refusals


@pytest.mark.parametrize("limit", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_the_gradient_of_the_whole_batch_is_clipped(on_two_devices: Any, limit: str) -> None:
    """Each replica clipped its part, so that the step was up to twice as long."""
    one, two = on_two_devices("clipped")[limit]
    assert np.abs(one).max() > 1e-4
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_gradient_that_overflows_on_one_replica_moves_no_weight(on_two_devices: Any) -> None:
    """Keras asked the first replica alone, and the weights became NaN."""
    for moved, scale in on_two_devices("overflowing"):
        assert moved == 0.0 and scale == 2.0**14


def test_what_keras_cannot_do_on_several_replicas_is_one_line(on_two_devices: Any) -> None:
    lines = on_two_devices("unsuitable")
    only = "on 2 replicas (Keras"
    assert lines["steps"].startswith(f"steps_per_execution: expected 1 {only}")
    assert lines["accumulated"].startswith(f"gradient_accumulation_steps: expected None {only}")
    assert lines["overwritten"].startswith(f"ema_overwrite_frequency: expected None {only}")
    assert "robust_accuracy" in lines["evaluated"]
    assert lines["loop"].startswith("network: expected BatchNorm with the statistics of each repl")


def test_another_error_of_replicas_is_not_taken_for_that_of_batch_norm() -> None:
    """A hook of one's own can raise it in a network without BatchNorm."""
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with (
        pytest.raises(RuntimeError, match="merge_call"),
        refusals(SimpleNamespace(network=network)),
    ):
        raise RuntimeError("`merge_call` called while defining a new graph")
