"""The flags of an evaluation, flags.npz: the results of each image, and counts of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfrobust.errors import UserError, one_line, user_path
from tfrobust.io import UNREADABLE, write_atomically

DIGEST = "digest"  # the name of an array in flags.npz


@dataclasses.dataclass(frozen=True, eq=False)
class Flags:
    """The content of flags.npz: the results of each image.

    Attributes:
        index: The position of each image in the split, int [N].
        label: The label of each image, int [N].
        right: Whether the first n images are classified correctly, bool [n], for "clean" and the
            name of each attack.
        digest: A digest of each image with its label, uint64 [N]; None in files before schema 1.
    """

    index: np.ndarray
    label: np.ndarray
    right: Mapping[str, np.ndarray]
    digest: np.ndarray | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Flags:
        """Return the flags in a folder. Raises a UserError that names the file."""
        path = user_path("folder", folder) / "flags.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file.items())
            index, label = arrays.pop("index"), arrays.pop("label")
            digest = arrays.pop(DIGEST, None)
            for key, array in {"index": index, "clean": arrays["clean"], DIGEST: digest}.items():
                if array is not None and array.shape != label.shape:
                    raise ValueError(f"{key} of shape {array.shape} for labels {label.shape}")
            for key, array in arrays.items():
                if array.ndim != 1 or not 0 < len(array) <= len(label):
                    raise ValueError(f"{key} of shape {array.shape} for labels {label.shape}")
            kinds = {"index": (index, "iu"), "label": (label, "iu"), DIGEST: (digest, "u")}
            kinds |= {key: (array, "b") for key, array in arrays.items()}
            for key, (array, kind) in kinds.items():
                if array is not None and array.dtype.kind not in kind:
                    raise ValueError(f"{key} of dtype {array.dtype}")
            if min(index.min(), label.min()) < 0:
                raise ValueError("an index or a label below 0")
        except FileNotFoundError:
            raise UserError(f"{path}: expected flags, received no such file") from None
        except UNREADABLE as error:
            line = one_line(error, None)
            raise UserError(f"{path}: expected a readable file, received {line}") from None
        return cls(index, label, arrays, digest)

    def save(self, folder: Path) -> None:
        """Write flags.npz atomically."""
        arrays: dict[str, Any] = {"index": self.index, "label": self.label, **self.right}
        if self.digest is not None:
            arrays[DIGEST] = self.digest
        write_atomically(Path(folder) / "flags.npz", lambda path: np.savez(path, **arrays))


def digests(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a digest, uint64 [N], of each image of x [N, H, W, C] float32 with its label."""

    def digest(image: np.ndarray, label: int) -> bytes:
        content = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8)
        content.update(str((image.shape, label)).encode())
        return content.digest()

    parts = [digest(image, int(label)) for image, label in zip(x, y, strict=True)]
    return np.frombuffer(b"".join(parts), np.uint64)


def same_images(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Return whether two evaluations saw the same images in the same order, as far as both go.

    It is False if the digests of one of them, uint64 [N], are missing.
    """
    if first is None or second is None:
        return False
    n = min(len(first), len(second))
    return bool(np.array_equal(first[:n], second[:n]))


def headline(rights: Sequence[np.ndarray], clean: np.ndarray) -> np.ndarray:
    """Return whether each image is right under all attacks that saw the most images, n: bool [n].

    Args:
        rights: For each attack, whether the images that it saw are right, bool [n].
        clean: Whether each clean image is right, bool [N]. It is the result without attacks.
    """
    n = max((len(right) for right in rights), default=len(clean))
    return np.logical_and.reduce([clean[:n], *(right for right in rights if len(right) == n)])


def subsets(rights: Sequence[np.ndarray], clean: np.ndarray) -> dict[int, np.ndarray]:
    """Return the worst case on the first n images, {n: bool [n]}, with the largest n first.

    It is taken over all attacks that saw at least n images. There is an entry for each n that some
    attack saw, except the largest.

    Args:
        rights, clean: As for `headline`.
    """
    sizes = sorted({len(right) for right in rights}, reverse=True)[1:]
    return {
        n: np.logical_and.reduce([clean[:n], *(right[:n] for right in rights if len(right) >= n)])
        for n in sizes
    }
