"""Published test sets of corrupted images, by TensorFlow Datasets (TFDS)."""

from __future__ import annotations

from tfrobust.corruptions import CORRUPTIONS, require_severity
from tfrobust.data.split import numbered
from tfrobust.data.tfds import CIFAR10, Tfds
from tfrobust.errors import choose

# The names of corruptions of CIFAR-10-C in TFDS, where they differ from ours.
TFDS_NAMES = {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}
EXTRA = ("gaussian_blur", "saturate", "spatter", "speckle_noise")
MNIST_C = (
    *("identity", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale"),
    *("rotate", "brightness", "translate", "stripe", "fog", "spatter", "dotted_line", "zigzag"),
    "canny_edges",
)
CIFAR10_C_URL = "https://zenodo.org/record/2535967/files/CIFAR-10-C.tar"
MNIST_C_URL = "https://zenodo.org/record/3239543/files/mnist_c.zip"


def open_cifar10_corrupted(
    corruption: str, severity: int, dir: str | None = None, download: bool = True
) -> Tfds:
    """Open CIFAR-10-C (arXiv:1903.12261), which has test images only. Nothing is read yet.

    Args:
        corruption: One of the fifteen corruptions of `tfrobust.corruptions`, or gaussian_blur,
            saturate, spatter or speckle_noise.
        severity: The severity, 1 to 5.
        dir: As for the other sets of TFDS.
        download: Whether TFDS may download the set, 2.7 GiB with all corruptions, if it is not
            prepared there.
    """
    choose("corruption", corruption, [*CORRUPTIONS, *EXTRA])
    severity = require_severity(severity)
    name = f"cifar10_corrupted/{TFDS_NAMES.get(corruption, corruption)}_{severity}"
    return Tfds((32, 32, 3), tuple(CIFAR10.split()), name, CIFAR10_C_URL, dir, download)


def open_mnist_corrupted(corruption: str, dir: str | None = None, download: bool = True) -> Tfds:
    """Open MNIST-C (Mu and Gilmer, 2019, arXiv:1906.02337). Nothing is read yet.

    Args:
        corruption: One of the fifteen corruptions of MNIST-C, such as fog or zigzag, or identity.
        dir: As for the other sets of TFDS.
        download: Whether TFDS may download the set if it is not prepared there.
    """
    name = f"mnist_corrupted/{choose('corruption', corruption, MNIST_C)}"
    return Tfds((28, 28, 1), numbered(10), name, MNIST_C_URL, dir, download)
