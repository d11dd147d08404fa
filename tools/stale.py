"""Find the results whose code has changed since they were measured.

A record names the commits that trained and evaluated its network. Its files define the objects that
its config names (method, attacks, model, data set, augmentations, optimizer and schedule), the
pipeline of batches and the cascade of attacks; all files that these import belong to it too. The
modules in `IGNORED` and the `__init__.py` of packages do not.

A file has changed if a statement of its top level (a function, a class, a constant) at the commit
has since been changed or removed. New statements, imports, docstrings, comments and layout do not
count. Nor does a change of a file by a commit that docs/results/same_numbers.txt lists, because a
reviewer has found that no recorded number depends on it.
"""

import ast
import functools
import inspect
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfrobust.attacks import ATTACKS
from tfrobust.data import AUGMENTATIONS, DATASETS, batches
from tfrobust.evaluation import run
from tfrobust.methods import AVERAGINGS, METHODS
from tfrobust.models import MODELS
from tfrobust.training import OPTIMIZERS, SCHEDULES

ROOT = Path(__file__).resolve().parents[1]
REGISTRIES: tuple[Mapping[str, Any], ...] = (
    *(METHODS, AVERAGINGS, ATTACKS, MODELS, DATASETS, AUGMENTATIONS, OPTIMIZERS, SCHEDULES),
)
# Modules on which no number depends: they check, store or report, or make the recorded settings.
IGNORED = tuple(
    f"tfrobust.{name}"
    for name in (
        *("_compat", "errors", "evaluation.attack_list", "gate", "io"),
        *("provenance", "record", "registry", "report", "serialization"),
    )
)
REVIEWED = Path("docs", "results", "same_numbers.txt")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def strings(value: Any) -> Iterator[str]:
    """Yield the strings in a config, at every depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from strings(list(value.values()))
    elif isinstance(value, list):
        for entry in value:
            yield from strings(entry)


def files_of(summary: Mapping[str, Any]) -> frozenset[str]:
    """Return the files, relative to the root, that compute the numbers of a recorded run."""
    attacks = [attack.config for attack in summary["evaluation"].attacks]
    names = {*strings(summary["config"]), *strings(attacks)}
    used = [registry[name] for registry in REGISTRIES for name in names & registry.keys()]
    modules = {getattr(each, "func", each).__module__ for each in (*used, batches, run)}
    return frozenset(file for module in modules for file in files_from(module))


@functools.cache
def files_from(start: str) -> frozenset[str]:
    """Return the files of a module and of all modules that it imports, without IGNORED ones."""
    seen: set[str] = set()
    pending = [start]
    while pending:
        module = pending.pop()
        if module in seen or not module.startswith("tfrobust.") or module.startswith(IGNORED):
            continue
        if hasattr(sys.modules[module], "__path__"):
            continue
        seen.add(module)
        # An imported object names the module that defines it.
        for value in vars(sys.modules[module]).values():
            name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", "")
            pending.append(name if isinstance(name, str) else "")
    paths = (sys.modules[module].__file__ for module in seen)
    return frozenset(Path(path).relative_to(ROOT).as_posix() for path in paths if path)


def changed_files(summary: Mapping[str, Any]) -> list[str] | None:
    """Return the files of a run that have changed since it was measured.

    None if a commit is not recorded or is not in the git history, as in a shallow clone.
    """
    evaluation = summary["evaluation"]
    changed: set[str] = set()
    for commit in {evaluation.training_commit, evaluation.commit}:
        commit = (commit or "").removesuffix("-dirty")
        if not commit or git("cat-file", "-e", f"{commit}^{{commit}}") is None:
            return None
        changed |= {file for file in files_of(summary) if has_changed(commit, file)}
    return sorted(changed)


@functools.cache
def has_changed(commit: str, file: str) -> bool:
    """Return whether a statement in a file at a commit has since been changed or removed.

    Changes by the commits that are listed as reviewed do not count.
    """
    now = (ROOT / file).read_text(encoding="utf-8")
    if not loses_statements(git("show", f"{commit}:{file}"), now):
        return False
    since = (git("rev-list", f"{commit}..HEAD", "--", file) or "").split()
    return loses_statements(git("show", f"HEAD:{file}"), now) or any(
        loses_statements(git("show", f"{each}^:{file}"), git("show", f"{each}:{file}"))
        for each in since
        if (each, file) not in reviewed()
    )


def loses_statements(before: str | None, after: str | None) -> bool:
    """Return whether a file lacks a statement that it had, or was not there before."""
    if before is None or after is None:
        return True
    return before != after and not statements(before) <= statements(after)


@functools.cache
def reviewed() -> frozenset[tuple[str, str]]:
    """Return the pairs of a commit and a file whose change alters no recorded number."""
    text = (ROOT / REVIEWED).read_text(encoding="utf-8")
    lines = [line.split(maxsplit=2) for line in text.splitlines() if not line.startswith("#")]
    return frozenset((commit, file) for commit, file, _ in lines)


def statements(source: str) -> frozenset[str]:
    """Return the statements at the top level of a module, without imports and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            del node.body[0]
    imports = (ast.Import, ast.ImportFrom)
    return frozenset(ast.dump(node) for node in tree.body if not isinstance(node, imports))


@functools.cache
def git(*words: str) -> str | None:
    """Return what a git command prints; None if it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def sentence(files: Iterable[str], shown: int = 3) -> str:
    """Return the names of the first files, and the number of the others."""
    names = list(files)
    others = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + others
