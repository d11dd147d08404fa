"""The method of docs/add_a_method.md keeps the promises of all methods, in another package too."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import config as configs
from pipelines.smoke_runs import smoke
from pipelines.spec import parse
from tests.contract import test_methods as contract
from tfrobust.methods import METHODS, RobustModel
from tfrobust.registry import by_file

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_method.md"
CONTRACT = {name: test for name, test in vars(contract).items() if name.startswith("test_")}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type]:
    """Write the page's file, and register it by one import."""
    package = tmp_path_factory.mktemp("methods") / "toy_methods"
    package.mkdir()
    (package / "__init__.py").touch()
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (package / "squeezed.py").write_text(code[0], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(package.parent))
        exec("from toy_methods.squeezed import Squeezed as Squeezed", names := {})
        ((name, method),) = by_file(RobustModel, names).items()
        patch.setitem(METHODS, name, method)
        yield method


@pytest.mark.parametrize("test", CONTRACT.values(), ids=CONTRACT)
def test_the_contract(
    toy: type, test: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixtures: dict[str, Any] = {
        "name": "squeezed",
        "tmp_path": tmp_path,
        "monkeypatch": monkeypatch,
    }
    test(**{name: fixtures[name] for name in inspect.signature(test).parameters})


def test_one_config_names_it(toy: type, tmp_path: Path) -> None:
    file, base = tmp_path / "digits_squeezed.yaml", configs.find("digits_adv").parent / "base"
    file.write_text(f"include: {base / 'digits.yaml'}\nmethod: {{name: squeezed, weight: 0.1}}\n")
    spec = smoke(parse("digits_squeezed", configs.load(file)))
    assert spec.method is not None and spec.network is not None
    model: Any = spec.method(spec.network(), ramp_steps=0)
    assert type(model) is toy and model.weight == 0.1
