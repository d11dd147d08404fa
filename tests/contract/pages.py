"""The file that a page on adding a method or an attack tells its reader to write."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tfrobust.registry import by_file

DOCS = Path(__file__).resolve().parents[2] / "docs"


@contextlib.contextmanager
def added(page: str, folder: Path, kind: type, registry: dict[str, Any]) -> Iterator[str]:
    """Write the file that a page shows, register it as the page's line does, and yield its name.

    Args:
        page: The name of the page.
        folder: An empty folder, which gets a package that is not named `tfrobust`.
        kind: The base class of the method or attack.
        registry: The registry that has the new entry while the context lasts.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)[0]
    line = re.search(r"^ *from tfrobust\.(\w+)\.(\w+) import (\w+) as \3$", text, re.M)
    assert line is not None
    place, file, name = line.groups()
    package = folder / f"other_{place}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / f"{file}.py").write_text(code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        module = importlib.import_module(f"{package.name}.{file}")
        assert by_file(kind, vars(module)) == {file: getattr(module, name)}
        patch.setitem(registry, file, getattr(module, name))
        yield file
