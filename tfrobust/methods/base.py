"""RobustModel, in whose training step one batch dict goes from hook to hook and gains entries."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust import losses, noise
from tfrobust._compat import loss_mean, twice_differentiable
from tfrobust.attacks import FGSM, PGD, Attack
from tfrobust.attacks.gradient import GradientAttack
from tfrobust.errors import choose, number, require, require_at_least, require_seed
from tfrobust.gate import check_threat
from tfrobust.methods import decay, hooks, replicas
from tfrobust.methods.averaging import AveragedModel, Averaging
from tfrobust.methods.batch import Batch, as_batch, filled, weighed, without_strings
from tfrobust.methods.means import Means, for_keras
from tfrobust.methods.ramp import ramp
from tfrobust.methods.several_norms import WAYS, Errors, check_attack, perturbed
from tfrobust.methods.table import Table
from tfrobust.methods.validation import measured
from tfrobust.models.signatures import forward, inputs_advice, signature
from tfrobust.threat import Threat, threats_of

MODES = ("eval", "train", "frozen")


class RobustModel(AveragedModel):
    """A Keras model that trains a network against a threat. A method overrides some of five hooks.

    `fit` and `evaluate` take (x, y), (x, y, sample_weight) or batches {"image", "label", "index"},
    which may have a "weight". Training minimises the mean of weight * loss over the batch, as Keras
    does. All values in the logs, the loss included, are weighted means: sum(weight * value) /
    sum(weight). In training, `class_weight` multiplies the weights of the examples.

    Args:
        network: A built Keras model from images [B, H, W, C], series [B, T, C] or rows [B, F] in
            the threat's box to logits [B, C]. It is what is evaluated and exported.
        threat: The set of adversarial images, or a list of sets with different norms.
        norms: The rule for a list: "sample" draws one threat for each batch, in proportion to its
            robust error so far (E-AT); "max" takes for each example the threat of greatest loss.
        attack: The attack in training; None for the method's default.
        validation_attack: The attack behind `val_robust_accuracy`, at the full eps; None for
            PGD(steps=10).
        warmup_steps: The number of steps at eps 0 with which training begins.
        ramp_steps: The number of steps after these, in which eps, alpha and beta grow linearly.
        craft: The network's mode while it is attacked in training: "eval" (moving averages),
            "frozen" (batch statistics; the averages do not move) or "train" (batch statistics; the
            averages move). Papers differ, and so do the defaults of some methods.
        label_smoothing: The s with which the cross entropies of the loss take 1 - s + s / C as the
            probability of the label, and s / C as that of each other class. Attacks and validation
            take labels as they are.
        l2: The coefficient of l2 / 2 * ||w||^2, the coupled weight decay of the papers, which is
            added to the loss. Keras's `weight_decay` is decoupled.
        l2_on: The weights in this sum: "all" trainable weights, or "kernels", without the biases
            and BatchNorm's weights.
        averaging: An average of the weights (`Ema`, `Swa`), with which the model is validated,
            predicts and exports, and which pipelines keep. `network` has the last weights, until
            `network.set_weights(model.evaluated_weights())`.
        seed: The seed of the run. All noise is a function of (seed, step, purpose).
        num_examples: The number of training examples, which bounds `index`. This and the next two
            are required by methods that name them in `needs`.
        batch_size: The number of examples in a training batch.
        steps_per_epoch: The number of training batches in an epoch.
    """

    # The inputs of the network: the image, or a mapping of the image and others.
    network_inputs: Sequence[str] = ("image",)
    # Terms of robust_loss whose means are logged. Those of a subclass are added to these.
    reports: Sequence[str] = ("accuracy", "robust_accuracy", "jacobian", "kl")
    # Batch entries that the method needs beside image and label.
    requires: Sequence[str] = ()
    # Batch entries NAME in which gradients are computed. after_update gets these as d_NAME.
    differentiate: Sequence[str] = ()
    # Which of num_examples, batch_size and steps_per_epoch the method needs.
    needs: Sequence[str] = ()
    # The number of optimizer steps that `update` takes on a batch.
    updates_per_batch = 1
    # Whether the method has a state that belongs to one norm.
    one_threat = False
    class_weight: np.ndarray | None = None  # float32 [classes], during a `fit` with class weights
    # The attack when none is passed; None for a method that takes no attack.
    default_attack: Attack | None = FGSM()
    attack_kind: type[Attack] = Attack
    # The loss of an attack that names none; None if the method has an objective of its own.
    crafting_loss: str | None = "cross_entropy"
    # Whether the loss has a meaning for examples of two labels (`tfrobust.data.augment.Mixing`).
    mixed_labels = True
    # Constructor arguments, at least those without a default, with which tests and tools build the
    # method for a trial on a few images.
    example: Mapping[str, Any] = {}

    # ------------------------------------------------------------------------------- the hooks
    def inputs(self, batch: Batch, x: tf.Tensor) -> Any:
        """Return the inputs of the network when the image is x."""
        return x

    def perturb(self, batch: Batch) -> Batch:
        """Return new batch entries, such as "adv" [B, H, W, C]. Only this hook draws noise.

        No gradient flows through the entries.
        """
        return {"adv": self.adversary(batch)}

    def robust_loss(self, batch: Batch) -> Batch:
        """Return {"loss": [B]} and the terms [B] that `reports` names.

        It must be a function of the batch and the weights alone.
        """
        raise NotImplementedError

    def after_update(self, batch: Batch) -> None:
        """Write per-example tables, after the optimizer's step.

        The batch holds the entries that `perturb` and `robust_loss` added.
        """

    def tables(self) -> dict[str, Table]:
        """Return, by name, the tables that hold one number for each training example."""
        return {}

    def scalars(self) -> dict[str, Any]:
        """Return the current values of quantities that change in training, for the logs."""
        if len(self.threats) == 1:
            return {"eps": self.threat.eps * self.scale}
        return {f"eps_{each.norm}": each.eps * self.scale for each in self.threats}

    # ---------------------------------------------------------------------------- construction
    def __init__(
        self,
        network: keras.Model,
        *,
        threat: Threat | Sequence[Threat],
        norms: str = "sample",
        attack: Attack | None = None,
        validation_attack: Attack | None = None,
        warmup_steps: int = 0,
        ramp_steps: int = 0,
        craft: str = "eval",
        label_smoothing: float = 0.0,
        l2: float = 0.0,
        l2_on: str = "all",
        averaging: Averaging | None = None,
        seed: int = 0,
        num_examples: int | None = None,
        batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name, dtype="float32")
        require(not isinstance(network, RobustModel), "network", "model.network alone", network)
        built = isinstance(network, keras.Model) and network.built
        expected = "a built keras.Model (give it an Input, or call it once)"
        require(built, "network", expected, network)
        self.signature = signature(network)
        inputs = self.signature.inputs
        expected = f"one of {' and '.join(self.network_inputs)} ({inputs_advice(inputs)})"
        require(set(inputs) == set(self.network_inputs), "network", expected, " and ".join(inputs))
        trainable = network.trainable_variables
        require(trainable, "network", "one with trainable weights", "a frozen one")
        threats = threats_of(threat)
        for each in threats:
            check_threat(each)
        self.threat, self.several_threats = threats[0], threats if len(threats) > 1 else ()
        fits = len(self.threats) == 1 or not self.one_threat
        require(fits, "threat", f"one threat ({type(self).__name__} takes no list)", threat)
        averages = averaging is None or isinstance(averaging, Averaging)
        require(averages, "averaging", "a tfrobust.Ema or tfrobust.Swa", averaging)
        needs = {*self.needs}
        if averaging and averaging.counts_epochs:
            needs.add("steps_per_epoch")
        counts = {"num_examples": num_examples, "batch_size": batch_size}
        hooks.check_counts(needs, **counts, steps_per_epoch=steps_per_epoch)
        require_at_least(0, warmup_steps=warmup_steps, ramp_steps=ramp_steps)
        self.network = network
        self.norms = choose("norms", norms, WAYS)
        self.attack = self._attack(attack)
        self.validation_attack = validation_attack or PGD(steps=10)
        self.check_attacks()
        self.label_smoothing = number("label_smoothing", label_smoothing, at_least=0, below=1)
        self.l2, self.averaging = number("l2", l2, at_least=0), averaging
        self.warmup_steps, self.ramp_steps, self.seed = warmup_steps, ramp_steps, require_seed(seed)
        self.num_examples, self.batch_size = num_examples, batch_size
        self.steps_per_epoch = steps_per_epoch
        self.craft = choose("craft", craft, MODES)
        self.l2_on = choose("l2_on", l2_on, decay.DECAYED)
        self.step = self.add_weight(
            shape=(), dtype="int64", trainable=False, initializer="zeros", name="step"
        )
        self.start_averages()
        sampled = len(self.threats) > 1 and norms == "sample"
        self.errors = Errors(len(self.threats)) if sampled else None
        self.reported = (*RobustModel.reports, *self.reports)
        self.means = Means(dict.fromkeys((*self.reported, "fgsm_accuracy")))
        self.compiled_parts = {}
        self.built = True

    def _attack(self, attack: Attack | None) -> Attack | None:
        """Return the attack or the method's default, with the method's loss unless it names one."""
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
        check_attack("attack", self.attack, self.threats, image_shape)
        check_attack("validation_attack", self.validation_attack, self.threats, image_shape)

    # ------------------------------------------------------------------------ schedules, noise
    @property
    def scale(self) -> Any:
        """The eps of this step divided by the full eps, in [0, 1]."""
        return ramp(self.step, self.warmup_steps, self.ramp_steps)

    @property
    def threat_now(self) -> Threat:
        """The threat at the eps of this step."""
        return self.threat.at(self.threat.eps * self.scale)

    @property
    def epoch(self) -> tf.Tensor:
        """The current epoch, int64, from 0; for methods that need `steps_per_epoch`."""
        return tf.convert_to_tensor(self.step) // self.steps_per_epoch

    def seed_for(self, purpose: str) -> tf.Tensor:
        """Return the seed of this step's noise for a purpose, int64 [2]."""
        return noise.seed_for(self.seed, tf.convert_to_tensor(self.step), purpose)

    def projections(self, batch: Batch, seed: tf.Tensor) -> tf.Tensor:
        """Return random unit vectors [B, C] on which to project the Jacobian."""
        return noise.unit_vectors([tf.shape(batch["label"])[0], self.signature.classes], seed)

    def truth(self, batch: Batch) -> tf.Tensor:
        """Return the targets of the loss's cross entropies.

        They are the labels [B], or probabilities [B, C] if labels are smoothed or mixed.
        """
        mixed, label, classes = "other_label" in batch, batch["label"], self.signature.classes
        if not (mixed or self.label_smoothing):
            return label
        targets = tf.one_hot(label, classes)
        if mixed:
            expected = f"labels that are not mixed ({type(self).__name__} needs one)"
            require(self.mixed_labels, "batch", expected, "other_label")
            other, share = tf.one_hot(batch["other_label"], classes), batch["other_share"][:, None]
            targets = (1.0 - share) * targets + share * other
        return losses.smoothed(targets, self.label_smoothing)

    def adversary(self, batch: Batch) -> tf.Tensor:
        """Return the adversarial images [B, H, W, C] of `attack` at the eps of this step."""
        assert self.attack is not None
        return self.attack.images(
            self.logits_fn(batch, self.craft),
            batch["image"],
            batch["label"],
            threat=self.threat_now,
            seed=self.seed_for("attack"),
        )

    # -------------------------------------------------------------- passes through the network
    @twice_differentiable()
    def forward(self, inputs: Any, mode: str) -> tf.Tensor:
        """Return float32 logits [B, C] in the mode "eval", "train" or "frozen" (see `craft`)."""
        choose("mode", mode, MODES)
        with self.substituted({}) if mode == "frozen" else contextlib.nullcontext():
            return tf.cast(forward(self.network, inputs, mode != "eval"), tf.float32)

    def logits_fn(self, batch: Batch, mode: str) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return the function x -> logits for attacks, with the batch's other inputs bound."""
        return lambda x: self.forward(self.inputs(batch, x), mode)

    def substituted(self, values: Mapping[int, tf.Tensor]) -> keras.StatelessScope:
        """Return a context in which trainable weight k of the network has the value values[k].

        Assignments to the network's variables in the context are dropped.
        """
        weights = self.network.trainable_variables
        pairs = [(variable, variable.value) for variable in self.network.variables]
        pairs += [(weights[k], value) for k, value in values.items()]
        return keras.StatelessScope(pairs, collect_losses=True)

    # ---------------------------------------------------------------------- one training batch
    def train_step(self, data: Any) -> dict[str, Any]:
        batch = weighed(filled(self.as_batch(data, self.requires)), self.class_weight)
        # On several replicas only the parts without communication are compiled (`computed`).
        update = self._updated if self.distributed else self.by_xla(self._updated)
        logs = update(batch) | self.scalars()
        with tf.control_dependencies([batch["image"]]):  # a refused batch does not count
            self.count_step()
        return for_keras(logs)

    def count_step(self) -> None:
        """Count a step of `fit`, after its batch was trained on."""
        self.step.assign_add(1)

    def _updated(self, batch: Batch) -> dict[str, Any]:
        logs = self.update(batch)
        self.move_averages()
        return logs

    def update(self, batch: Batch) -> dict[str, Any]:
        """Take one optimizer step on the batch, and return the means of the terms in `reports`."""
        if self.craft == "train":  # `computed` cannot return averages that an attack's loop moved
            entries = self._perturbed(batch)
        else:
            entries = self.computed(self._perturbed, batch)
        batch = batch | entries
        terms, gradients, slopes = self.gradients(batch)
        combined = replicas.for_optimizer(self.optimizer, gradients)
        self.optimizer.apply(combined, self.network.trainable_variables)
        self.after_update(batch | terms | slopes)
        weight = batch.get("weight", 1.0)
        if self.errors is not None:
            self.errors.count(batch["norm"], terms.get("robust_accuracy", 0.0), weight)
        reported = {name: terms[name] for name in ("loss", *self.reported) if name in terms}
        return self.means.measure(loss_mean(self), reported, weight)

    def _perturbed(self, batch: Batch) -> Batch:
        return tf.nest.map_structure(tf.stop_gradient, perturbed(self, batch))

    def perturb_under(self, threat: Threat, batch: Batch) -> Batch:
        """Return the entries of `perturb` with one of the threats as `self.threat`."""
        self.threat = threat
        try:
            return hooks.checked_entries(self.perturb(batch), self)
        finally:
            self.threat = self.threats[0]

    def gradients(
        self, batch: Batch, penalised: bool = True
    ) -> tuple[Batch, list[tf.Tensor], Batch]:
        """Return the terms of `robust_loss` and the gradients of the mean of weight * loss.

        Args:
            batch: The batch with the entries of `perturb`.
            penalised: Whether the penalties on the weights (the network's and `l2`) are added.

        Returns:
            The terms; the gradients in the network's trainable weights; and the gradients in the
            batch entries that `differentiate` names, as d_NAME.
        """
        return self.computed(self._gradients, batch, penalised)

    def _gradients(self, batch: Batch, penalised: bool) -> tuple[Batch, list[tf.Tensor], Batch]:
        weights = [weight.value for weight in self.network.trainable_variables]
        watched = {f"d_{name}": batch[name] for name in self.differentiate}
        with tf.GradientTape() as tape:
            tape.watch([weights, watched])
            terms = hooks.checked_terms(self.robust_loss(batch), batch, self)
            loss = tf.reduce_mean(terms["loss"] * batch.get("weight", 1.0))
            if penalised:
                loss += decay.total(self.network.losses)
            if penalised and self.l2:
                loss += self.l2 * decay.half_square(self.network, self.l2_on)
            # The optimizer sums the gradients of the replicas.
            parts = tf.distribute.get_strategy().num_replicas_in_sync
            scaled = self.optimizer.scale_loss(loss / parts)
        return terms, *tape.gradient(scaled, [weights, watched])

    def test_step(self, data: Any) -> dict[str, Any]:
        """Measure accuracy and robust accuracy, under `validation_attack` and under FGSM.

        The Jacobian is estimated at FGSM's adversarial image. A jump of the estimate, or of the gap
        between the two robust accuracies, shows catastrophic overfitting.
        """
        batch = filled(self.as_batch(data))
        terms = self.by_xla(self._validated)(batch)
        logs = self.means.measure(loss_mean(self), terms, batch.get("weight", 1.0))
        return for_keras(logs)

    def _validated(self, batch: Batch) -> Batch:
        with self._as_evaluated():
            return measured(self, batch)

    # ------------------------------------------------------------------------ as a Keras model
    def call(self, x: Any, training: bool = False) -> tf.Tensor:
        batch = x if isinstance(x, dict) else {"image": x}
        with contextlib.nullcontext() if training else self._as_evaluated():
            return self.forward(self.inputs(batch, batch["image"]), "train" if training else "eval")

    def as_batch(self, data: Any, requires: Sequence[str] = ()) -> Batch:
        """Return data as a checked batch with the entries that `requires` names."""
        batch = as_batch(data, requires, type(self).__name__, self._limits, self.num_examples)
        return without_strings(batch) if self.jit_compile else batch
