"""Checks of images, labels and networks before anything is computed from them.

`fit`, `evaluate`, the pipelines and the containers of data all call these checks. Inputs that do
not pass raise a UserError, whose message is one line.
"""

from tfrobust.gate.batches import (
    Taken,
    check_batch,
    check_count,
    check_data,
    check_image_spec,
    check_label_spec,
    check_unlabelled,
    check_validation,
    demand,
    refusals,
    require_labels_once,
)
from tfrobust.gate.class_order import check_class_order
from tfrobust.gate.images import (
    LAYOUTS,
    RANKS,
    as_array,
    check_image_form,
    check_images,
    check_size,
    check_threat,
    check_values,
)
from tfrobust.gate.inputs import check_inputs
from tfrobust.gate.labels import MOST_CLASSES, check_label_form, check_labels, check_weights
from tfrobust.gate.logit_advice import advice
from tfrobust.gate.networks import (
    SOME,
    check_float_input,
    check_network,
    check_trained,
    in_unit,
    inference,
    kind_of_network,
    kind_of_outputs,
    outputs,
    reaches_images,
    right,
)
from tfrobust.gate.sample import check_first, representative
from tfrobust.gate.scaling import FEWEST, Scaled, best_scaled, warn_of_scale

__all__ = [
    "FEWEST",
    "LAYOUTS",
    "MOST_CLASSES",
    "RANKS",
    "SOME",
    "Scaled",
    "Taken",
    "advice",
    "as_array",
    "best_scaled",
    "check_batch",
    "check_class_order",
    "check_count",
    "check_data",
    "check_first",
    "check_float_input",
    "check_image_form",
    "check_image_spec",
    "check_images",
    "check_inputs",
    "check_label_form",
    "check_label_spec",
    "check_labels",
    "check_network",
    "check_size",
    "check_threat",
    "check_trained",
    "check_unlabelled",
    "check_validation",
    "check_values",
    "check_weights",
    "demand",
    "in_unit",
    "inference",
    "kind_of_network",
    "kind_of_outputs",
    "outputs",
    "reaches_images",
    "refusals",
    "representative",
    "require_labels_once",
    "right",
    "warn_of_scale",
]
