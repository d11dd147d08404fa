"""Networks: `MODELS[name](image_shape, num_classes, ...)` returns a Keras model of logits."""

from collections.abc import Callable

import keras

from tfrobust.models.cnn import small_cnn, trades_cnn
from tfrobust.models.files import keras_file, load_keras, model_files
from tfrobust.models.keras_layers import with_keras_layers
from tfrobust.models.narrowing import narrow
from tfrobust.models.precision import PRECISIONS, with_precision
from tfrobust.models.residual import resnet, small_resnet, wide_resnet
from tfrobust.models.saved import OUTPUTS, SavedNetwork, in_precision, load_network

MODELS: dict[str, Callable[..., keras.Model]] = {
    "resnet": resnet,
    "small_cnn": small_cnn,
    "small_resnet": small_resnet,
    "trades_cnn": trades_cnn,
    "wide_resnet": wide_resnet,
}

__all__ = [
    "MODELS",
    "OUTPUTS",
    "PRECISIONS",
    "SavedNetwork",
    "keras_file",
    "load_keras",
    "in_precision",
    "load_network",
    "model_files",
    "narrow",
    "resnet",
    "small_cnn",
    "small_resnet",
    "trades_cnn",
    "wide_resnet",
    "with_keras_layers",
    "with_precision",
]
