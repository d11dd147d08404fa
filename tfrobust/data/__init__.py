"""Data sets, in memory or in files, and tf.data of batches from them."""

from collections.abc import Callable

from tfrobust.data.augment import AUGMENTATIONS as AUGMENTATIONS
from tfrobust.data.augment import Augmentation as Augmentation
from tfrobust.data.augment import in_sequence as in_sequence
from tfrobust.data.augment import require_equal_weights as require_equal_weights
from tfrobust.data.augment import require_images as require_images
from tfrobust.data.breast_cancer import open_breast_cancer
from tfrobust.data.corrupted import open_cifar10_corrupted, open_mnist_corrupted
from tfrobust.data.digits import open_digits
from tfrobust.data.files import readable as readable
from tfrobust.data.folder import open_folder
from tfrobust.data.imagenet import open_imagenet2012
from tfrobust.data.npz import open_npz
from tfrobust.data.pipeline import Extra as Extra
from tfrobust.data.pipeline import batches as batches
from tfrobust.data.pipeline import from_arrays as from_arrays
from tfrobust.data.split import Dataset as Dataset
from tfrobust.data.split import Split as Split
from tfrobust.data.split import hold_out as hold_out
from tfrobust.data.synthetic import imitate
from tfrobust.data.tfds import TFDS

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": open_digits,
    "breast_cancer": open_breast_cancer,
    **TFDS,
    "cifar10_corrupted": open_cifar10_corrupted,
    "mnist_corrupted": open_mnist_corrupted,
    "folder": open_folder,
    "imagenet2012": open_imagenet2012,
    "npz": open_npz,
    "synthetic": imitate,
}
