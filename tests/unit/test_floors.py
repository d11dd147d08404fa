"""Imports only go down: every module or package has a floor, and imports itself or lower floors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLOORS = {
    "tfrobust.attack_settings": 0,
    "tfrobust.backend": 0,
    "tfrobust.keras_import": 1,
    "tfrobust.corruptions": 0,
    "tfrobust.errors": -1,
    "tfrobust.flags": 1,
    "tfrobust.hub": 0,
    "tfrobust.io": -2,
    "tfrobust.jacobian": 2,
    "tfrobust.losses": 0,
    "tfrobust.noise": 0,
    "tfrobust.norms": 0,
    "tfrobust.overfitting": 0,
    "tfrobust.provenance": 0,
    "tfrobust.record": 1,
    "tfrobust.registry": 0,
    "tfrobust.serialization": 0,
    "tfrobust.tf32": 0,
    "tfrobust.xla": 0,
    "tfrobust._compat": 1,
    "tfrobust.threat": 1,
    "tfrobust.gate": 2,
    "tfrobust.data": 3,
    "tfrobust.distribution": 3,
    "tfrobust.models": 3,
    "tfrobust.attacks": 4,
    "tfrobust.zoo": 4,
    "tfrobust.methods": 5,
    "tfrobust.evaluation": 6,
    "tfrobust.training": 6,
    "tfrobust.exporting": 7,
    "tfrobust.report": 7,
    "tfrobust": 8,  # __init__.py imports every floor, and no floor below imports it
    "pipelines": 9,
}

# Importer -> what neither it nor a module inside it imports.
FORBIDDEN = {
    "tfrobust": ("pipelines", "tools", "omegaconf", "absl.flags"),
    "tfrobust.report": ("tensorflow", "keras"),
    "tfrobust.errors": ("tensorflow", "keras"),
    "tfrobust.registry": ("tensorflow", "keras"),
    # Only the report reads YAML, the config.yaml of a run.
    **{place: ("yaml",) for place in FLOORS if FLOORS[place] < FLOORS["tfrobust.report"]},
    "pipelines": ("tools",),
}

VERSION = "tfrobust.__version__"  # the one name of tfrobust/__init__.py that every floor may import


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name of the module in a file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def inside(name: str, place: str) -> bool:
    """Return whether a dotted name is that of a place or of something in it."""
    return name == place or name.startswith(place + ".")


def place_of(name: str) -> str | None:
    """Return the entry of FLOORS that contains a module or a name in it; None if there is none."""
    parts = name.split(".")
    place = ".".join(parts[:2]) if parts[0] == "tfrobust" else parts[0]
    return place if place in FLOORS else None


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import of a file, also of those inside functions."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*start, *((node.module,) if node.module else ())))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def problem(source: str, target: str, root: Path) -> str | None:
    """Return why a module may not import a name; None if it may."""
    for importer, banned in FORBIDDEN.items():
        if inside(source, importer) and any(inside(target, name) for name in banned):
            return f"{importer} never imports {target}"
    if target.split(".")[0] not in ("tfrobust", "pipelines") or target == VERSION:
        return None
    importer, imported = place_of(source), place_of(target)
    if imported is None and target.startswith("tfrobust."):
        # The target is a name in tfrobust/__init__.py, or a module without a floor.
        stem = root / "tfrobust" / target.split(".")[1]
        imported = None if stem.is_dir() or stem.with_suffix(".py").is_file() else "tfrobust"
    if importer is None or imported is None:
        return None  # `problems` reports a module without a floor once
    if importer == imported or FLOORS[imported] < FLOORS[importer]:
        return None
    return f"{importer} (floor {FLOORS[importer]}) imports {target} (floor {FLOORS[imported]})"


def problems(root: Path) -> list[str]:
    """Return every broken rule under root, each as `file:line: reason`."""
    reasons = []
    for path in sorted([*root.glob("tfrobust/**/*.py"), *root.glob("pipelines/**/*.py")]):
        source, file = module_name(path, root), path.relative_to(root).as_posix()
        if place_of(source) is None:
            reasons.append(f"{file}:1: no floor: give {source} one in FLOORS")
        for line, target in imports(path, root):
            if reason := problem(source, target, root):
                reasons.append(f"{file}:{line}: {reason}")
    return reasons


def test_imports_only_go_down() -> None:
    assert list(ROOT.glob("tfrobust/**/*.py")), "no module of tfrobust found"
    assert not problems(ROOT), "\n".join(problems(ROOT))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a small tree in which every import is allowed."""
    files = {
        "tfrobust/__init__.py": "from tfrobust.threat import Threat\n__version__ = '0'\n",
        "tfrobust/norms.py": "import tensorflow as tf\n",
        "tfrobust/threat.py": "from tfrobust import __version__, norms\nfrom .norms import norm\n",
        "tfrobust/attacks/__init__.py": "from tfrobust.attacks.pgd import PGD\n",
        "tfrobust/attacks/pgd.py": "from . import base\nfrom .. import threat\nimport absl\n",
        "tfrobust/attacks/base.py": "",
        "tfrobust/report/table.py": "import jinja2\n",
        "pipelines/run.py": "import yaml\nimport tfrobust\nfrom tfrobust.attacks import PGD\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_allowed_imports_are_not_reported(tree: Path) -> None:
    assert problems(tree) == []


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("tfrobust/norms.py", "import tfrobust.attacks.pgd", "(floor 0) imports"),
        ("tfrobust/norms.py", "from tfrobust.threat import Threat", "(floor 0) imports"),
        ("tfrobust/norms.py", "from tfrobust import threat", "(floor 0) imports"),
        ("tfrobust/norms.py", "from .attacks import PGD", "(floor 0) imports"),
        ("tfrobust/norms.py", "def f():\n    from . import attacks", "(floor 0) imports"),
        (
            "tfrobust/norms.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import threat",
            "tfrobust/norms.py:3: tfrobust.norms (floor 0) imports tfrobust.threat (floor 1)",
        ),
        ("tfrobust/norms.py", "from tfrobust import losses", "imports tfrobust.losses (floor 0)"),
        ("tfrobust/threat.py", "import tfrobust", "imports tfrobust (floor 8)"),
        ("tfrobust/threat.py", "from tfrobust import Threat", "imports tfrobust.Threat (floor 8)"),
        ("tfrobust/attacks/pgd.py", "from ..methods.trades import T", "(floor 4) imports"),
        ("tfrobust/models/net.py", "from tfrobust.data import digits", "(floor 3) imports"),
        ("tfrobust/attacks/pgd.py", "from pipelines import run", "tfrobust never imports"),
        ("tfrobust/__init__.py", "import pipelines.run", "tfrobust never imports"),
        ("tfrobust/io.py", "import yaml", "tfrobust.io never imports yaml"),
        ("tfrobust/io.py", "from omegaconf import OmegaConf", "tfrobust never imports"),
        ("tfrobust/io.py", "from absl import flags", "tfrobust never imports absl.flags"),
        ("tfrobust/io.py", "from tools import check", "tfrobust never imports"),
        ("pipelines/run.py", "import tools.check", "pipelines never imports"),
        ("tfrobust/report/table.py", "import tensorflow as tf", "tfrobust.report never imports"),
        ("tfrobust/report/table.py", "from keras import ops", "tfrobust.report never imports"),
        ("tfrobust/novel.py", "", "tfrobust/novel.py:1: no floor"),
        ("tfrobust/novel/part.py", "", "tfrobust/novel/part.py:1: no floor"),
    ],
)
def test_forbidden_import_is_reported(tree: Path, name: str, text: str, reason: str) -> None:
    for module in ("losses", "models/__init__", "data/__init__"):
        path = tree / f"tfrobust/{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    path = tree / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (problem,) = problems(tree)
    assert reason in problem
