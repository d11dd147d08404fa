"""The list of attacks of an evaluation, from names, mappings, attack objects and suites."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tfrobust.attacks import APGD, ATTACKS, EOT, FAB, PGD, Attack, MultiTargeted, RayS, Square
from tfrobust.attacks.wrapper import check_relative
from tfrobust.errors import choose, require, require_at_least
from tfrobust.record import AUTOATTACK, UPPER_BOUND, is_autoattack
from tfrobust.registry import build, convert, located, resolve
from tfrobust.threat import Threat, threats_of

# Names with another meaning in eval.json, flags.npz and the tables.
RESERVED = ("allow_pickle", "clean", "digest", "file", "index", "label")
RESERVED_STARTS = ("corruptions", "worst case")
RESERVED_END = ".npy"  # NumPy takes "NAME.npy" in an .npz file for NAME
# Keys of every entry beside the settings of its attack or suite, and their types.
COMMON = {"label": str | None, "examples": int | None, "norm": str | None}


@dataclasses.dataclass(frozen=True)
class ListedAttack:
    """An attack in the list of an evaluation: one row of its tables.

    Args:
        attack: The attack.
        name: Its name in tables and files.
        examples: The number of images on which it runs, the first of the test set; None is all.
            First images of other classes than the whole set are refused.
        suite: The name of its suite, such as "AutoAttack". The attacks of a suite always run as a
            cascade among themselves.
        threat: The threat under which it runs, if the evaluation has several.
    """

    attack: Attack
    name: str
    examples: int | None = None
    suite: str | None = None
    threat: Threat | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.attack, Attack), "attack", "an attack, such as PGD()", self.attack)
        require(isinstance(self.name, str) and self.name, "name", "a name", self.name)
        if self.examples is not None:
            require_at_least(1, examples=self.examples)


AttackSpec = str | Mapping[str, Any] | Attack | ListedAttack


def list_attacks(
    attacks: AttackSpec | Sequence[AttackSpec],
    threat: Threat | Sequence[Threat],
    where: str = "attacks",
) -> list[ListedAttack]:
    """Return the attacks that `attacks` describes, in order, with suites expanded.

    Args:
        attacks: An entry or a sequence of entries. An entry is the name of an attack or a suite; a
            mapping with the key `name`, the settings of that attack or suite, and optionally
            `label`, `examples` and `norm`; an `Attack`; or a `ListedAttack`.
        threat: The threat under which the attacks run. With a list, each attack runs under every
            threat, or only under that of its `norm`, and its name begins with the norm.
        where: The name of the argument in error messages.

    Raises:
        UserError: For unknown names and keys, for labels that are reserved or used twice, and if
            one of several threats is attacked on fewer images than another.
    """
    entries: Any = attacks
    if isinstance(entries, str | Mapping | Attack | ListedAttack):
        entries = [entries]
    expected = "a name, a mapping with 'name', an attack such as PGD(), or a list of these"
    require(isinstance(entries, Iterable), where, expected, attacks)
    entries, threats = list(entries), threats_of(threat)
    attack_list: list[ListedAttack] = []
    for one_threat in threats:
        for number, entry in enumerate(entries):
            place = f"{where}[{number}]"
            norms = _norms(entry, threats, place)
            if one_threat.norm not in norms:
                continue
            for listed in _expand(entry, one_threat, place):
                if len(threats) > 1:
                    shared = len(norms) > 1 and not _is_suite(entry)
                    listed = _under(listed, one_threat, place, shared)
                attack_list.append(listed)
    if attack_list and len(threats) > 1:
        _check_sizes(attack_list, threats, where)
    suites = dict.fromkeys(listed.suite for listed in attack_list if listed.suite)
    names = [*(listed.name for listed in attack_list), *suites]
    norms = [f"{threat.norm}: " for threat in threats]
    labels = [next((n.removeprefix(p) for p in norms if n.startswith(p)), n) for n in names]
    reserved = next(filter(_is_reserved, labels), None)
    starts = (f"{start} ..." for start in RESERVED_STARTS)
    others = ", ".join((*RESERVED, *starts, f"... {RESERVED_END}"))
    require(reserved is None, where, f"labels other than {others}", reserved)
    repeated = next((name for name in names if names.count(name) > 1), None)
    require(repeated is None, where, "attacks whose labels differ (set `label`)", repeated)
    return attack_list


def _is_reserved(label: str) -> bool:
    return label in RESERVED or label.startswith(RESERVED_STARTS) or label.endswith(RESERVED_END)


def check_gradients(
    attack_list: Sequence[ListedAttack], runtime: str | None, where: str = "attacks"
) -> None:
    """Raise a UserError for the first attack that follows gradients which a network lacks.

    Args:
        attack_list: The attacks.
        runtime: The runtime outside TensorFlow that computes the network; None if there is none.
        where: The name of the argument in error messages.
    """
    if runtime is None:
        return
    names = [name for name, attack in ATTACKS.items() if not attack.needs_gradients]
    expected = f"attacks without gradients ({', '.join(names)}), as {runtime} has none"
    for listed in attack_list:
        require(not listed.attack.needs_gradients, where, expected, listed.name)


def _norms(entry: AttackSpec, threats: Sequence[Threat], where: str) -> list[str]:
    """Return the norms of the threats under which an entry runs."""
    norms = [threat.norm for threat in threats]
    if isinstance(entry, ListedAttack) and entry.threat is not None:
        require(entry.threat in threats, f"{where}.threat", "one of the threats", entry.threat)
        return [entry.threat.norm]
    if isinstance(entry, Mapping) and entry.get("norm") is not None:
        return [choose(f"{where}.norm", entry["norm"], norms)]
    return norms


def _is_suite(entry: AttackSpec) -> bool:
    """Return whether an entry is a suite, whose settings are made for each threat."""
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    return isinstance(name, str) and name in SUITES


def _under(listed: ListedAttack, threat: Threat, where: str, shared: bool) -> ListedAttack:
    """Return the attack under one of several threats.

    Args:
        listed: The attack.
        threat: The threat.
        where: The place of its entry, for errors.
        shared: Whether the attack, with these settings, also runs under other threats.

    Raises:
        UserError: If the attack runs under several threats with a step size in image units.
    """
    if listed.threat is not None:  # the entry was a ListedAttack that names its threat
        return listed
    if shared:
        expected = "none, a fraction of each eps, or a `norm` beside it (there are several threats)"
        check_relative(listed.attack, where, expected)
    suite = None if listed.suite is None else f"{threat.norm}: {listed.suite}"
    name = f"{threat.norm}: {listed.name}"
    return dataclasses.replace(listed, name=name, suite=suite, threat=threat)


def _check_sizes(
    attack_list: Sequence[ListedAttack], threats: Sequence[Threat], where: str
) -> None:
    """Check that every threat has an attack on as many images as any other threat has.

    An image counts in the union only if it was attacked under every threat.

    Raises:
        UserError: If a threat has an attack on fewer images, or none.
    """
    most: dict[str, int | None] = {}
    for threat in threats:
        sizes = [a.examples for a in attack_list if a.threat and a.threat.norm == threat.norm]
        require(sizes, where, f"an attack under {threat.norm}", "none")
        most[threat.norm] = None if None in sizes else max(filter(None, sizes))
    expected = "an attack on the same number of images under every norm"
    require(len(set(most.values())) == 1, where, expected, most)


def _expand(entry: AttackSpec, threat: Threat, where: str) -> list[ListedAttack]:
    """Return the attack of an entry, or all attacks of a suite."""
    if isinstance(entry, ListedAttack):
        return [entry]
    if isinstance(entry, Attack):
        located(where, entry.check, threat)
        return [ListedAttack(entry, entry.title)]
    entry = {"name": entry} if isinstance(entry, str) else entry
    require(isinstance(entry, Mapping), where, "a name or a mapping with 'name'", entry)
    settings = {key: value for key, value in entry.items() if key not in COMMON}
    common = {key: convert(f"{where}.{key}", entry.get(key), kind) for key, kind in COMMON.items()}
    label, examples = common["label"], common["examples"]
    require(examples is None or examples >= 1, f"{where}.examples", "int >= 1", examples)
    name = settings.get("name")
    if _is_suite(entry):
        make = resolve(SUITES, settings, where, ("threat",), also=COMMON)
        suite = located(where, make, threat)
        return [_relabel(_limit(listed, examples), label) for listed in suite]
    require("name" in settings, where, "a mapping with 'name'", dict(entry))
    choose(f"{where}.name", name, [*ATTACKS, *SUITES])
    attack = build(ATTACKS, settings, where, also=COMMON)
    located(where, attack.check, threat)
    honest = label is None or not is_autoattack(label)
    require(honest, f"{where}.label", "a label that does not claim AutoAttack", label)
    return [ListedAttack(attack, label or attack.title, examples)]


def _relabel(listed: ListedAttack, label: str | None) -> ListedAttack:
    """Return an attack of a suite under another label for the suite, unless the label is None.

    The attack's name begins with the label, because the names in a list must differ. Every label
    says what the suite is, such as "AA (AutoAttack)" or "quick (upper bound)".
    """
    if label is None:
        return listed
    if listed.suite is None:
        return dataclasses.replace(listed, name=f"{label}: {listed.name}")
    mark = UPPER_BOUND if listed.suite.endswith(UPPER_BOUND) else f" ({listed.suite})"
    suite = listed.suite if label == listed.suite else label.removesuffix(mark) + mark
    name = listed.name.removeprefix(f"{listed.suite}: ")
    return dataclasses.replace(listed, name=f"{suite}: {name}", suite=suite)


def _limit(listed: ListedAttack, examples: int | None) -> ListedAttack:
    """Return the attack, limited to the first `examples` images unless that is None."""
    limits = [limit for limit in (listed.examples, examples) if limit is not None]
    return dataclasses.replace(listed, examples=min(limits, default=None))


def autoattack(threat: Threat, version: str = "standard") -> list[ListedAttack]:
    """Return the attacks of AutoAttack (Croce and Hein, 2020, arXiv:2003.01690), cheapest first.

    The constants are those of its public code, which has five restarts of APGD-CE and five targets
    of APGD-T in L1.

    Args:
        threat: The threat.
        version: "standard"; "plus", with more restarts and the untargeted FAB, which for ten
            classes doubles the passes and for more classes costs more; or "rand", for networks with
            random outputs, with gradients averaged over 20 draws.
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
        "rand": [EOT(APGD(), 20), EOT(APGD(loss="dlr"), 20)],
    }
    choose("version", version, versions)
    suite = AUTOATTACK if version == "standard" else f"{AUTOATTACK} {version}"
    return [
        ListedAttack(attack, f"{suite}: {attack.title}", suite=suite)
        for attack in versions[version]
    ]


