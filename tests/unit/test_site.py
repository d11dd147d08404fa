"""The site of the documents: its navigation is complete, and no page loads files of other sites."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tfrobust.attacks import ATTACKS
from tfrobust.methods import METHODS
from tfrobust.models import MODELS

ROOT = Path(__file__).parents[2]
# Tags and CSS that make a browser load a file from another site.
LOADS = re.compile(
    r"<(?:script|img|iframe|source|link(?! rel=\"?canonical))\b[^>]*\b(?:src|href)=[\"']?"
    r"(?:https?:)?//[^\"' >]+|url\([\"']?(?:https?:)?//[^)]+\)|@import [^;]+"
)


def load_hook() -> Any:
    """Return the module of tools/mkdocs_pages.py."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "tools" / "mkdocs_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hook = load_hook()


def pages_of(nav: Any) -> Iterator[str]:
    """Yield the paths in the navigation, depth first."""
    if isinstance(nav, str):
        yield nav
        return
    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from pages_of(entry)


def test_the_navigation_names_every_page_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    pages -= set(config["exclude_docs"].split())
    pages |= set(hook.PAGES.values())
    assert sorted(pages_of(config["nav"])) == sorted(pages)


@pytest.mark.parametrize(
    ("target", "at_root", "expected"),
    [
        ("docs/data.md#extra-data", True, "[text](data.md#extra-data)"),
        ("CONTRIBUTING.md", True, "[text](contributing.md)"),
        ("LICENSE", True, "text"),
        ("data.md", False, "[text](data.md)"),
        ("images/a.png", False, "[text](images/a.png)"),
        ("../CONTRIBUTING.md#tests", False, "[text](contributing.md#tests)"),
        ("../configs/digits_atlas.yaml", False, "text"),
    ],
)
def test_links_stay_in_the_site(target: str, at_root: bool, expected: str) -> None:
    assert hook.link("text", target, at_root) == expected


@pytest.mark.parametrize(
    ("html", "loads"),
    [
        ('<script src="https://example.org/a.js">', True),
        ("<link rel=stylesheet href=//example.org/a.css>", True),
        ("src: url(https://example.org/a.woff)", True),
        ('<a href="https://example.org">', False),
        ('<script src="../assets/a.js">', False),
    ],
)
def test_the_pattern_matches_loads_from_other_sites_alone(html: str, loads: bool) -> None:
    assert bool(LOADS.search(html)) is loads


def test_the_site_builds_and_loads_nothing_from_other_sites(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="needs pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".html", ".css")]
    loads = [match[0] for path in files for match in LOADS.finditer(path.read_text("utf-8"))]
    assert files and not loads
    for place, registry in (("attacks", ATTACKS), ("methods", METHODS), ("models", MODELS)):
        page = (tmp_path / "reference" / place / "index.html").read_text(encoding="utf-8")
        for entry in registry.values():
            assert f'id="tfrobust.{place}.{entry.__name__}"' in page
