"""Render the keys of a config from the constructors that take them.

    python tools/render_configuration.py            # writes the two files
    python tools/render_configuration.py --check    # exits with 1 when one of them is stale

docs/configuration.md is for readers; pipelines/schema.json is what a typing mistake is found with
before TensorFlow is imported (pipelines/early_check.py).
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
from pipelines.network import NetworkFile
from pipelines.sections import TRAINED, Card, Data, EvaluationOptions, ExtraData, Search, Train
from pipelines.spec import FACTS, SEARCHING, STAGES, TopLevel
from pipelines.suite import Entry, SuiteFile
from tfrobust.attacks import ATTACKS
from tfrobust.data import AUGMENTATIONS, DATASETS
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
# Parameters that the pipeline fills in.
OF_METHODS = {
    *("network", "threat", "validation_attack", "warmup_steps", "ramp_steps", "seed", "averaging"),
    *FACTS,
}
OF_MODELS = {"image_shape", "num_classes"}
INTRO = f"""# Configuration

Rendered by `python tools/render_configuration.py` from the constructors; change those, not this
page.

A config is a YAML file; `--set key.path=value` changes any key, `--print_config` shows what comes
out. `include: base/file.yaml` puts another file below, and a section that names another constructor
replaces the one below with its arguments. `${{threat.eps}}` refers to another key; a fraction such
as `8/255` is a number. A key that is not here is an error.

Top level: `threat`, `data`, `model`, `method`, `optimizer`, `train`, `attacks`, `evaluation`,
`card`, `search`; `seed`; `precision`, one of {", ".join(PRECISIONS)}; `stages`, a list of
{", ".join(STAGES)}, or of {", ".join(SEARCHING)} where there is a section `search`; `paper`, a
source and the figures that a paper has, by `clean` and an attack's label; `note`; `name`, of the
run's folder. Where a section takes a name and arguments it is `{{name: NAME, argument: value}}`, or
the name alone. An attack of the list `attacks` takes `label` and `examples` too, its column's name
and how many test images it gets. `threat` may be a list of mappings, one a norm, to evaluate in
their union; an attack then runs under each norm, or under that of its key `norm`.
"""


def schema() -> str:
    """Return the text of pipelines/schema.json, which `pipelines.early_check.schema` describes."""
    data, extra = ({field.name for field in dataclasses.fields(kind)} for kind in (Data, ExtraData))
    attacks = _keys(ATTACKS)
    content = {
        "keys": {
            "": sorted(parameters(TopLevel)),
            "threat": sorted(parameters(Threat)),
            "train": sorted(parameters(Train)),
            "model": sorted(parameters(NetworkFile)),
            "evaluation": sorted(parameters(EvaluationOptions)),
            "evaluation.corruptions": sorted(parameters(Corruptions)),
            "card": sorted(parameters(Card)),
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
            "train.averaging": _keys(AVERAGINGS),
            "train.schedule": _keys(SCHEDULES),
            "train.validation_attack": attacks,
            "attacks": {
                **_keys(ATTACKS, also=COMMON),
                **_keys(SUITES, filled={"threat"}, also=COMMON),
            },
        },
        "stages": {"run": list(STAGES), "search": list(SEARCHING)},
        "searched": list(TRAINED),
    }
    return json.dumps(content, indent=1) + "\n"


def _keys(
    registry: Mapping[str, Callable[..., Any]],
    filled: Collection[str] = (),
    also: Collection[str] = (),
) -> dict[str, list[str]]:
    """Return the keys that a section may have with each name of a registry.

    filled: parameters that the pipeline fills in. also: keys beside the constructor's parameters.
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
        ("search", Search),
        ("A suite's file", SuiteFile),
        ("An entry of its runs", Entry),
    ):
        parts += [f"## {title}", *_about(constructor)]
    parts += ["## Every method", *_about(RobustModel, OF_METHODS)]
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
    }
    hidden = {"method.name": set(parameters(RobustModel)), "model.name": OF_MODELS}
    for title, registry in registries.items():
        parts.append(f"## {title}")
        for name in sorted(registry):
            parts += [f"### {name}", *_about(registry[name], hidden.get(title, set()))]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _about(constructor: Callable[..., Any], hidden: Collection[str] = ()) -> Iterator[str]:
    """Yield a constructor's docstring and a table of its parameters, but for the hidden ones."""
    yield "```text\n" + (inspect.getdoc(constructor) or "") + "\n```"
    rows = [
        ["name" if name == "source" else name, _type(p.annotation), _default(p.default)]
        for name, p in parameters(constructor).items()
        if name not in hidden and p.kind is not p.VAR_KEYWORD
    ]
    if rows:
        yield markdown_table(["key", "type", "default"], rows)


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
    parser.add_argument("--check", action="store_true", help="exit with 1 when a file is stale")
    check = parser.parse_args().check
    status = 0
    for path, text in ((PAGE, render()), (SCHEMA, schema())):
        if not check:
            write_text(path, text)
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path}: stale; run python tools/render_configuration.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
