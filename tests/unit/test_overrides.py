"""`--set` reads names and paths as they are typed and everything else as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import config as configs
from pipelines.early_check import schema
from pipelines.resolve import load_spec
from pipelines.suite import load_suite
from tests.errors import error_line
from tfrobust import PGD
from tfrobust.errors import UserError
from tfrobust.training import Guided

DIGITS = configs.find("digits_adv")
NAMES = ["2024_01_01", "2024-01-01", "1e5", "1.5e5", "yes", "null", "0x10", "010", "1.10", "12:30",
         "my run", "äö", "true", "1_000", "nan", "3"]  # fmt: skip
REFUSED = ["-x", ".x", "a/b", "..", "a b ", " a", "#a", "[x]", "${x}", "a\nb", "*x", "???", "~",
           "x" * 241, "ü" * 121]  # fmt: skip
KEYS = ["name", "data.path", "model.path", "train.init_from", "data.dir", "attacks[0].source"]


def load(*overrides: str) -> dict[str, Any]:
    """Return the config digits_adv with overrides."""
    return configs.load(DIGITS, overrides)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_text_that_was_typed(name: str) -> None:
    assert load_spec("digits_adv", [f"name={name}"], False).name == name


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_is_unfit_for_a_folder_is_refused(name: str) -> None:
    assert error_line(lambda: load_spec("digits_adv", [f"name={name}"], False))


def test_an_empty_name_becomes_that_of_the_config() -> None:
    assert load_spec("digits_adv", ["name="], False).name == "digits_adv"


@pytest.mark.parametrize(
    "path",
    ["2024", "1e5", "null", "a #1/my.npz", "a: b.npz", "k=v.npz", "comma, two.npz", "[x].npz",
     "{x}.npz", "quote's.npz", '"q".npz', "'q'.npz", "trailing ", "~x", "%41.npz", "a\\b.npz",
     "&x.npz", "*x.npz", "!x", "- x", "x:", "| x", "$HOME", "@x", "`x`"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["data.path", "train.init_from"])
def test_a_path_is_the_text_that_was_typed(key: str, path: str) -> None:
    section, _, name = key.partition(".")
    assert load(f"{key}={path}")[section][name] == path


def test_a_quoted_path_is_read_as_yaml_and_an_empty_one_as_null() -> None:
    assert load("data.path='a ''b'' '")["data"]["path"] == "a 'b' "
    assert load('data.path="tab\\t"')["data"]["path"] == "tab\t"
    assert load("data.path=")["data"]["path"] is None


@pytest.mark.parametrize("note", ["try #2", "a: b", "[1] of 2", "@home", "yes"])
def test_a_note_is_the_text_that_was_typed(note: str) -> None:
    config = load(f"note={note}", f"card.text={note}")
    assert config["note"] == config["card"]["text"] == note


def test_null_in_place_of_a_section_is_its_default() -> None:
    names = ("schedule", "validation_attack", "averaging")
    overrides = [f"train.{name}=null" for name in names]
    others = ["evaluation.corruptions=null", "data.augment=null", "data.extra=null"]
    spec = load_spec("digits_adv", [*overrides, *others, "method.attack=null"], False)
    assert spec.train is not None
    assert [getattr(spec.train, name) for name in names] == [Guided(), PGD(steps=10), None]
    assert (spec.evaluation.corruptions, spec.data.augment, spec.data.extra) == (False, (), None)


def test_a_run_has_at_least_one_stage() -> None:
    line = error_line(lambda: load_spec("digits_adv", ["stages=[]"], False))
    assert line == "--set stages=[]: stages: expected at least one stage, received []"


def test_a_reference_is_replaced_by_the_value_of_its_key() -> None:
    assert load("data.path=runs/${data.name}.npz")["data"]["path"] == "runs/digits.npz"
    with pytest.raises(UserError, match=r"'HOME' not found.*characters themselves write"):
        load("data.path=${HOME}.npz")
    assert load(r"data.path=\${HOME}.npz")["data"]["path"] == "${HOME}.npz"


def test_other_keys_are_read_as_yaml() -> None:
    config = load("method.alpha=1e-3", "seed=0x10", "precision=null", "attacks=[{name: pgd}]")
    assert config["method"]["alpha"] == 1e-3 and config["seed"] == 16
    assert config["precision"] is None and config["attacks"] == [{"name": "pgd"}]
    space = load("search.space.model.name={choice: [a, b]}", "search.space.data.path=null")
    assert space["search"]["space"] == {"model": {"name": {"choice": ["a", "b"]}},
                                        "data": {"path": None}}  # fmt: skip


@pytest.mark.parametrize("number", ["010", "-07", "0_1", "1:30", "1:30.5", "{a: [010]}"])
def test_a_number_that_yaml_reads_in_another_base_is_refused(tmp_path: Path, number: str) -> None:
    """YAML 1.1 takes 010 for 8 and 1:30 for 90; the user of a seed or a time means neither."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"include: {DIGITS}\nseed: {number}\n")
    line = error_line(lambda: configs.load(path))
    assert f"{path}: expected YAML in UTF-8: line 2: expected a number in base 10" in line
    line = error_line(lambda: load(f"seed={number}"))
    assert line.startswith(f"--set seed={number}: expected a number in base 10")
    path.write_text(f"include: {DIGITS}\nnote: '{number}'\nname: &a '010'\nx: [*a, 0.10, 0, -7]\n")
    config = configs.load(path, [f"seed='{number}'", "precision=0.05"])
    assert config["note"] == config["seed"] == number and config["x"] == ["010", 0.1, 0, -7]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\ntrain: {epochs: 2}\nseed: 2\n", "line 3: found duplicate key seed"),
        ("threat: {per_feature: {0: 1, 1: 1,\n 0: 0}}\n", "line 2: found duplicate key 0"),
        ("train:\n\tepochs: 2\n", r"line 2: found character '\t' that cannot start any token"),
        ("seed: 1\n---\nseed: 2\n", "line 2: expected a single document in the stream but found"),
        ("note: Prüfung\n", "expected YAML in UTF-8: 'utf-8' codec can't decode byte 0xfc"),
    ],
)
def test_a_file_that_is_no_yaml_is_refused_with_the_line_and_the_reason(
    tmp_path: Path, text: str, line: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="latin-1")
    assert line in error_line(lambda: configs.load(path))


