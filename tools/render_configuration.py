"""Render the keys of a config from the constructors that take them.

    python tools/render_configuration.py            # writes the two files
    python tools/render_configuration.py --check    # exits with 1 if one of them is out of date

docs/configuration.md is for readers. With pipelines/schema.json pipelines/early_check.py answers
typing mistakes before TensorFlow is imported.
"""

import argparse
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.early_check import SCHEMA
from pipelines.exports import Exports
from pipelines.network import NetworkFile
from pipelines.objects import FACTS
from pipelines.sections import (
    TRAINED,
    Card,
    Data,
    EvaluationOptions,
    ExtraData,
    Requirements,
    Search,
    TopLevel,
    Train,
)
from pipelines.spec import BEFORE, RUN_STAGES, SEARCH_STAGES
from pipelines.suite import Entry, SuiteFile
from pipelines.trackers import TRACKERS
from tfrobust.attacks import ATTACKS
from tfrobust.data import AUGMENTATIONS, DATASETS, Dataset
from tfrobust.evaluation import Corruptions
from tfrobust.evaluation.attack_list import COMMON, SUITES
from tfrobust.io import write_text
from tfrobust.methods import AVERAGINGS, METHODS, RobustModel
from tfrobust.models import MODELS, PRECISIONS
from tfrobust.registry import parameters
from tfrobust.report import markdown_table
from tfrobust.threat import Threat
from tfrobust.training import OPTIMIZERS, SCHEDULES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
# Parameters of methods and models to which the pipeline gives values.
OF_METHODS = {
    *("network", "threat", "validation_attack", "warmup_steps", "ramp_steps", "seed", "averaging"),
    *FACTS,
}
OF_MODELS = {"image_shape", "num_classes"}
INTRO = f"""# Configuration

Rendered by `python tools/render_configuration.py` from the constructors; change those, not this
page.

A config is a YAML file. `--set key.path=value` changes any key, and `--print_config` prints the
resulting config. `include: base/file.yaml` names a file whose keys this one completes and replaces;
a section that names another constructor replaces the whole section of that file.
`${{threat.eps}}` refers to another key. A fraction such as `8/255` is a number. A key that is not
on this page is an error.

Top level: `threat`, `data`, `model`, `method`, `optimizer`, `train`, `attacks`, `evaluation`,
`card`, `require`, `export`, `track`, `search`; `seed`; `precision`, one of
{", ".join(PRECISIONS)}; `stages`, a list of
{", ".join((BEFORE, *RUN_STAGES))}, or of
{", ".join(SEARCH_STAGES)} if there is a section `search`; `paper`, a source and the figures of a
paper under `clean` and the labels of attacks; `note`; `name`, that of the run's folder. A section
that takes a name and arguments is `{{name: NAME, argument: value}}`, or the name alone. An attack
in the list `attacks` also takes `label`, the name of its column, and `examples`, the number of its
test images; a suite keeps its own name beside its label, as in "AA (AutoAttack)". `threat` may be
a list with a mapping for each norm; the evaluation is then in their union, and an attack runs under
each norm, or under its key `norm`.
"""


def schema() -> str:
    """Return the text of pipelines/schema.json, which `pipelines.early_check.schema` describes."""
    data, extra = ({field.name for field in dataclasses.fields(kind)} for kind in (Data, ExtraData))
    attacks = _keys(ATTACKS)
    suites = _keys(SUITES, filled={"threat"}, also=COMMON)
    listed = {**_keys(ATTACKS, also=COMMON), **suites}
    content = {
        "keys": {
            "": sorted(parameters(TopLevel)),
            "threat": sorted(parameters(Threat)),
            "train": sorted(parameters(Train)),
            "model": sorted(parameters(NetworkFile)),
            "evaluation": sorted(parameters(EvaluationOptions)),
            "evaluation.corruptions": sorted(parameters(Corruptions)),
            "card": sorted(parameters(Card)),
            "require": sorted(parameters(Requirements)),
            "export": sorted(parameters(Exports)),
            "search": sorted(parameters(Search)),
        },
        "names": {
            "data": _keys(DATASETS, also=data - {"source"}),
            "data.augment": _keys(AUGMENTATIONS),
            "data.extra": _keys(DATASETS, also=extra - {"source"}),
            "model": _keys(MODELS, filled=OF_MODELS, also={"path"}),
            "method": _keys(METHODS, filled=OF_METHODS | {"attack"}, also={"attack"}),
            "method.attack": attacks,
            "optimizer": _keys(OPTIMIZERS),
            "track": _keys(TRACKERS),
            "train.averaging": _keys(AVERAGINGS),
            "train.schedule": _keys(SCHEDULES),
            "train.validation_attack": attacks,
            "attacks": listed,
            "export.attacks": listed,
        },
        "stages": {"run": list(RUN_STAGES), "search": list(SEARCH_STAGES)},
        "searched": list(TRAINED),
    }
    return json.dumps(content, indent=1) + "\n"


