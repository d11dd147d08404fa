"""Networks: `MODELS[name](image_shape, num_classes, ...)` returns a Keras model of logits.

`image_shape` is the shape of one input: (H, W, C) for images, (T, C) for series, (F,) for rows of a
table. `num_classes` is the number of logits. Each function names its other arguments.
"""

from collections.abc import Callable

import keras

from tfrobust.models.cnn import small_cnn as small_cnn
from tfrobust.models.cnn import trades_cnn as trades_cnn
from tfrobust.models.files import keras_file as keras_file
from tfrobust.models.files import load_keras as load_keras
from tfrobust.models.files import model_files as model_files
from tfrobust.models.keras_application import application_file as application_file
from tfrobust.models.keras_application import keras_application as keras_application
from tfrobust.models.keras_layers import with_keras_layers as with_keras_layers
from tfrobust.models.mlp import conv1d as conv1d
from tfrobust.models.mlp import mlp as mlp
from tfrobust.models.narrowing import narrow as narrow
from tfrobust.models.precision import PRECISIONS as PRECISIONS
from tfrobust.models.precision import with_precision as with_precision
from tfrobust.models.resnets import preact_resnet as preact_resnet
from tfrobust.models.resnets import resnet as resnet
from tfrobust.models.saved import OUTPUTS as OUTPUTS
from tfrobust.models.saved import SavedNetwork as SavedNetwork
from tfrobust.models.saved import in_precision as in_precision
from tfrobust.models.saved import load_network as load_network
from tfrobust.models.wide_resnets import iaat_wide_resnet as iaat_wide_resnet
from tfrobust.models.wide_resnets import small_resnet as small_resnet
from tfrobust.models.wide_resnets import wide_resnet as wide_resnet

MODELS: dict[str, Callable[..., keras.Model]] = {
    "conv1d": conv1d,
    "iaat_wide_resnet": iaat_wide_resnet,
    "keras_application": keras_application,
    "mlp": mlp,
    "preact_resnet": preact_resnet,
    "resnet": resnet,
    "small_cnn": small_cnn,
    "small_resnet": small_resnet,
    "trades_cnn": trades_cnn,
    "wide_resnet": wide_resnet,
}
