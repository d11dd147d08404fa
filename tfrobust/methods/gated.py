"""What Keras asks of a model that is trained: compile, fit, evaluate, to be saved and loaded.

`fit` and `evaluate` pass the gate.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust._compat import HookedModel, layers_of, validates_in_fit
from tfrobust.errors import require
from tfrobust.gate import (
    SOME,
    Taken,
    check_data,
    check_threat,
    check_trained,
    check_validation,
    check_weights,
    refusals,
)
from tfrobust.methods.batch import Batch, weighing
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.signatures import Signature
from tfrobust.registry import parameters
from tfrobust.threat import Threat
from tfrobust.xla import compiled


class GatedModel(HookedModel):
    """A Keras model that trains a network against a threat: `RobustModel`, without its step."""

    network: keras.Model
    threat: Threat
    signature: Signature
    network_inputs: Sequence[str]
    # Whether a replica computes with another number of examples in each step.
    sizes_vary = False
    compiled_parts: dict[str, Callable[..., Any]]  # of a step, by name
    # Keras's.
    train_function: Any
    test_function: Any

    def run(self, inputs: Any, mode: str) -> tf.Tensor:
        """Return the logits [B, C] of the network in a mode of `RobustModel`."""
        raise NotImplementedError

    def as_batch(self, data: Any) -> Batch:
        """Return the batch, checked, that a step is given."""
        raise NotImplementedError

    def check_attacks(self, image_shape: tuple[int, ...] | None = None) -> None:
        """Raise a UserError where an attack does not work under the threat, or not on images
        [H, W, C] of a shape."""
        raise NotImplementedError

    @neutral()
    def compile(
        self, optimizer: Any = "sgd", *, jit_compile: bool | str = "auto", **kwargs: Any
    ) -> None:
        """As Keras, without losses and metrics: the method brings its own.

        jit_compile: whether XLA compiles the steps; "auto": only on GPUs, as on CPU they take 1.5
        to 1.8 times as long with it. A network that computes in float16 gets a LossScaleOptimizer.
        """
        for name in ("loss", "metrics", "weighted_metrics", "loss_weights"):
            require(kwargs.pop(name, None) is None, name, "none (the method brings its own)", "one")
        optimizer = keras.optimizers.get(optimizer)
        # Keras looks at the policy of this model, which is float32, not at the network's.
        half = any(layer.compute_dtype == "float16" for layer in layers_of(self.network))
        if half and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(optimizer, jit_compile=jit_compile, **kwargs)
        self.compiled_parts.clear()
        self._asked = jit_compile

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        return config | {"jit_compile": self._asked} if config else config  # none if not compiled

    @property
    def steps_per_execution(self) -> int:
        """How many steps follow each other without the host."""
        return self._steps_per_execution

    @steps_per_execution.setter
    def steps_per_execution(self, value: int) -> None:
        self._steps_per_execution = value
        self.train_function = self.test_function = None  # which hold it

    def make_train_function(self, force: bool = False) -> Any:
        if self.train_function is None or force:
            self._forget(lambda name: name != "_validated")
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Any:
        if self.test_function is None or force:
            self._forget(lambda name: name == "_validated")
        return super().make_test_function(force)

    def _forget(self, chosen: Callable[[str], bool]) -> None:
        """Have these parts traced anew, as Keras does the step that they are of."""
        for name in filter(chosen, list(self.compiled_parts)):
            del self.compiled_parts[name]

    def by_xla(self, part: Callable[..., Any]) -> Callable[..., Any]:
        """Return a part of a step as XLA compiles it, where it does."""
        if not self.jit_compile or self.run_eagerly:
            return part
        return self.compiled_parts.setdefault(part.__name__, compiled(part))

    # Keras casts arrays to the user's `floatx`.
    predict = neutral()(keras.Model.predict)

    @neutral()
    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Keras. What is not fit to train on is a UserError before a weight moves: images
        outside the threat's box, labels that are no class numbers, a network of probabilities."""
        given = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        weights = given.pop("class_weight", None)
        given["x"], given["y"] = check_data(x, y, self._taken)
        if given.get("validation_data") is not None:
            given["validation_data"] = check_validation(given["validation_data"], self._taken)
        images = _images(given["x"])
        _check_weights(given.get("sample_weight"), images)
        self.check_network(images)
        with refusals(), weighing(self, weights):
            return super().fit(**given)

    @neutral()
    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Keras, for what `fit` takes."""
        if not validates_in_fit(kwargs):  # `fit` has checked its validation data
            x, y = check_data(x, y, self._taken)
            images = _images(x)
            _check_weights(kwargs.get("sample_weight"), images)
            self.check_network(images)
        with refusals():
            return super().evaluate(x, y, *args, **kwargs)

    @neutral()
    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """As Keras, for what `fit` takes; the network is looked at before the first batch."""
        expected = "none with a batch that is one dict, whose 'weight' serves"
        require(class_weight is None or y is not None, "class_weight", expected, class_weight)
        x, y = check_data(x, y, self._taken)
        if self.train_function is None:
            self.check_network(_images(x))
        with refusals():
            return super().train_on_batch(x, y, sample_weight, class_weight, return_dict)

    @neutral()
    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Keras, for what `evaluate` takes; the network is looked at before the first batch."""
        x, y = check_data(x, y, self._taken)
        if self.test_function is None:
            self.check_network(_images(x))
        with refusals():
            return super().test_on_batch(x, y, *args, **kwargs)

    @property
    def _taken(self) -> Taken:
        _, image_shape, classes = self.signature
        # One class is refused with the network.
        return Taken(self.threat.box, image_shape, classes if classes > 1 else None)

    def check_network(self, images: np.ndarray | None = None, where: str = "network") -> None:
        """Raise a one-line UserError, which begins with `where`, unless the network gives logits on
        the first of the images [N, H, W, C], or on noise, and eps and attacks fit them. `fit` does
        it."""
        low, high = self.threat.box
        if images is None:
            shape = (SOME, *(side or 32 for side in self.signature.image_shape))
            images = np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)
        check_threat(self.threat, images.shape[1:])
        self.check_attacks(images.shape[1:])

        def logits(points: tf.Tensor) -> tf.Tensor:
            named = {name: tf.ones(len(points)) for name in self.network_inputs}
            return self.run({**named, "image": points} if len(named) > 1 else points, "eval")

        check_trained(self.network, logits, images, self.threat.box, where)

    @property
    def distributed(self) -> bool:
        """Whether the step is that of a replica, in a strategy that is made for several."""
        one = isinstance(tf.distribute.get_strategy(), tf.distribute.OneDeviceStrategy)
        return tf.distribute.has_strategy() and not one

    def computed(self, part: Callable[..., Any], *args: Any) -> Any:
        """Return part(*args), of what a replica computes by itself, compiled where XLA is on.

        Replicas change a variable together, which no compiled function does: there it is given the
        network's variables as they are and returns them as they shall be. Of several replicas it
        stays uncompiled where they sum statistics within a pass, and where `sizes_vary`.
        """
        layers = layers_of(self.network)
        together = any(getattr(layer, "synchronized", False) for layer in layers)
        several = tf.distribute.get_strategy().num_replicas_in_sync > 1
        fixed = not (several and (together or self.sizes_vary))
        if not (self.jit_compile and self.distributed and fixed):
            return part(*args)
        values = [tf.convert_to_tensor(v.value) for v in self.network.variables]
        result, values = self.by_xla(self._stateless(part))(values, *args)
        for variable, value in zip(self.network.non_trainable_variables, values, strict=True):
            variable.assign(value)
        return result

    def _stateless(self, part: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function (values of the network's variables, *args) -> (part(*args), values of
        those that are not trained afterwards)."""

        def stateless(values: list[tf.Tensor], *args: Any) -> Any:
            pairs = zip(self.network.variables, values, strict=True)
            with keras.StatelessScope(list(pairs)) as scope:
                result = part(*args)
            untrained = self.network.non_trainable_variables
            return result, [scope.get_current_value(variable) for variable in untrained]

        stateless.__name__ = part.__name__
        return stateless

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument is an attribute of the same name."""
        names = parameters(type(self))
        return {n: keras.saving.serialize_keras_object(getattr(self, n)) for n in names}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        deserialize = keras.saving.deserialize_keras_object
        return cls(**{k: deserialize(v, custom_objects) for k, v in config.items()})


def _check_weights(weights: Any, images: np.ndarray | None) -> None:
    if weights is not None and images is not None:
        check_weights(weights, len(images))


def _images(x: Any) -> np.ndarray | None:
    """Return the images of what `check_data` returned; None of a stream."""
    images = x.get("image") if isinstance(x, Mapping) else x
    return images if isinstance(images, np.ndarray) else None
