"""`import tfrobust`: its names, when it imports TensorFlow, and what Keras can then load."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import tfrobust
from tests.products import slow_but
from tfrobust.attacks import ATTACKS, Attack, Staged
from tfrobust.keras_import import REGISTERED
from tfrobust.methods import METHODS, RobustModel
from tfrobust.models.layers import MaxPool

ROOT = Path(__file__).resolve().parents[2]
NO_TENSORFLOW = "import sys; assert not {'tensorflow', 'keras'} & sys.modules.keys()"
LOAD = "m = keras.saving.load_model(sys.argv[1], compile=False); assert type(m).__name__ == 'Adv'"


def python(*lines: str, argument: str = "") -> None:
    """Run lines of code in another process, which must end without an error."""
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), argument],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_every_method_and_attack_is_a_name_of_the_package() -> None:
    classes = {*METHODS.values(), *ATTACKS.values(), RobustModel}
    assert {cls.__name__ for cls in classes} <= set(tfrobust.__all__)
    assert all(getattr(tfrobust, cls.__name__) is cls for cls in classes)


def test_each_method_and_attack_is_registered_under_the_name_of_its_file() -> None:
    for module, registry in ((tfrobust.methods, METHODS), (tfrobust.attacks, ATTACKS)):
        for name, cls in registry.items():
            assert cls.__module__ == f"{module.__name__}.{name}"
        imported = {cls for cls in vars(module).values() if inspect.isclass(cls)}
        concrete = {cls for cls in imported if issubclass(cls, RobustModel | Attack)}
        assert concrete - {RobustModel, Attack, Staged} == set(registry.values())


def test_every_public_name_can_be_imported() -> None:
    others = {"Threat", "UserError", "evaluate", "load_network", "METHODS", "ATTACKS"}
    assert others <= set(tfrobust.__all__) <= set(dir(tfrobust))
    for name in tfrobust.__all__:
        assert getattr(tfrobust, name) is not None
    assert {"attacks", "data", "evaluation", "methods", "models", "report"} <= set(dir(tfrobust))
    names: dict[str, object] = {}
    exec("from tfrobust import *", names)
    assert names["Atlas"] is tfrobust.Atlas


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tfrobust' has no attribute 'Atlass'"):
        _ = tfrobust.Atlass


def test_names_that_need_no_tensorflow_do_not_import_it() -> None:
    python("import tfrobust", "tfrobust.UserError, tfrobust.__version__", NO_TENSORFLOW)
    python("import tfrobust.errors, tfrobust.registry", NO_TENSORFLOW)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the file of a saved training model whose class, attack, threat and layers are ours."""
    network = tfrobust.models.small_cnn((8, 8, 1), 4, filters=[2], units=2)
    assert any(isinstance(layer, MaxPool) for layer in network.layers)
    file = tmp_path_factory.mktemp("saved") / "model.keras"
    tfrobust.Adv(network, threat=tfrobust.Threat("linf", 0.1), attack=tfrobust.PGD()).save(file)
    return str(file)


IMPORTS = (
    "import keras; import tfrobust",
    "import tfrobust; import tensorflow; import keras",
    "from tfrobust.evaluation import evaluate; import keras",
)


@pytest.mark.parametrize("imports", slow_but(IMPORTS, IMPORTS[:1]))
def test_keras_loads_our_classes_in_any_order_of_imports(imports: str, saved: str) -> None:
    python("import sys", imports, LOAD, argument=saved)


@pytest.mark.slow
def test_the_modules_that_keras_import_imports_hold_all_registered_classes(saved: str) -> None:
    lines = ["import sys; import tfrobust; import keras", LOAD]
    lines += ["names = set(keras.saving.get_custom_objects())"]
    lines += ["import importlib, pkgutil"]
    lines += ["for m in pkgutil.walk_packages(tfrobust.__path__, 'tfrobust.'):"]
    lines += ["    importlib.import_module(m.name)"]
    lines += ["assert names == set(keras.saving.get_custom_objects()), names"]
    lines += ["assert 'tfrobust>BatchNorm' in names"]
    python(*lines, argument=saved)
    assert all(name in sys.modules for name in REGISTERED) and keras.saving.get_custom_objects()


@pytest.mark.slow
def test_importing_our_modules_leaves_loaders_and_keras_alone_and_keras_tuner_out(
    saved: str,
) -> None:
    lines = ["import tfrobust.threat as t; import inspect, keras, sys, tfrobust._compat", LOAD]
    lines += ["assert 'class Threat' in inspect.getsource(t)"]
    lines += ["assert type(t.__spec__.loader).__name__ == 'SourceFileLoader'"]
    lines += ["from keras.src.backend.tensorflow import nn"]
    lines += ["assert nn._compute_moments.__module__ == nn.__name__"]
    lines += ["assert 'keras_tuner' not in sys.modules"]
    python(*lines, argument=saved)
