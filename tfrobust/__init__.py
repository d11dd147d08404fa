"""Adversarially robust training and honest robustness evaluation for Keras 3 on TensorFlow.

    model = tfrobust.Atlas(network, threat=tfrobust.Threat("linf", "8/255"), alpha=2e-4, beta=5.0)
    model.compile("sgd")
    model.fit(x, y)

The classes of all training methods and attacks are attributes of this package, and so are their
base classes `RobustModel` and `Attack`, their registries `METHODS` and `ATTACKS`, `Threat`,
`evaluate`, `load_network`, `push_to_hub`, `UserError`, the averages `Ema` and `Swa`, and the
subpackages. A name is imported when it is first used: `import tfrobust` alone imports neither
TensorFlow nor Keras.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from tfrobust import backend, keras_import

if TYPE_CHECKING:
    from tfrobust.attacks import *  # noqa: F403
    from tfrobust.errors import UserError as UserError
    from tfrobust.evaluation import evaluate as evaluate
    from tfrobust.hub import push_to_hub as push_to_hub
    from tfrobust.methods import *  # noqa: F403
    from tfrobust.models import load_network as load_network
    from tfrobust.threat import Threat as Threat

_HOMES = {
    "ATTACKS": "tfrobust.attacks",
    "Attack": "tfrobust.attacks",
    "Ema": "tfrobust.methods",
    "METHODS": "tfrobust.methods",
    "RobustModel": "tfrobust.methods",
    "Swa": "tfrobust.methods",
    "Threat": "tfrobust.threat",
    "UserError": "tfrobust.errors",
    "evaluate": "tfrobust.evaluation",
    "load_network": "tfrobust.models",
    "push_to_hub": "tfrobust.hub",
}
_MODULES = {module.name for module in pkgutil.iter_modules(__path__)}  # noqa: F405


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tfrobust.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "__all__":
        return sorted({"__version__", *_HOMES, *_classes()})
    classes = {} if name.startswith("_") else _classes()
    if name in classes:
        return classes[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _classes() -> dict[str, type]:
    """Return the classes of all methods and attacks by their names."""
    from tfrobust.attacks import ATTACKS
    from tfrobust.methods import METHODS

    return {cls.__name__: cls for cls in (*ATTACKS.values(), *METHODS.values())}


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *__getattr__("__all__")})


backend.check()
keras_import.watch()