# Without control characters, references, and ???, for which YAML or OmegaConf has another use.
plain = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1).filter(
    lambda text: "${" not in text and "???" not in text
)
awkward = st.sampled_from(
    [*NAMES, "a: b", "'", '"', "''", '"a"', "'a' b", "#", "{", " ", "\\", "-"]
)
texts = st.one_of(plain, awkward)


@settings(max_examples=2 * settings.default.max_examples)
@given(text=texts, key=st.sampled_from(KEYS))
def test_any_text_is_kept_as_it_was_typed(text: str, key: str) -> None:
    def value(override: str) -> Any:
        """Return the value of the key in the config with an override."""
        node: Any = load("attacks=[{name: transfer}]", override)
        for part in key.replace("[0]", ".0").split("."):
            node = node[int(part)] if isinstance(node, list) else node[part]
        return node

    if text[0] not in "'\"":
        assert value(f"{key}={text}") == text
    assert value(f"{key}={configs.flow(text)}") == text  # as a suite passes it on


leaves = st.one_of(
    texts, st.none(), st.booleans(), st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
nested = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner), st.dictionaries(texts, inner)), max_leaves=6
)


@settings(max_examples=2 * settings.default.max_examples)
@given(value=nested)
def test_a_value_written_in_one_line_is_read_back(value: Any) -> None:
    assert load(f"key={configs.flow(value)}").get("key") == value


