"""What an evaluation runs: attacks by name, as mappings or as objects, and suites of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfrobust.attacks import APGD, ATTACKS, FAB, PGD, Attack, MultiTargeted, RayS, Square
from tfrobust.errors import choose, require
from tfrobust.registry import arguments, build, located, resolve
from tfrobust.threat import Threat

# Names that eval.json, flags.npz and the tables use themselves.
RESERVED = ("allow_pickle", "clean", "digest", "file", "index", "label", "worst case")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A row of an evaluation: an attack, its name in tables, and on how many of the first images
    it runs (None: all).

    suite: the trials of one suite, such as AutoAttack, always run as a cascade among themselves.
    """

    attack: Attack
    name: str
    examples: int | None = None
    suite: str | None = None


AttackSpec = str | Mapping[str, Any] | Attack | Trial


def trials(
    attacks: AttackSpec | Sequence[AttackSpec], threat: Threat, where: str = "attacks"
) -> list[Trial]:
    """The trials that `attacks` names: one or a list of names, mappings, attacks or trials.

    A mapping has the `name` of an attack or a suite and its settings; `label` and `examples` are
    keys of any. Raises UserError for what is unknown and for names that are taken.
    """
    listed = [attacks] if isinstance(attacks, str | Mapping | Attack | Trial) else list(attacks)
    found: list[Trial] = []
    for place, entry in enumerate(listed):
        found += _entry(entry, threat, f"{where}[{place}]")
    names = [*(trial.name for trial in found), *dict.fromkeys(t.suite for t in found if t.suite)]
    taken = next((name for name in names if name in RESERVED), None)
    require(taken is None, where, f"labels other than {', '.join(RESERVED)}", taken)
    double = next((n for n in names if names.count(n) > 1), None)
    require(double is None, where, "attacks whose labels differ (set `label`)", double)
    return found


def _entry(entry: AttackSpec, threat: Threat, where: str) -> list[Trial]:
    if isinstance(entry, Trial):
        return [entry]
    if isinstance(entry, Attack):
        located(where, entry.check, threat)
        return [Trial(entry, entry.title)]
    entry = {"name": entry} if isinstance(entry, str) else entry
    require(isinstance(entry, Mapping), where, "a name or a mapping with 'name'", entry)
    shared = {k: v for k, v in entry.items() if k in ("label", "examples")}
    rest = {k: v for k, v in entry.items() if k not in shared}
    checked = arguments(_shared, shared, where)
    label, examples = checked.get("label"), checked.get("examples")
    require(examples is None or examples >= 1, f"{where}.examples", "int >= 1", examples)
    if isinstance(name := rest.get("name"), str) and name in SUITES:
        make = resolve(SUITES, rest, where, ("threat",), also=("label", "examples"))
        suite = located(where, make, threat)
        return [_labelled(_cut(trial, examples), label) for trial in suite]
    require("name" in rest, where, "a mapping with 'name'", dict(entry))
    choose(f"{where}.name", rest["name"], [*ATTACKS, *SUITES])
    attack = build(ATTACKS, rest, where, also=("label", "examples"))
    located(where, attack.check, threat)
    return [Trial(attack, label or attack.title, examples)]


def _labelled(trial: Trial, label: str | None) -> Trial:
    """A suite's trial under the suite's label: in its own name too, since names must differ."""
    if label is None:
        return trial
    if trial.suite is None:
        return dataclasses.replace(trial, name=f"{label}: {trial.name}")
    name = trial.name.removeprefix(f"{trial.suite}: ")
    return dataclasses.replace(trial, name=f"{label}: {name}", suite=label)


def _shared(*, label: str | None = None, examples: int | None = None) -> None:
    """The keys of an entry beside those of the attack."""


def _cut(trial: Trial, examples: int | None) -> Trial:
    """At most `examples` images."""
    known = [n for n in (trial.examples, examples) if n is not None]
    return dataclasses.replace(trial, examples=min(known, default=None))


def autoattack(threat: Threat, version: str = "standard") -> list[Trial]:
    """AutoAttack (Croce and Hein, 2020, arXiv:2003.01690), cheapest attack first, with the
    constants of its public code: in L1 five restarts of APGD-CE and five targets of APGD-T.

    version: "standard"; "plus", with restarts and the untargeted FAB, at about four times the
    cost; "rand", for networks whose output is random: gradients averaged over 20 draws.
    """
    l1 = threat.norm == "l1"
    versions: dict[str, list[Attack]] = {
        "standard": [
            APGD(restarts=5 if l1 else 1),
            APGD(loss="targeted_dlr", targets=5 if l1 else 9),
            FAB(),
            Square(),
        ],
        "plus": [
            APGD(restarts=5),
            APGD(loss="dlr", restarts=5),
            APGD(loss="targeted_dlr"),
            FAB(),
            Square(),
            FAB(targets=None, restarts=5),
        ],
        "rand": [APGD(eot=20), APGD(loss="dlr", eot=20)],
    }
    choose("version", version, versions)
    name = "AutoAttack" + (f" {version}" if version != "standard" else "")
    return [Trial(attack, f"{name}: {attack.title}", suite=name) for attack in versions[version]]


def paper(threat: Threat, budget: str = "small") -> list[Trial]:
    """The attacks of the ATLAS paper's tables, and AutoAttack and RayS, which it lacks on MNIST.

    budget: "small" attacks the first images only, as many as two CPU cores can; "paper" all of
    them, and RayS with 40,000 queries on 1,000. The step size is the paper's 0.01 of eps 0.3,
    or else its 0.007 of 8/255, in proportion to eps; it names none for Un-T and Multi-T, which
    take the same.
    """
    choose("budget", budget, ("small", "paper"))
    small = budget == "small"
    step = 0.01 if threat.eps == 0.3 else 0.007 * 255 / 8 * threat.eps

    def pgd(steps: int, label: str, examples: int | None) -> Trial:
        return Trial(PGD(steps=steps, step_size=step), label, examples if small else None)

    def multi(restarts: int, steps: int, examples: int) -> Trial:
        attack = MultiTargeted(steps=steps, restarts=restarts, step_size=step)
        return Trial(attack, f"Multi-T {restarts}x{steps}", examples if small else None)

    untargeted = PGD(steps=50, restarts=20, step_size=step, loss="margin", success="any")
    rays = RayS(queries=10_000 if small else 40_000)
    return [
        pgd(20, "PGD-20", None),
        pgd(1000, "PGD-1000", 1000),
        Trial(untargeted, "Un-T 20x50", 1000 if small else None),
        multi(5, 20, 1000),
        multi(20, 50, 200),
        *(_cut(trial, 1000 if small else None) for trial in autoattack(threat)),
        *([Trial(rays, "RayS", 100 if small else 1000)] if threat.norm == "linf" else []),
    ]


SUITES: dict[str, Callable[..., list[Trial]]] = {"autoattack": autoattack, "paper": paper}
