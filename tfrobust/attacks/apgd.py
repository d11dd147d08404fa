"""Auto-PGD (Croce and Hein, 2020, arXiv:2003.01690; for L1, Croce and Hein, 2021,
arXiv:2103.01208)."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf
from absl import logging

from tfrobust import losses, noise
from tfrobust.attacks.apgd_steps import Halving, Sparse
from tfrobust.attacks.base import Attack, LogitsFn, Outcome, check_one_eps
from tfrobust.attacks.compaction import State, hunt
from tfrobust.attacks.gradient import Evaluate, differentiated
from tfrobust.errors import choose, number, require_at_least
from tfrobust.norms import norm, per_example, rows
from tfrobust.serialization import serializable
from tfrobust.threat import Threat

TITLES = {
    "cross_entropy": "APGD-CE",
    "dlr": "APGD-DLR",
    "margin": "APGD-margin",
    "targeted_dlr": "APGD-T",
}
CLASSES = {"dlr": 3, "targeted_dlr": 4}  # the least number of classes of a loss
# The stages of a search: (radius in units of eps, tenths of the steps). Only the last one, at eps
# itself, counts as success.
STAGES = {"linf": ((1, 10),), "l2": ((1, 10),), "l1": ((3, 3), (2, 3), (1, 4))}


@serializable
@dataclasses.dataclass(frozen=True)
class APGD(Attack):
    """Projected ascent with momentum and a step size that adapts to each example.

    Under Linf and L2 the first steps are 2 eps long. At checkpoints, an example's step is halved if
    its loss rose in at most `rho` of the steps since the last checkpoint, or stopped rising. Under
    L1 a step moves only the pixels of largest gradient; their number follows from the number of
    pixels that the best image has changed.

    Args:
        loss: The loss to maximise: "cross_entropy", "dlr", "margin" or "targeted_dlr" (APGD-T).
            With fewer than 3 classes for DLR, or 4 for the targeted DLR, the margin is used
            instead, with a warning.
        steps: The number of steps of each restart.
        restarts: The number of random starts, for each target if there are any.
        targets: The number of target classes of the targeted DLR, the most likely wrong ones at
            the clean image; all of them if there are fewer.
        rho: The share of rising steps below which a step size is halved.
    """

    loss: str = "cross_entropy"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    rho: float = 0.75

    def __post_init__(self) -> None:
        choose("loss", self.loss, TITLES)
        require_at_least(1, steps=self.steps, restarts=self.restarts, targets=self.targets)
        object.__setattr__(self, "rho", number("rho", self.rho, above=0, below=1))

    @property
    def title(self) -> str:
        words = [TITLES[self.loss]]
        words += [f"{self.steps} steps"] if self.steps != 100 else []
        words += [f"x{self.restarts}"] if self.restarts > 1 else []
        words += [f"{self.targets} targets"] if self._targeted and self.targets != 9 else []
        words += [f"rho {self.rho:g}"] if self.rho != 0.75 else []
        return " ".join(words)

    @property
    def differentiates(self) -> bool:
        return True

    def settings(self, threat: Threat) -> dict[str, Any]:
        """Return the settings that this norm and loss use, with the first step size (image
        units)."""
        stated = super().settings(threat)
        if not self._targeted:
            del stated["targets"]
        if threat.norm == "l1":
            del stated["rho"]
            return stated | {"step_size": threat.eps, "stages": self._stages(threat)}
        return stated | {"step_size": 2 * threat.eps}

    def fitted(self, classes: int) -> APGD:
        """Return this attack with at most all wrong classes as targets, and with the margin, after
        a warning, if its loss needs more classes."""
        loss, needed = self.loss, CLASSES.get(self.loss, 2)
        if classes < needed:
            logging.warning(
                "apgd: loss %s needs %d classes, the network has %d: the margin is used instead",
                loss,
                needed,
                classes,
            )
            loss = "margin"
        return dataclasses.replace(self, loss=loss, targets=min(self.targets, classes - 1))

    @property
    def _targeted(self) -> bool:
        return self.loss == "targeted_dlr"

    def _stages(self, threat: Threat) -> list[tuple[Any, int]]:
        """Return (eps, steps) of each stage of a search; the last one takes the remaining steps."""
        *first, (_, _) = STAGES[threat.norm]
        stages = [(radius * threat.eps, share * self.steps // 10) for radius, share in first]
        return [*stages, (threat.eps, self.steps - sum(steps for _, steps in stages))]

    def run(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, *, threat: Threat, seed: Any
    ) -> Outcome:
        check_one_eps(threat)
        x, y = tf.convert_to_tensor(x), tf.cast(y, tf.int32)
        clean = tf.stop_gradient(logits_fn(x))
        fitted = self.fitted(clean.shape[-1])
        loss, targets = fitted.loss, fitted.targets
        stages, runs, l1 = self._stages(threat), self.restarts, threat.norm == "l1"
        # Each stage evaluates the loss at its start and after each of its steps.
        places = [(stage, k) for stage, (_, steps) in enumerate(stages) for k in range(steps + 1)]

        def rule_of(stage: Any) -> Halving | Sparse:
            at_stage = threat.at(tf.gather([eps for eps, _ in stages], stage))
            if l1:
                return Sparse(at_stage, tf.gather([steps for _, steps in stages], stage))
            return Halving(at_stage, self.steps, self.rho)

        state = {
            "x": x,
            "y": y,
            "images": x,
            "highest": tf.fill(tf.shape(y), float("-inf")),  # the loss at "images"
            "broken": ~losses.correct(clean, y),
            "queries": tf.ones_like(y),
            **self.begin(x, x, rule_of(0)),
        }
        if loss == "targeted_dlr":
            state["targets"] = tf.math.top_k(clean, targets + 1).indices[:, 1:]
            runs *= targets

        def tick(i: tf.Tensor, s: State) -> State:
            """Evaluate an iterate of a stage of a restart, and move on from it."""
            run = i // len(places)
            stage, k = tf.unstack(tf.gather(places, i % len(places)))
            last, rule = tf.equal(stage, len(stages) - 1), rule_of(stage)
            labels = [s["y"]]
            if loss == "targeted_dlr":
                labels.append(s["targets"][:, run // self.restarts])

            def random() -> tf.Tensor:
                return tf.gather(random_start(x, rule.threat, noise.fold(seed, run)), s["row"])

            def begun() -> State:
                start = tf.cond(tf.equal(stage, 0), random, lambda: s["best"])
                return s | self.begin(rule.threat.project(start, s["x"]), s["x"], rule)

            def look(x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                logits = logits_fn(x_adv)
                return getattr(losses, loss)(logits, *labels), ~losses.correct(logits, labels[0])

            s = tf.cond(tf.equal(k, 0), begun, lambda: s)
            s = self.advance(look, k, s, rule, leave=last)
            better = last & (s["broken"] | (s["value"] > s["highest"]))
            return s | {
                "images": tf.where(rows(better, x), s["best"], s["images"]),
                "highest": tf.where(better, s["value"], s["highest"]),
            }

        end = hunt(tick, state, runs * len(places))
        images = tf.stop_gradient(end["images"])
        return Outcome(images, end["broken"], end["queries"], end["queries"] - 1)

    def begin(self, start: tf.Tensor, x: tf.Tensor, rule: Halving | Sparse) -> State:
        """Return the state of an ascent by a rule, at its start [B, H, W, C] near the images x."""
        return {
            "x_adv": start,
            "best": start,
            "best_gradient": tf.zeros_like(x),
            "value": tf.fill(tf.shape(x)[:1], float("-inf")),  # the loss at "best"
            **rule.begin(start, x),
        }

    def advance(
        self, look: Evaluate, k: tf.Tensor, s: State, rule: Halving | Sparse, leave: Any = True
    ) -> State:
        """Evaluate iterate k of an ascent and move on to the next.

        Args:
            look: Images [B, H, W, C] -> loss [B], misclassified [B].
            k: The number of the iterate, 0 at the start.
            s: The state of `begin`, with the clean images "x", "broken" and "queries".
            rule: How to move and to adapt the step size.
            leave: Whether a misclassified example is broken; its "best" image is then this iterate.
        """
        value, wrong, gradient = differentiated(look, s["x_adv"])
        broken, better = wrong & leave, value > s["value"]
        s = s | {
            "best": tf.where(rows(broken | better, gradient), s["x_adv"], s["best"]),
            "best_gradient": tf.where(rows(better, gradient), gradient, s["best_gradient"]),
            "value": tf.where(better, value, s["value"]),
            "broken": broken,
            "queries": s["queries"] + 1,
        }
        return rule.move(k, *rule.adapt(k, s, value, gradient))


def random_start(x: tf.Tensor, threat: Threat, seed: Any) -> tf.Tensor:
    """Return a random start before projection: x plus a direction of norm eps, or noise for L1."""
    draw = (noise.uniform if threat.norm == "linf" else noise.normal)(tf.shape(x), seed)
    draw = threat.mutable(tf.ensure_shape(draw, x.shape))
    if threat.norm == "l1":
        return x + threat.from_ball(draw)
    return x + threat.from_ball(threat.eps * draw / per_example(norm(draw, threat.norm), x))
