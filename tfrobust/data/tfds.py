"""Image sets of TensorFlow Datasets (TFDS) that fit into memory."""

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfrobust.data.reading import untuned
from tfrobust.data.split import Dataset, Split, numbered
from tfrobust.errors import UserError, path_text, require, require_bool
from tfrobust.io import in_home

PROBE_SECONDS = 5.0
READ_BATCH = 1024  # examples decoded at a time
INFO = "dataset_info.json"  # written by TFDS when a set is complete


@dataclass(frozen=True)
class Tfds(Dataset):
    """A data set of TFDS.

    Attributes:
        name: The name in TFDS.
        url: The first file that TFDS downloads for the set.
        dir: The folder that holds `<name>/<version>/`. None for $TFDS_DATA_DIR, or else
            ~/tensorflow_datasets.
        download: Whether TFDS may download the set if it is not prepared there.
    """

    name: str
    url: str
    dir: str | None = None
    download: bool = True

    def __post_init__(self) -> None:
        if self.dir is not None:
            path_text("dir", self.dir)
        require_bool(download=self.download)

    @property
    def root(self) -> Path:
        """The folder of all data sets."""
        return in_home(self.dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")

    @property
    def files(self) -> list[Path]:
        builder = self._builder()
        if not Path(builder.data_dir, INFO).exists():
            return []
        splits = (self._name_in_tfds(split) for split in ("train", "test"))
        infos = [builder.info.splits[split] for split in splits if split in builder.info.splits]
        return [Path(path) for info in infos for path in info.filepaths]

    def load(self, split: str) -> Split:
        """Return a split as uint8, in the order of the files.

        Raises:
            UserError: The set is not prepared and cannot be downloaded, or it cannot be read. The
                error names the folder. Without a network, it comes within seconds.
        """
        builder = self._builder()
        folder = Path(builder.data_dir)
        if not (folder / INFO).exists():
            self._prepare(builder, self.root)
            builder = self._builder()
        splits, name = sorted(builder.info.splits), self._name_in_tfds(split)
        expected = f"a data set with a split {name}"
        require(name in splits or not splits, "name", expected, f"{self.name} with {splits}")
        try:
            return self._read(builder, name)
        except Exception as error:
            raise self._unusable(folder, error) from error

    def _builder(self) -> Any:
        """Return TFDS's builder of the set. Raises UserError for a damaged folder."""
        import tensorflow_datasets as tfds

        try:
            return tfds.builder(self.name, data_dir=self.root)
        except Exception as error:  # TFDS documents no types, and a damaged folder raises many
            raise self._unusable(self.root / self.name, error) from error

    def _name_in_tfds(self, split: str) -> str:
        """Return the name that TFDS has for the split train or test."""
        return split

    def _prepare(self, builder: Any, root: Path) -> None:
        """Let TFDS download and prepare the set. Raises UserError if it cannot."""
        reason = self._hindrance(root)
        if reason is None:
            try:
                builder.download_and_prepare()
                return
            except Exception as error:
                if Path(builder.data_dir, INFO).exists():  # another process was faster
                    return
                reason = _line(error)
        versions = sorted(p.parent.name for p in (root / self.name).glob(f"*/{INFO}"))
        received = f"version {', '.join(versions)}" if versions else "none"
        raise UserError(
            f"dir: expected {self.name} {builder.version} prepared in {root}, received {received}, "
            f"and it was not downloaded ({reason}); set TFDS_DATA_DIR or data.dir to a folder that "
            "holds it, or allow the network"
        )

    def _hindrance(self, root: Path) -> str | None:
        """Return why TFDS cannot prepare the set, or None if it can."""
        return _unreachable(self.url) if self.download else "download is off"

    def _read(self, builder: Any, split: str) -> Split:
        """Return a split of the prepared set."""
        import tensorflow_datasets as tfds

        count = builder.info.splits[split].num_examples
        images = np.empty((count, *self.image_shape), np.uint8)
        labels = np.empty(count, np.int64)
        # A cache would hold the set in memory a second time.
        config = tfds.ReadConfig(try_autocache=False)
        data = builder.as_dataset(split=split, batch_size=READ_BATCH, read_config=config)
        start = 0
        for batch in untuned(data).as_numpy_iterator():
            end = start + len(batch["label"])
            images[start:end], labels[start:end] = batch["image"], batch["label"]
            start = end
        return Split.of(images, labels, (f"{split} images", f"{split} labels"))

    def _unusable(self, folder: Path, error: Exception) -> UserError:
        """Return the error about a set that cannot be read."""
        return UserError(
            f"dir: expected {self.name} readable in {folder}, received {_line(error)}; remove that "
            "folder and prepare it again"
        )


def _line(error: Exception) -> str:
    """Return an error in one line, without the place in TensorFlow's graph."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def _unreachable(url: str) -> str | None:
    """Return why a URL cannot be reached within PROBE_SECONDS, or None if it can.

    TFDS itself retries for minutes. The probe uses the client of TFDS, `requests`, so that proxies
    and certificates have the same effect.
    """
    import requests  # type: ignore[import-untyped]

    reason: str | None = f"no answer from {url} in {PROBE_SECONDS:g} s"

    def probe() -> None:
        nonlocal reason
        try:
            with requests.get(url, stream=True, timeout=PROBE_SECONDS) as answer:
                answer.raise_for_status()
            reason = None
        except requests.RequestException as error:
            reason = f"{url}: {type(error).__name__}"

    # In a thread, because the client's own time limit does not cover the name look-up.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return reason


CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
STL10 = "airplane bird car cat deer dog horse monkey ship truck"
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/train-images-idx3-ubyte.gz"
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-{}-binary.tar.gz"
SVHN_URL = "http://ufldl.stanford.edu/housenumbers/train_32x32.mat"
STL10_URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"


def _entry(
    name: str, image_shape: tuple[int, ...], class_names: tuple[str, ...], url: str
) -> tuple[str, Callable[..., Tfds]]:
    """Return a data set's name and its constructor, whose parameters are those for users."""

    def open_tfds(dir: str | None = None, download: bool = True) -> Tfds:
        """Open a set of TensorFlow Datasets. Nothing is read yet.

        Args:
            dir: The folder that holds NAME/VERSION/ as TFDS prepares it. None for $TFDS_DATA_DIR,
                or else ~/tensorflow_datasets.
            download: Whether TFDS may download the set if it is not prepared there.
        """
        return Tfds(image_shape, class_names, name, url, dir, download)

    return name, open_tfds


TFDS: dict[str, Callable[..., Tfds]] = dict(
    [
        _entry("mnist", (28, 28, 1), numbered(10), MNIST_URL),
        _entry("cifar10", (32, 32, 3), tuple(CIFAR10.split()), CIFAR_URL.format(10)),
        _entry("cifar100", (32, 32, 3), tuple(CIFAR100.split()), CIFAR_URL.format(100)),
        _entry("svhn_cropped", (32, 32, 3), numbered(10), SVHN_URL),
        _entry("stl10", (96, 96, 3), tuple(STL10.split()), STL10_URL),
    ]
)
