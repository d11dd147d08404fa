"""Networks of keras.applications, such as ConvNeXt, for training from scratch or fine-tuning."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import keras
from keras import layers

from tfrobust.errors import UserError, choose, one_line, path_text, require
from tfrobust.io import in_home
from tfrobust.models.arguments import checked
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import input_image, logits

APPLICATIONS = sorted(name for name in dir(keras.applications) if name[0].isupper())


def application_file(weights: str) -> Path | None:
    """Return the file that the argument `weights` of `keras_application` names, or None."""
    weights = path_text("weights", weights)
    return None if weights in ("none", "imagenet") else in_home(weights)


@checked
@neutral()
def keras_application(
    image_shape: tuple[int, ...], num_classes: int, *, application: str, weights: str = "none"
) -> keras.Model:
    """Return a network of keras.applications with its scaling of images inside, and new logits.

    Images in [0, 1] are scaled by the application's `preprocess_input` inside the network. The
    logits are a dense layer on the averages of the last feature map. No layer is frozen. In
    training, Dropout is active, and BatchNorm uses and averages the statistics of the batches,
    because those of adversarial images differ from those of the original weights. Attacks see
    neither by default (`craft: eval` of a method).

    Args:
        application: The name in keras.applications, such as ConvNeXtTiny or ResNet50. Images must
            have three channels and a size that it takes, for most at least 32 x 32.
        weights: None for new weights, imagenet to download those of ImageNet, or a file of the
            application's weights without its top: .weights.h5, .keras or .h5.

    Raises:
        UserError: The application is unknown, or does not take such images or weights.
    """
    choose("application", application, APPLICATIONS)
    image = input_image(image_shape)
    require(image_shape[2] == 3, "image_shape", "images of three channels", image_shape)
    file = application_file(weights)
    found = file is None or file.is_file()
    require(found, "weights", "none, imagenet or a file", weights)
    make = getattr(keras.applications, application)
    try:
        with warnings.catch_warnings():  # Keras only warns of weights that the file lacks
            warnings.filterwarnings("error", "Skipping nested container")
            features = make(
                include_top=False,
                weights=None if weights == "none" else str(file or weights),
                input_shape=image_shape,
                pooling="avg",
            )
    except Exception as error:  # of the size of the images, the download or the file
        received = f"images {image_shape} with weights {weights}: {one_line(error)}"
        raise UserError(f"application: expected what {application} takes, {received}") from None
    preprocess = importlib.import_module(make.__module__).preprocess_input
    x = features(preprocess(layers.Rescaling(255.0)(image)))
    return keras.Model(image, logits(x, num_classes), name=application)