def fast(threat: Threat) -> list[ListedAttack]:
    """Return a short AutoAttack for work in progress; its accuracy is an upper bound.

    It is AutoAttack without the passes that seldom break an image: three short ascents by the
    margin, then a short one towards each of nine classes, the smallest margin at the clean image
    first (Gowal et al., 2019, arXiv:1910.09338); no FAB; and a tenth of Square's queries, which
    are there for networks with useless gradients. docs/attacks.md compares the two.

    Args:
        threat: The threat.
    """
    suite = f"Fast{UPPER_BOUND}"
    attacks: list[Attack] = [
        APGD(steps=20),
        APGD(loss="margin", steps=50, restarts=3),
        APGD(loss="targeted_dlr", steps=30),
        Square(queries=500),
    ]
    return [ListedAttack(attack, f"{suite}: {attack.title}", suite=suite) for attack in attacks]


def paper(threat: Threat, budget: str = "small") -> list[ListedAttack]:
    """Return the attacks in the tables of the ATLAS paper, with AutoAttack and RayS also on MNIST.

    The step size at eps 0.3 is the paper's 0.01; at any other eps it is in proportion to the
    paper's 0.007 at 8/255. For Un-T and Multi-T the paper gives none, so they use the same.

    Args:
        threat: The threat.
        budget: "paper" attacks all images, and runs RayS with 40,000 queries on 1,000 of them;
            "small" attacks fewer images, as many as two CPU cores can handle.
    """
    choose("budget", budget, ("small", "paper"))
    small = budget == "small"
    step = 0.01 if threat.eps == 0.3 else 0.007 * 255 / 8 * threat.eps

    def pgd(steps: int, name: str, examples: int | None) -> ListedAttack:
        return ListedAttack(PGD(steps=steps, step_size=step), name, examples if small else None)

    def multi_targeted(restarts: int, steps: int, examples: int) -> ListedAttack:
        attack = MultiTargeted(steps=steps, restarts=restarts, step_size=step)
        return ListedAttack(attack, f"Multi-T {restarts}x{steps}", examples if small else None)

    untargeted = PGD(steps=50, restarts=20, step_size=step, loss="margin", success="any")
    attack_list = [
        pgd(20, "PGD-20", None),
        pgd(1000, "PGD-1000", 1000),
        ListedAttack(untargeted, "Un-T 20x50", 1000 if small else None),
        multi_targeted(5, 20, 1000),
    ]
    attack_list += [_limit(listed, 1000 if small else None) for listed in autoattack(threat)]
    attack_list.append(multi_targeted(20, 50, 200))  # a cascade has the most images first
    if threat.norm == "linf":
        rays = RayS(queries=10_000 if small else 40_000)
        attack_list.append(ListedAttack(rays, "RayS", 100 if small else 1000))
    return attack_list


SUITES: dict[str, Callable[..., list[ListedAttack]]] = {
    "autoattack": autoattack,
    "fast": fast,
    "paper": paper,
}
