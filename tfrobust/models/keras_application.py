"""Networks of keras.applications, such as ConvNeXt, to train anew or to fine-tune."""

from __future__ import annotations

import importlib
import os
import warnings

import keras
from keras import layers

from tfrobust.errors import UserError, choose, require
from tfrobust.models.keras_defaults import neutral
from tfrobust.models.layers import input_image, logits

APPLICATIONS = sorted(name for name in dir(keras.applications) if name[0].isupper())


@neutral()
def keras_application(
    image_shape: tuple[int, ...], num_classes: int, *, application: str, weights: str = "none"
) -> keras.Model:
    """A network of keras.applications with its own scaling of images, and new logits.

    The images in [0, 1] are scaled as the application's `preprocess_input` does it, inside the
    network. The logits are a dense layer on the averages of the last feature map. No layer is
    frozen: BatchNorm uses and averages the statistics of the batches in training, as those of
    adversarial images differ from those that the weights came with, and Dropout drops. Attacks see
    neither by default (`craft: eval` of a method).

    Args:
        application: The name in keras.applications, such as ConvNeXtTiny or ResNet50. Images must
            have three channels and the size that it takes, at least 32 x 32 for most.
        weights: None for new ones, imagenet to download those of ImageNet, or a file of the
            application's weights without its top: .weights.h5, .keras or .h5.

    Raises:
        UserError: The application is unknown, or takes no such images, weights or number of
            channels.
    """
    choose("application", application, APPLICATIONS)
    require(image_shape[2] == 3, "image_shape", "images of three channels", image_shape)
    if weights not in ("none", "imagenet"):
        weights = os.path.expanduser(weights)
        require(os.path.isfile(weights), "weights", "none, imagenet or a file", weights)
    make = getattr(keras.applications, application)
    try:
        with warnings.catch_warnings():  # weights that the file lacks would stay new ones
            warnings.filterwarnings("error", "Skipping nested container")
            features = make(
                include_top=False,
                weights=None if weights == "none" else weights,
                input_shape=image_shape,
                pooling="avg",
            )
    except Exception as error:  # of the size of the images, the download or the file
        line = " ".join(str(error).split())[:200]
        expected = f"what {application} takes"
        raise UserError(
            f"application: expected {expected}, images {image_shape} with weights {weights}: {line}"
        ) from None
    preprocess = importlib.import_module(make.__module__).preprocess_input
    image = input_image(image_shape)
    x = features(preprocess(layers.Rescaling(255.0)(image)))
    return keras.Model(image, logits(x, num_classes), name=application)
