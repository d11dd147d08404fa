"""The registration of our classes with Keras as soon as Keras is imported, by whichever module.

`keras.saving.load_model` finds only registered classes, and ours are registered when their modules
are imported. These import TensorFlow and Keras, so `import tfrobust` does not import them. It calls
`watch`, which follows all further imports: once Keras is imported, our modules are imported too.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from tfrobust import backend

# Together these import every module with a class that Keras saves, as a test checks.
REGISTERED = ("tfrobust.attacks", "tfrobust.methods", "tfrobust.models", "tfrobust.training")


def register() -> None:
    """Import the modules with our registered classes, and with them Keras and TensorFlow."""
    for name in REGISTERED:
        importlib.import_module(name)


def watch() -> None:
    """Register our classes now if Keras is imported, else after the import that imports it."""
    if sys.modules.get("keras") is not None:
        register()
    else:
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """A finder of the modules that may import Keras: itself, TensorFlow and our modules.

    Of nested imports only the outermost is followed, because until it ends modules are incomplete,
    and ours could not be imported.
    """

    def __init__(self) -> None:
        self.inside = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        may_import_keras = name in ("keras", "tensorflow") or name.startswith("tfrobust.")
        if self.inside or not may_import_keras:
            return None
        self.inside = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.inside = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Followed(self, spec.loader)
        return spec


class _Followed(Loader):
    """A loader that calls the module's own, then registers our classes if Keras is imported."""

    def __init__(self, watch: _Watch, loader: Loader) -> None:
        self.watch = watch
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.watch.inside = True
        try:
            self.loader.exec_module(module)
            if sys.modules.get("keras") is None:
                return
            if self.watch in sys.meta_path:
                sys.meta_path.remove(self.watch)
            if backend.chosen()[0] == backend.NEEDED:
                register()
        finally:
            self.watch.inside = False
