"""RobustModel: one batch dict flows down a training step, and each hook adds entries to it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust._compat import loss_mean
from tfrobust.attacks import FGSM, PGD, Attack
from tfrobust.attacks.gradient import GradientAttack
from tfrobust.errors import choose, require
from tfrobust.gate import check_threat
from tfrobust.jacobian import squared_jacobian
from tfrobust.methods.batch import Batch, as_batch, weighed, without_strings
from tfrobust.methods.gated import GatedModel
from tfrobust.methods.means import Means
from tfrobust.methods.table import Table
from tfrobust.models.signatures import forward, signature
from tfrobust.registry import located
from tfrobust.threat import Threat

MODES = ("eval", "train", "frozen")


class RobustModel(GatedModel):
    """A network trained against a threat. A method overrides only what it changes of five hooks.

    Args:
        network: a built Keras model, images [B, H, W, C] in [0, 1] -> logits [B, C]; it is what
            is evaluated and exported.
        threat: the set that adversaries are drawn from.
        attack: makes the training adversaries; None is the method's default.
        validation_attack: what `val_robust_accuracy` is measured with, at the full eps.
        ramp_steps: eps grows linearly from 0 over so many steps, and alpha and beta with it.
        craft: the network while crafting: "eval" (moving averages), "frozen" (batch statistics,
            averages left alone) or "train" (batch statistics, averages moved). Papers differ.
        l2: l2 / 2 * ||w||^2 over all trainable weights is added to the loss: the coupled weight
            decay of the papers, which is not Keras's `weight_decay`.
        ema: after every step a <- ema * a + (1 - ema) * w for all weights w of the network and the
            averages of BatchNorm, from those that it has now on; validation and predictions are
            with a, and so is what `pipelines` keeps (`evaluated_weights`). 0: no such average.
        seed: all noise is a function of (seed, step, purpose).
        num_examples, batch_size, steps_per_epoch: of the training data (`index` is below
            num_examples), for the methods whose `needs` name them.

    `fit` and `evaluate` take (x, y), (x, y, sample_weight) or batches {"image", "label", "index"},
    which may have a "weight". What is minimised is the mean of weight * loss over the batch, as in
    Keras; whatever is reported, the loss too, is the weighted mean, the sum of weight * value by
    that of the weights. `class_weight` counts in training, on top of the examples' own weights.
    """

    # What the network is called with: the image, or a mapping of the image and more.
    network_inputs: Sequence[str] = ("image",)
    # Entries of robust_loss's result that are averaged into the logs where it has them; a
    # subclass names those beside these.
    reports: Sequence[str] = ("accuracy", "robust_accuracy", "jacobian", "kl")
    # Batch entries that the method needs beside image and label.
    requires: Sequence[str] = ()
    # Batch entries in which the pass that trains is differentiated too: after_update finds the
    # gradient of NAME as d_NAME.
    differentiate: Sequence[str] = ()
    # Of num_examples, batch_size and steps_per_epoch those that the method must be told.
    needs: Sequence[str] = ()
    # Steps of the optimizer that `update` takes on a batch.
    updates_per_batch = 1
    class_weight: np.ndarray | None = None  # of this fit, by class
    # The attack of a method that is given none; None for one that takes none.
    default_attack: Attack | None = FGSM()
    attack_kind: type[Attack] = Attack
    # What an attack ascends that names no loss; None where the method has an objective of its own.
    crafting_loss: str | None = "cross_entropy"

    # ------------------------------------------------------------------------------- the hooks
    def inputs(self, batch: Batch, x: tf.Tensor) -> Any:
        """What the network is called with when the image is x."""
        return x

    def perturb(self, batch: Batch) -> Batch:
        """New batch entries, constants for the weights: the only place that draws noise."""
        return {"adv": self.adversary(batch)}

    def robust_loss(self, batch: Batch) -> Batch:
        """{"loss": [B], and the terms named in `reports`}: a function of batch and weights only."""
        raise NotImplementedError

    def after_update(self, batch: Batch) -> None:
        """Write per-example tables; batch holds what perturb and robust_loss added."""

    def tables(self) -> dict[str, Table]:
        """The tables with a number for each training example, by the name of the number."""
        return {}

    def scalars(self) -> dict[str, Any]:
        """The schedules' values now, for the logs."""
        return {"eps": self.threat.eps * self.scale}

    # ---------------------------------------------------------------------------- construction
    def __init__(
        self,
        network: keras.Model,
        *,
        threat: Threat,
        attack: Attack | None = None,
        validation_attack: Attack | None = None,
        ramp_steps: int = 0,
        craft: str = "eval",
        l2: float = 0.0,
        ema: float = 0.0,
        seed: int = 0,
        num_examples: int | None = None,
        batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name, dtype="float32")
        require(
            isinstance(network, keras.Model) and network.built,
            "network",
            "a built keras.Model (give it an Input, or call it once)",
            network,
        )
        self.signature = signature(network)
        inputs = self.signature.inputs
        expected = f"one of {' and '.join(self.network_inputs)} (model.lambdas makes one of both)"
        require(set(inputs) == set(self.network_inputs), "network", expected, " and ".join(inputs))
        require(
            network.trainable_variables, "network", "one with trainable weights", "a frozen one"
        )
        require(isinstance(threat, Threat), "threat", "a tfrobust.Threat", threat)
        check_threat(threat)
        attack = self._attack(attack, threat)
        facts = {
            "num_examples": num_examples,
            "batch_size": batch_size,
            "steps_per_epoch": steps_per_epoch,
        }
        for fact, value in facts.items():
            wanted = value is not None or fact in self.needs
            require(not wanted or (value or 0) >= 1, fact, "int >= 1, of the training data", value)
        require(ramp_steps >= 0, "ramp_steps", "int >= 0", ramp_steps)
        require(l2 >= 0, "l2", "a number >= 0", l2)
        require(0 <= ema < 1, "ema", "a number in [0, 1)", ema)
        self.network, self.threat = network, threat
        self.attack = attack
        self.validation_attack = validation_attack or PGD(steps=10)
        self.check_attacks()
        self.ramp_steps, self.l2, self.ema, self.seed = ramp_steps, l2, ema, seed
        self.num_examples, self.batch_size = num_examples, batch_size
        self.steps_per_epoch = steps_per_epoch
        self.craft = choose("craft", craft, MODES)
        self.step = self.add_weight(
            shape=(), dtype="int64", trainable=False, initializer="zeros", name="step"
        )
        self.averages = [
            self.add_weight(
                shape=weight.shape,
                dtype=weight.dtype,
                initializer=lambda shape, dtype=None, weight=weight: tf.identity(weight.value),
                trainable=False,
                name=f"average_{k}",
            )
            for k, weight in enumerate(self._averaged if ema else ())
        ]
        for k, average in enumerate(self.averages):  # checkpoints do not look into lists
            setattr(self, f"average_{k}", average)
        names = dict.fromkeys((*RobustModel.reports, *self.reports, "fgsm_accuracy"))
        self.means = Means(names)
        self.compiled_parts = {}
        self.built = True

    def _attack(self, attack: Attack | None, threat: Threat) -> Attack | None:
        """The attack given or the method's own, with the method's loss unless it names one."""
        if self.default_attack is None:
            require(attack is None, "attack", f"none ({type(self).__name__} takes none)", attack)
            return None
        kind = self.attack_kind
        expected = "an Attack" if kind is Attack else f"an attack that is a {kind.__name__}"
        require(attack is None or isinstance(attack, kind), "attack", expected, attack)
        attack = attack or self.default_attack
        if isinstance(attack, GradientAttack) and self.crafting_loss is None:
            expected = f"none ({type(self).__name__} has an objective of its own)"
            require(attack.loss is None, "attack.loss", expected, attack.loss)
        elif isinstance(attack, GradientAttack) and attack.loss is None:
            attack = dataclasses.replace(attack, loss=self.crafting_loss)
        return attack

    def check_attacks(self, image_shape: tuple[int, ...] | None = None) -> None:
        if self.attack is not None:
            located("attack", self.attack.check, self.threat, image_shape)
        located("validation_attack", self.validation_attack.check, self.threat, image_shape)

    # ------------------------------------------------------------------------ schedules, noise
    @property
    def scale(self) -> Any:
        """eps now / final eps, in [0, 1]."""
        if self.ramp_steps == 0:
            return tf.constant(1.0)
        return tf.minimum(1.0, tf.cast(self.step, tf.float32) / self.ramp_steps)

    @property
    def threat_now(self) -> Threat:
        """The threat at the eps of this step."""
        return self.threat.at(self.threat.eps * self.scale)

    @property
    def epoch(self) -> tf.Tensor:
        """int64, from 0; for methods that need `steps_per_epoch`."""
        return tf.convert_to_tensor(self.step) // self.steps_per_epoch

    def seed_for(self, purpose: str) -> tf.Tensor:
        """The seed of one random act of this training step."""
        return noise.seed_for(self.seed, tf.convert_to_tensor(self.step), purpose)

    def projections(self, batch: Batch, seed: tf.Tensor) -> tf.Tensor:
        """Unit vectors [B, C] on which the Jacobian is projected."""
        return noise.unit_vectors([tf.shape(batch["label"])[0], self.signature.classes], seed)

    def adversary(self, batch: Batch) -> tf.Tensor:
        """The training attack on the batch, at the eps of this step."""
        assert self.attack is not None
        return self.attack(
            self.logits_fn(batch, self.craft),
            batch["image"],
            batch["label"],
            threat=self.threat_now,
            seed=self.seed_for("attack"),
        )

    # -------------------------------------------------------------- passes through the network
    def run(self, inputs: Any, mode: str) -> tf.Tensor:
        """Float32 logits; mode is "eval", "train" or "frozen"."""
        with self.substituted({}) if mode == "frozen" else contextlib.nullcontext():
            return tf.cast(forward(self.network, inputs, mode != "eval"), tf.float32)

    def logits_fn(self, batch: Batch, mode: str) -> Callable[[tf.Tensor], tf.Tensor]:
        """x -> logits with the batch's other inputs bound: what attacks are given."""
        return lambda x: self.run(self.inputs(batch, x), mode)

    def substituted(self, values: Mapping[int, tf.Tensor]) -> keras.StatelessScope:
        """A context in which trainable weight k is read as values[k], and assignments to the
        network's variables are dropped."""
        weights = self.network.trainable_variables
        other = [(weights[k], value) for k, value in values.items()]
        return keras.StatelessScope([*((v, v.value) for v in self.network.variables), *other])

    @property
    def _averaged(self) -> list[Any]:
        """Dropout's seeds are no numbers to average."""
        return [w for w in self.network.weights if tf.as_dtype(w.dtype).is_floating]

    def _as_evaluated(self) -> Any:
        """A context in which the network's weights are read as their averages, with `ema`."""
        if not self.ema:
            return contextlib.nullcontext()
        pairs = zip(self._averaged, self.averages, strict=True)
        return keras.StatelessScope([(weight, average.value) for weight, average in pairs])

    def evaluated_weights(self) -> list[np.ndarray]:
        """Of the network as it is validated, for its `set_weights`."""
        pairs = zip(self._averaged, self.averages, strict=True) if self.ema else ()
        averages = {id(weight): average for weight, average in pairs}
        return [averages.get(id(w), w).numpy() for w in self.network.weights]

    # ---------------------------------------------------------------------- one training batch
    def train_step(self, data: Any) -> dict[str, Any]:
        batch = weighed(self.as_batch(data, self.requires), self.class_weight)
        # Of a replica only what it computes by itself is compiled (`computed`), else all.
        update = self.update if self.distributed else self.by_xla(self.update)
        logs = update(batch) | self.scalars()
        with tf.control_dependencies([batch["image"]]):  # nothing moves where it was refused
            self.step.assign_add(1)
        return _for_keras(logs)

    def update(self, batch: Batch) -> dict[str, Any]:
        """One step of the optimizer on the batch; the averages of what `reports` names."""
        batch = batch | self.computed(self._perturbed, batch)
        terms, gradients, slopes = self.gradients(batch)
        self.optimizer.apply(gradients, self.network.trainable_variables)
        for weight, average in zip(self._averaged, self.averages, strict=False):
            average.assign(self.ema * average.value + (1.0 - self.ema) * weight.value)
        self.after_update(batch | terms | slopes)
        told = ("loss", *RobustModel.reports, *self.reports)
        measured = {name: terms[name] for name in told if name in terms}
        return self.means.measure(loss_mean(self), measured, batch.get("weight", 1.0))

    def _perturbed(self, batch: Batch) -> Batch:
        return tf.nest.map_structure(tf.stop_gradient, self.perturb(batch))

    def gradients(
        self, batch: Batch, penalised: bool = True
    ) -> tuple[Batch, list[tf.Tensor], Batch]:
        """What robust_loss gives; the gradients of the mean of weight * loss over the batch, as in
        Keras (penalised: and of the penalties on the weights), in the weights; and those in the
        entries that `differentiate` names."""
        return self.computed(self._gradients, batch, penalised)

    def _gradients(self, batch: Batch, penalised: bool) -> tuple[Batch, list[tf.Tensor], Batch]:
        weights = [weight.value for weight in self.network.trainable_variables]
        watched = {f"d_{name}": batch[name] for name in self.differentiate}
        with tf.GradientTape() as tape:
            tape.watch([weights, watched])
            terms = self.robust_loss(batch)
            loss = tf.reduce_mean(terms["loss"] * batch.get("weight", 1.0))
            if penalised:
                loss += tf.add_n([0.0, *self.network.losses])
            if penalised and self.l2:
                loss += self.l2 * tf.add_n([tf.nn.l2_loss(weight) for weight in weights])
            # Gradients are summed over replicas, hence the division.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            scaled = self.optimizer.scale_loss(loss / replicas)
        return terms, *tape.gradient(scaled, [weights, watched])

    def test_step(self, data: Any) -> dict[str, Any]:
        """Accuracy, robust accuracy by `validation_attack`, and at an FGSM adversary the accuracy
        and the Jacobian estimate, whose jumps show catastrophic overfitting."""
        batch = self.as_batch(data)
        terms = self.by_xla(self._validated)(batch)
        logs = self.means.measure(loss_mean(self), terms, batch.get("weight", 1.0))
        return _for_keras(logs)

    def _validated(self, batch: Batch) -> Batch:
        with self._as_evaluated():
            return self._measured(batch)

    def _measured(self, batch: Batch) -> Batch:
        x, y, logits_fn = batch["image"], batch["label"], self.logits_fn(batch, "eval")

        def attacked(attack: Attack, purpose: str) -> tf.Tensor:
            seed = noise.seed_for(self.seed, 0, purpose)
            return attack(logits_fn, x, y, threat=self.threat, seed=seed)

        clean = logits_fn(x)
        robust = logits_fn(attacked(self.validation_attack, "validation"))
        seed = noise.seed_for(self.seed, 0, "validation projection")
        weak, jacobian = squared_jacobian(
            logits_fn, attacked(FGSM(), "validation fgsm"), self.projections(batch, seed)
        )
        return {
            "loss": losses.cross_entropy(robust, y),
            "accuracy": losses.correct(clean, y),
            "robust_accuracy": losses.correct(robust, y),
            "fgsm_accuracy": losses.correct(weak, y),
            "jacobian": jacobian,
        }

    # ------------------------------------------------------------------------ as a Keras model
    def call(self, x: Any, training: bool = False) -> tf.Tensor:
        batch = x if isinstance(x, dict) else {"image": x}
        with contextlib.nullcontext() if training else self._as_evaluated():
            return self.run(self.inputs(batch, batch["image"]), "train" if training else "eval")

    def as_batch(self, data: Any, requires: Sequence[str] = ()) -> Batch:
        """`tfrobust.methods.batch.as_batch`; a step gives what the method requires."""
        name, taken = type(self).__name__, self._taken
        batch = as_batch(data, requires, name, taken.classes, taken.box, self.num_examples)
        return without_strings(batch) if self.jit_compile else batch


def _for_keras(logs: dict[str, Any]) -> dict[str, Any]:
    """Keras reduces the logs of several machines along an axis, and those of one without."""
    several = isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)
    return {k: tf.reshape(v, [1]) for k, v in logs.items()} if several else logs
