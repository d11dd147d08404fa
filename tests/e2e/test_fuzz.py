"""Broken configs and damaged run folders are loaded or refused in one line."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipelines import config as configs
from pipelines.resolve import load_spec
from pipelines.run_folder import RunFolder
from pipelines.suite import is_suite, load_suite
from tfrobust.errors import UserError
from tfrobust.models import load_network
from tfrobust.report import write_report

MANY = settings(
    max_examples=5 * settings.default.max_examples,
    phases=[Phase.explicit, Phase.generate],  # a failure is shown without being shrunk
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEWER = settings(MANY, max_examples=settings.default.max_examples)
TINY = ["model={name: small_cnn, filters: [2], units: 2}"]  # every config builds its network
NAMES = ("digits_atlas", "digits_atlas_search", "mnist_adv_20step", "cifar10_trades")
CONFIGS = [configs.load(configs.find(name), TINY) for name in NAMES]
SUITES = [
    {
        "runs": ["digits_adv", {"config": "digits_atlas", "grid": {"method.alpha": [0, 1e-4]}}],
        "set": {"train.epochs": 2, "attacks": ["fgsm"]},
        "grid": {"seed": [0, 1]},
        "surrogate": {"config": "digits_adv", "set": {"seed": 9}},
        "budget": "small",
        "budgets": {"small": {"attacks": [{"name": "transfer", "source": "${surrogate.folder}"}]}},
        "jobs": 1,
    }
]

words = st.sampled_from(
    ["pgd", "atlas", "8/255", "1/0", "linf", "l3", "nan", "${threat.eps}", "${nope}", "", "train"]
    + ["!!python/object/apply:os.system [true]", "../../etc/passwd", "\x00", "a\nb", "autoattack"]
    + ["${oc.env:HOME}", "${o${model.name}:x}", f"{10**400}/3", "1" * 5000, "[" * 2000]
)
huge = st.sampled_from([2**63, -(10**400), 1e308, 5e-324])
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), huge, st.floats(), words, st.text(max_size=5),
    st.dates(),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(words, scalars), inner, max_size=3)
    ),
    max_leaves=6,
)


def succeeds_or_is_refused(action: Callable[[], Any]) -> None:
    """Run the action; its only allowed error is a `UserError` of one line."""
    try:
        action()
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all keys and items of a config."""
    inner = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in inner:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def broken(draw: st.DrawFn, configs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one of the configs with one to three keys changed, removed or added."""
    config = copy.deepcopy(draw(st.sampled_from(configs)))
    for _ in range(draw(st.integers(1, 3))):
        paths = list(places(config))
        if not paths:
            break
        *parents, last = draw(st.sampled_from(paths))
        node = config
        for key in parents:
            node = node[key]
        change = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if change == "remove":
            del node[last]
        elif change == "add" and isinstance(node, dict):
            node[draw(st.one_of(words, scalars))] = draw(values)
        else:
            node[last] = draw(values)
    return config


def written(config: dict[str, Any], folder: Path) -> Path:
    """Write a config to mine.yaml and return its path."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@MANY
@given(config=broken(CONFIGS))
def test_broken_config_is_loaded_or_refused_in_one_line(
    config: dict[str, Any], tmp_path: Path
) -> None:
    path = written(config, tmp_path)
    succeeds_or_is_refused(lambda: load_spec(str(path), [], False))


@FEWER
@given(config=broken(SUITES))
def test_broken_suite_is_loaded_or_refused_in_one_line(
    config: dict[str, Any], tmp_path: Path
) -> None:
    path = written(config, tmp_path)

    def load() -> None:
        if is_suite(path):
            load_suite(path, [], tmp_path)

    succeeds_or_is_refused(load)


@FEWER
@given(data=st.data())
def test_damaged_config_file_is_loaded_or_refused_in_one_line(
    data: st.DataObject, tmp_path: Path
) -> None:
    content = yaml.safe_dump(data.draw(st.sampled_from(CONFIGS))).encode()
    path = tmp_path / "mine.yaml"
    path.write_bytes(data.draw(damaged(content)))
    succeeds_or_is_refused(lambda: load_spec(str(path), [], False))


@FEWER
@given(override=st.one_of(st.text(max_size=30), st.builds("{}={}".format, words, values)))
def test_any_override_is_taken_or_refused_in_one_line(override: str) -> None:
    succeeds_or_is_refused(lambda: load_spec("digits_atlas", [*TINY, override], False))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return content that is cut short, partly replaced, or something else."""
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    junk = draw(st.sampled_from([b"", b"\n- [}", b"null"]) | st.binary(max_size=8))
    head = content[:start]
    overwritten = head + junk + content[start + len(junk) :]
    return draw(st.sampled_from([head, head + junk + content[end:], junk, overwritten]))


@pytest.fixture(scope="module")
def finished(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the smoke run, whose files the test may damage."""
    return shutil.copytree(smoke_run, tmp_path_factory.mktemp("runs") / "digits_adv")


FILES = ["config.yaml", "eval.json", "history.csv", "stages.json", "flags.npz", "probes.npz"]
FILES += ["valley.npz", "landscape.npz", "model.keras", "saved_model/saved_model.pb"]
READERS: dict[str, Callable[[Path], Any]] = {
    "stages.json": lambda run: RunFolder(run).done("train", "fingerprint", []),
    "model.keras": load_network,
    "saved_model/saved_model.pb": lambda run: load_network(run / "saved_model"),
}


@settings(FEWER, max_examples=FEWER.max_examples // 2)  # each renders a report
@given(data=st.data(), name=st.sampled_from(FILES))
def test_damaged_run_folder_is_read_or_refused_in_one_line(
    data: st.DataObject, name: str, finished: Path
) -> None:
    """The report, a resumed run or an attack on the network reads the damaged file."""
    file = finished / name
    content = file.read_bytes()
    file.write_bytes(data.draw(damaged(content)))
    try:
        reader = READERS.get(name, write_report)
        succeeds_or_is_refused(lambda: reader(finished))
    finally:
        file.write_bytes(content)
