"""Registers our classes with Keras once Keras is imported, whoever imports it.

`keras.saving.load_model` finds a class of ours only if it is registered, which takes the module
that defines it, and so TensorFlow. `import tfrobust` alone imports neither. It watches instead: as
soon as an import has brought Keras, the modules with such classes are imported too.
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

# Between them they import every module with a class that Keras saves; a test compares.
REGISTERED = ("tfrobust.attacks", "tfrobust.methods", "tfrobust.models", "tfrobust.training")


def register() -> None:
    """Import the modules with our registered classes, and Keras and TensorFlow with them."""
    for name in REGISTERED:
        importlib.import_module(name)


def watch() -> None:
    """Register our classes now if Keras is imported, else after the import that brings it."""
    if sys.modules.get("keras") is not None:
        register()
    else:
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """Follows the imports that may bring Keras: its own, TensorFlow's and those of our modules.

    Of imports within each other only the outermost is followed: before it ends, modules are half
    there, and ours could not be imported.
    """

    def __init__(self) -> None:
        self.inside = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.inside or not (name in ("keras", "tensorflow") or name.startswith("tfrobust.")):
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
    """Loads a module as its own loader does, then registers our classes if Keras has come."""

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
