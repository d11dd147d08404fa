"""GatedModel compiles, fits, evaluates, saves and loads as Keras does, and checks inputs first."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust._compat import HookedModel, layers_of, trains, validates_in_fit
from tfrobust.attacks import Attack
from tfrobust.attacks.gradient import GradientAttack
from tfrobust.errors import UserError, one_line, require, require_at_least, require_bool
from tfrobust.gate import (
    SOME,
    Taken,
    check_count,
    check_data,
    check_threat,
    check_trained,
    check_unlabelled,
    check_validation,
    reaches_images,
    refusals,
    warn_of_scale,
)
from tfrobust.methods import hooks, replicas
from tfrobust.methods.batch import Batch, class_weights, weighing
from tfrobust.methods.keras_arguments import check_numbers, check_sample_weight, images_of
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.signatures import Signature
from tfrobust.registry import parameters
from tfrobust.threat import Threat
from tfrobust.xla import compiled, is_choice


class GatedModel(HookedModel):
    """The part of `RobustModel` that connects it with Keras. `RobustModel` adds the step."""

    network: keras.Model
    attack: Attack | None
    threat: Threat  # of several threats the first; while a batch is attacked, the current one
    several_threats: Sequence[Threat]  # empty for one
    signature: Signature
    network_inputs: Sequence[str]
    # Whether the number of examples that a replica computes varies from step to step.
    sizes_vary = False
    compiled_parts: dict[str, Callable[..., Any]]  # the parts of a step, by name
    # Keras's own attributes.
    train_function: Any
    test_function: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        hooks.check_names(cls)

    def forward(self, inputs: Any, mode: str) -> tf.Tensor:
        """Return the logits [B, C] of the network in a mode of `RobustModel.craft`."""
        raise NotImplementedError

    def as_batch(self, data: Any) -> Batch:
        """Return data as the checked batch that a step takes."""
        raise NotImplementedError

    def check_attacks(self, image_shape: tuple[int, ...] | None = None) -> None:
        """Raise a UserError unless the attacks fit the threat and images of a shape [H, W, C]."""
        raise NotImplementedError

    @neutral()
    def compile(
        self,
        optimizer: Any = "sgd",
        *args: Any,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        """Compile as Keras does, without losses and metrics: the method brings its own.

        Args:
            optimizer: An optimizer or its name.
            args: The arguments of `keras.Model.compile` that follow the optimizer.
            jit_compile: Whether XLA compiles the steps. "auto" means only on GPUs: on a CPU, steps
                take 1.5 to 1.8 times as long with XLA.
            auto_scale_loss: Whether a network that computes in float16 gets a LossScaleOptimizer.
            kwargs: The other arguments of `keras.Model.compile`.

        Raises:
            UserError: There is a loss or a metric, or no optimizer, or a number or flag is none.
        """
        arguments = inspect.signature(super().compile).bind(optimizer, *args, **kwargs).arguments
        for name in ("loss", "metrics", "weighted_metrics", "loss_weights"):
            require(not arguments.pop(name, None), name, "none (the method brings its own)", "one")
        require(is_choice(jit_compile), "jit_compile", "True, False or 'auto'", jit_compile)
        require_bool(auto_scale_loss=auto_scale_loss)
        optimizer = keras.optimizers.get(arguments.pop("optimizer"))
        require(optimizer is not None, "optimizer", "an optimizer or its name", None)
        # Keras looks at the policy of this model, which is always float32, not at the network's.
        half = any(layer.compute_dtype == "float16" for layer in layers_of(self.network))
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if half and auto_scale_loss and not scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(optimizer, jit_compile=jit_compile, **arguments)
        self.compiled_parts.clear()
        self._choices = {"jit_compile": jit_compile, "auto_scale_loss": auto_scale_loss}

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        return config | self._choices if config else config  # it is empty before `compile`

    @property
    def steps_per_execution(self) -> int:
        """The number of steps that run without a return to Python."""
        return self._steps_per_execution

    @steps_per_execution.setter
    def steps_per_execution(self, value: int) -> None:
        require_at_least(1, steps_per_execution=value)
        self._steps_per_execution = value
        self.train_function = self.test_function = None  # they were made for the old value

    def make_train_function(self, force: bool = False) -> Any:
        if self.train_function is None or force:
            trainable = self.network.trainable_variables
            require(trainable, "network", "one with trainable weights", "a frozen one")
            expected = "a new one (this one was first used with other weights or fewer of them)"
            known = trains(self.optimizer, trainable)
            require(known, "optimizer", expected, type(self.optimizer).__name__)
            hooks.check_own_weights(self)
            replicas.check_steps(self)
            replicas.check_optimizer(self)
            self._forget([name for name in self.compiled_parts if name != "_validated"])
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Any:
        if self.test_function is None or force:
            replicas.check_steps(self)
            self._forget(["_validated"])
        return super().make_test_function(force)

    def _forget(self, parts: Sequence[str]) -> None:
        """Drop the compiled parts of these names, so that they are traced again with their step."""
        for name in parts:
            self.compiled_parts.pop(name, None)

    def by_xla(self, part: Callable[..., Any]) -> Callable[..., Any]:
        """Return a part of a step, compiled if the model is to be compiled by XLA."""
        if not self.jit_compile or self.run_eagerly:
            return part
        return self.compiled_parts.setdefault(part.__name__, compiled(part))

    @neutral()
    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as Keras does, after a check of the data and of the network.

        Raises:
            UserError: The data or the network is not fit for training: images are outside the
                threat's box, labels are no class numbers, the network returns probabilities, or the
                like. It is raised before any weight moves.
        """
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        check_numbers(arguments)
        class_weight = arguments.pop("class_weight", None)
        arguments["x"], arguments["y"] = check_data(x, y, self._limits)
        validation_data = arguments.get("validation_data")
        if validation_data is not None:
            arguments["validation_data"] = check_validation(validation_data, self._limits)
        for name, steps in (("x", "steps_per_epoch"), ("validation_data", "validation_steps")):
            check_count(name, arguments.get(name), steps, arguments.get(steps))
        x, y = arguments["x"], arguments["y"]
        images = images_of(x)
        check_sample_weight(arguments, images)
        self.check_network(images, labels=y)
        with refusals(), replicas.refusals(self), weighing(self, class_weight):
            return super().fit(**self.completed(arguments))

    def completed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of Keras's `fit`, with the callbacks that the model needs."""
        return arguments

    @neutral()
    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as Keras does, on any data that `fit` takes."""
        arguments = inspect.signature(super().evaluate).bind(x, y, *args, **kwargs).arguments
        private = arguments.pop("kwargs", {})
        if not validates_in_fit(private):  # `fit` has checked its validation data
            check_numbers(arguments)
            arguments["x"], arguments["y"] = check_data(x, y, self._limits)
            check_count("x", x, "steps", arguments.get("steps"))
            images = images_of(arguments["x"])
            check_sample_weight(arguments, images)
            self.check_network(images)
        with refusals():
            return super().evaluate(**arguments, **private)

    @neutral()
    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return logits as Keras does, of images that `fit` takes; labels are not looked at."""
        arguments = inspect.signature(super().predict).bind(x, *args, **kwargs).arguments
        check_numbers(arguments)
        check_count("x", x, "steps", arguments.get("steps"))
        try:
            return super().predict(**arguments | {"x": check_unlabelled(x, self._limits)})
        except UnboundLocalError as error:  # Keras's, if there were no outputs
            if "batch_outputs" not in str(error):
                raise
            raise UserError("x: expected at least one batch, received 0") from None

    @neutral()
    def predict_on_batch(self, x: Any) -> Any:
        """Return the logits of one batch as Keras does, of images that `fit` takes."""
        return super().predict_on_batch(check_unlabelled(x, self._limits))

    @neutral()
    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Train on one batch as Keras does; the network is checked before the first one.

        The weights of an example and of its class are multiplied, as in `fit`.
        """
        x, y = check_data(x, y, self._limits)
        arguments = {"sample_weight": sample_weight}
        check_sample_weight(arguments, images_of(x))
        weight = arguments["sample_weight"]
        if class_weight is not None and y is not None:
            of_class = class_weights(class_weight, self.signature.classes)[y]
            weight = of_class if weight is None else of_class * np.reshape(weight, -1)
        if self.train_function is None:
            self.check_network(images_of(x))
        with refusals(), replicas.refusals(self):
            return super().train_on_batch(x, y, weight, return_dict=return_dict)

    @neutral()
    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Evaluate one batch as Keras does; the network is checked before the first one."""
        x, y = check_data(x, y, self._limits)
        arguments = {"sample_weight": sample_weight}
        check_sample_weight(arguments, images_of(x))
        if self.test_function is None:
            self.check_network(images_of(x))
        with refusals():
            return super().test_on_batch(x, y, **arguments, return_dict=return_dict)

    @property
    def _limits(self) -> Taken:
        """The box, image shape and number of classes that data must keep to."""
        _, image_shape, classes = self.signature
        # check_network refuses a network of one class.
        return Taken(self.threat.box, image_shape, classes if classes > 1 else None)

    def check_network(
        self,
        images: np.ndarray | None = None,
        where: str = "network",
        labels: np.ndarray | None = None,
    ) -> None:
        """Raise a UserError unless the network returns logits, and eps and the attacks are valid.

        Log a warning if it seems to expect images of another scale. `fit` calls it.

        Args:
            images: Images [N, H, W, C], some of which are tried. None tries noise.
            where: The name of the network in errors.
            labels: The classes of the images, int [N]; None if they are not known.
        """
        low, high = self.threat.box
        if images is None:
            shape = (SOME, *(side or 32 for side in self.signature.image_shape))
            images = np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)
        for threat in self.threats:
            check_threat(threat, images.shape[1:])
        self.check_attacks(images.shape[1:])

        def logits(points: tf.Tensor) -> tf.Tensor:
            if len(self.network_inputs) == 1:
                return self.forward(points, "eval")
            inputs = {name: tf.ones(len(points)) for name in self.network_inputs}
            return self.forward(inputs | {"image": points}, "eval")

        check_trained(self.network, logits, images, self.threat.box, where)
        needed = isinstance(self.attack, GradientAttack)
        if needed and not reaches_images(logits, images[:1]):
            raise UserError(
                f"{where}: expected one through which gradients reach the images, as its attack "
                "needs them, received one that rounds them or makes integers of them"
            )
        warn_of_scale(self.network, logits, images, labels, self.threat.box, where)

    @property
    def distributed(self) -> bool:
        """Whether the step is that of a replica, under a strategy for several replicas."""
        strategy = tf.distribute.get_strategy()
        has_one_device = isinstance(strategy, tf.distribute.OneDeviceStrategy)
        return tf.distribute.has_strategy() and not has_one_device

    def computed(self, part: Callable[..., Any], *args: Any) -> Any:
        """Return part(*args), compiled if XLA is on and replicas do not communicate in the part.

        A compiled function cannot assign to a variable that replicas change together. So the part
        gets the values of the network's variables and returns their new values. With several
        replicas it is not compiled if they sum statistics within a pass, or if `sizes_vary`.
        """
        if not (self.jit_compile and self.distributed):
            return part(*args)
        several = tf.distribute.get_strategy().num_replicas_in_sync > 1
        if several and (self.sizes_vary or replicas.sum_statistics(self.network)):
            return part(*args)
        values = [tf.convert_to_tensor(v.value) for v in self.network.variables]
        result, values = self.by_xla(self._stateless(part))(values, *args)
        for variable, value in zip(self.network.non_trainable_variables, values, strict=True):
            variable.assign(value)
        return result

    def _stateless(self, part: Callable[..., Any]) -> Callable[..., Any]:
        """Return a part as a function that does not touch the network's variables.

        It maps (values of all variables, *args) to (part(*args), new values of the variables that
        are not trained).
        """

        def stateless(values: list[tf.Tensor], *args: Any) -> Any:
            pairs = zip(self.network.variables, values, strict=True)
            with keras.StatelessScope(list(pairs), collect_losses=True) as scope:
                result = part(*args)
            untrained = self.network.non_trainable_variables
            return result, [scope.get_current_value(variable) for variable in untrained]

        stateless.__name__ = part.__name__
        return stateless

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Load the weights of such a method as Keras does.

        Raises a UserError for other weights, such as those of the network alone.
        """
        try:
            super().load_weights(filepath, *args, **kwargs)
        except ValueError as error:
            expected = f"weights that {type(self).__name__} saved"
            hint = "model.network.load_weights(FILE) loads those of its network alone"
            raise UserError(f"filepath: expected {expected}; {hint}: {one_line(error)}") from None

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @property
    def threats(self) -> Sequence[Threat]:
        """The threats of training and validation."""
        return self.several_threats or (self.threat,)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, each of which is an attribute of the same name."""
        values = {name: hooks.argument_of(self, name) for name in parameters(type(self))}
        if self.several_threats:
            values["threat"] = self.several_threats
        serialize = keras.saving.serialize_keras_object
        return {name: serialize(value) for name, value in values.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        deserialize = keras.saving.deserialize_keras_object
        return cls(**{k: deserialize(v, custom_objects) for k, v in config.items()})
