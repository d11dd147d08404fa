"""The method of docs/add_a_method.md passes the contract of methods, also in another package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import config as configs
from pipelines.smoke_runs import smoke
from pipelines.spec import parse
from tests.contract import test_methods as contract
from tests.contract.pages import added
from tfrobust.methods import METHODS, RobustModel

CONTRACT = {name: test for name, test in vars(contract).items() if name.startswith("test_")}


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the name under which the method of the page is registered."""
    folder = tmp_path_factory.mktemp("methods")
    with added("add_a_method.md", folder, RobustModel, METHODS) as name:
        yield name


@pytest.mark.parametrize("test", CONTRACT.values(), ids=CONTRACT)
def test_method_of_the_page_keeps_the_contract(
    name: str, test: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixtures: dict[str, Any] = {"name": name, "tmp_path": tmp_path, "monkeypatch": monkeypatch}
    test(**{argument: fixtures[argument] for argument in inspect.signature(test).parameters})


def test_config_builds_the_method_of_the_page(name: str, tmp_path: Path) -> None:
    file, base = tmp_path / f"digits_{name}.yaml", configs.CONFIGS / "base" / "digits.yaml"
    file.write_text(f"include: {base}\nmethod: {{name: {name}, weight: 0.1}}\n")
    spec = smoke(parse(file.stem, configs.load(file)))
    assert spec.method is not None and spec.network is not None
    model: Any = spec.method(spec.network(), ramp_steps=0)
    assert type(model) is METHODS[name] and model.weight == 0.1