@given(value=st.dictionaries(st.sampled_from(["a", "b"]), nested))
def test_a_written_config_is_read_back(value: dict[str, Any], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(configs.dump(value), encoding="utf-8")
    assert configs.read(path) == value == yaml.safe_load(path.read_text(encoding="utf-8"))
    assert configs.load(path) == value


@pytest.mark.parametrize("name", ["2024_01_01", "1e5", "yes", "0x10", "1.10"])
def test_a_name_in_a_file_that_yaml_does_not_read_as_text_needs_quotes(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "mine.yaml"
    head = f"include: {DIGITS}\nname: "
    path.write_text(f"{head}{name}\n")
    with pytest.raises(UserError, match=r"name: expected text \(put it in quotes\), received"):
        load_spec(str(path), [], False)
    path.write_text(f"{head}'{name}'\n")
    assert load_spec(str(path), [], False).name == name


def test_a_section_completes_that_of_the_included_file_unless_both_name_another(
    tmp_path: Path,
) -> None:
    """A section without a name is one of settings for whatever the other file names."""
    below, path = tmp_path / "below.yaml", tmp_path / "mine.yaml"
    path.write_text("include: below.yaml\nmethod: {name: adv, craft: train}")
    for text, expected in [
        ("{l2: 0.5, craft: eval}", {"l2": 0.5, "name": "adv", "craft": "train"}),
        ("{name: adv, l2: 0.5}", {"l2": 0.5, "name": "adv", "craft": "train"}),
        ("{name: trades, beta: 6.0}", {"name": "adv", "craft": "train"}),
    ]:
        below.write_text(f"method: {text}")
        assert configs.load(path)["method"] == expected
    for name in ("fast_adv", "fast_fgsm_pgi", "fast_nuat"):
        method = configs.load(configs.find(name))["method"]
        assert (method["label_smoothing"], method["l2"]) == (0.4, 5e-4)


PAPER = {"source": "A paper", "clean": 0.8}


@pytest.mark.parametrize(
    ("section", "override", "kept"),
    [
        ("data: {name: npz, path: my.npz}", "data.name=npz", False),
        ("data: digits", "data=digits", False),
        ("threat: {eps: 4/255}", "threat.eps=4/255", False),
        ("method: {name: trades, beta: 6.0}", "method={name: trades, beta: 6}", False),
        ("data: {batch_size: 32}", "data.batch_size=32", True),
        ("method: {beta: 1.0}", "method.beta=1.0", True),
        ("model: mlp", "model=mlp", True),
        ("threat: {norm: linf, eps: 8/255}", "threat.eps=8/255", True),
        ("data: digits\npaper: {clean: 0.8}", "paper.clean=0.8", True),
    ],
)
def test_figures_of_a_paper_stay_beside_its_data_threat_and_method(
    tmp_path: Path, section: str, override: str, kept: bool
) -> None:
    """They are left out of a file that includes the paper's, and after an override."""
    base = {
        "threat": {"norm": "linf", "eps": "8/255"},
        "data": {"name": "cifar10", "batch_size": 128},
        "method": {"name": "atlas", "beta": 5.0},
        "paper": PAPER,
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    file = tmp_path / "mine.yaml"
    file.write_text(f"include: base.yaml\n{section}\n")
    expected = PAPER if kept else None
    assert configs.load(file).get("paper") == expected
    assert configs.load(tmp_path / "base.yaml", [override]).get("paper") == expected


def test_a_file_in_the_home_is_found_by_its_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As paths of data and networks are."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "below.yaml").write_text("seed: 7")
    (tmp_path / "mine.yaml").write_text("include: ~/below.yaml")
    assert configs.load(configs.find("~/mine.yaml")) == {"seed": 7}


def test_a_name_alone_completes_and_is_completed_as_a_section_with_this_name(
    tmp_path: Path,
) -> None:
    below, path = tmp_path / "below.yaml", tmp_path / "mine.yaml"
    for text, mine, expected in [
        ("{l2: 0.5}", "adv", {"l2": 0.5, "name": "adv"}),
        ("{name: adv, l2: 0.5}", "adv", {"l2": 0.5, "name": "adv"}),
        ("{name: trades, beta: 6.0}", "adv", {"name": "adv"}),
        ("adv", "{l2: 0.5}", {"l2": 0.5, "name": "adv"}),
        ("trades", "adv", "adv"),
    ]:
        below.write_text(f"method: {text}")
        path.write_text(f"include: below.yaml\nmethod: {mine}")
        assert configs.load(path)["method"] == expected
    assert {place.rpartition(".")[2] for place in schema()["names"]} == configs.NAMED


@pytest.mark.parametrize(
    ("overrides", "section", "expected"),
    [
        (["method=trades", "method.beta=6"], "method", {"name": "trades", "beta": 6}),
        (["method.attack=pgd", "method.attack.steps=3"], "method.attack",
         {"name": "pgd", "steps": 3}),
        (["attacks=[fgsm, pgd]", "attacks[1].steps=3"], "attacks",
         ["fgsm", {"name": "pgd", "steps": 3}]),
        (["attacks=pgd", "attacks[0].steps=3"], "attacks", [{"name": "pgd", "steps": 3}]),
        (["attacks={name: pgd, restarts: 2}", "attacks[0].steps=3"], "attacks",
         [{"name": "pgd", "restarts": 2, "steps": 3}]),
        (["attacks=pgd", "attacks[0]=fgsm"], "attacks", ["fgsm"]),
        (["data.augment=crop_flip", "data.augment.padding=2"], "data.augment",
         {"name": "crop_flip", "padding": 2}),
        (["train.schedule=guided", "train.schedule.stop=9"], "train.schedule",
         {"name": "guided", "stop": 9}),
    ],
)  # fmt: skip
def test_a_key_below_a_name_alone_completes_the_section_with_this_name(
    overrides: list[str], section: str, expected: Any
) -> None:
    """The name was lost: the section was the key alone."""
    value: Any = load(*overrides)
    for key in section.split("."):
        value = value[key]
    assert value == expected


def test_a_key_below_a_list_is_answered_with_the_item() -> None:
    line = error_line(lambda: load("attacks=[fgsm, pgd]", "attacks.steps=3"))
    assert line.startswith("--set attacks.steps=3: attacks is a list, of which attacks[0].steps is")


def test_a_suite_passes_values_on_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    values = {
        "train.init_from": None,
        "data.dir": "1e5",
        "data.path": "a: #b",
        "model.path": "null",
    }
    path.write_text(configs.dump({"runs": [{"config": "digits_adv", "set": values}]}))
    (member,) = load_suite(path, [], tmp_path).members
    config = configs.load(DIGITS, member.overrides)
    for key, value in values.items():
        section, _, name = key.partition(".")
        assert config[section][name] == value
    with pytest.raises(UserError, match="name: expected none .*label and grid.*received 'x'"):
        load_suite(path, ["name=x"], tmp_path)