def _keys(
    registry: Mapping[str, Callable[..., Any]],
    filled: Collection[str] = (),
    also: Collection[str] = (),
) -> dict[str, list[str]]:
    """Return the keys that a section may have with each name of a registry.

    Args:
        registry: Name -> constructor.
        filled: Parameters to which the pipeline gives values.
        also: Keys beside the constructor's parameters.
    """
    return {
        name: sorted({"name", *also} | (set(parameters(constructor)) - set(filled)))
        for name, constructor in registry.items()
    }


def render() -> str:
    """Return the text of docs/configuration.md."""
    parts = [INTRO]
    for title, constructor in (
        ("threat", Threat),
        ("data", Data),
        ("data.extra", ExtraData),
        ("model, of a file", NetworkFile),
        ("train", Train),
        ("evaluation", EvaluationOptions),
        ("evaluation.corruptions", Corruptions),
        ("card", Card),
        ("require", Requirements),
        ("export", Exports),
        ("search", Search),
        ("A suite's file", SuiteFile),
        ("An entry of its runs", Entry),
    ):
        parts += [f"## {title}", *_about(constructor)]
    parts += ["## Every method", *_about(RobustModel, OF_METHODS | {"name"})]
    registries: dict[str, Mapping[str, Callable[..., Any]]] = {
        "method.name": METHODS,
        "method.attack.name, attacks": ATTACKS,
        "attacks: suites": SUITES,
        "data.name": DATASETS,
        "data.augment.name": AUGMENTATIONS,
        "model.name": MODELS,
        "optimizer.name": OPTIMIZERS,
        "train.schedule.name": SCHEDULES,
        "train.averaging.name": AVERAGINGS,
        "track.name": TRACKERS,
    }
    hidden = {"model.name": OF_MODELS, "attacks: suites": {"threat"}}
    for title, registry in registries.items():
        parts.append(f"## {title}")
        for name in sorted(registry):
            known = _of_every_method(registry[name]) if registry is METHODS else set()
            parts += [f"### {name}", *_about(registry[name], known | hidden.get(title, set()))]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _of_every_method(method: Callable[..., Any]) -> set[str]:
    """Return the parameters of a method that are in the table of every method, default included."""
    own = parameters(method)
    shared = {name: p for name, p in parameters(RobustModel).items() if name in own}
    return {name for name, p in shared.items() if own[name].default == p.default}


def _about(constructor: Callable[..., Any], hidden: Collection[str] = ()) -> Iterator[str]:
    """Yield the docstring of a constructor, and a table of its parameters that are not hidden."""
    yield "```text\n" + (inspect.getdoc(constructor) or "") + "\n```"
    rows = [
        [_key(name, p), _type(p.annotation), _default(p.default)]
        for name, p in parameters(constructor).items()
        if name not in hidden and p.kind is not p.VAR_KEYWORD
    ]
    if rows:
        yield markdown_table(["key", "type", "default"], rows)


def _key(name: str, parameter: inspect.Parameter) -> str:
    """Return the key of a parameter in a config, where a data set has a name."""
    return "name" if parameter.annotation is Dataset else name


def _type(annotation: Any) -> str:
    text = inspect.formatannotation(annotation)
    return re.sub(r"(?:[a-z_]+\.)+(\w+)", r"\1", text)


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if re.search(r" at 0x|<factory>", repr(value)):
        return "empty"
    return repr(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if a file is out of date")
    check = parser.parse_args().check
    status = 0
    for path, text in ((PAGE, render()), (SCHEMA, schema())):
        if not check:
            write_text(path, text)
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path}: out of date; run python tools/render_configuration.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
