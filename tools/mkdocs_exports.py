"""Griffe extension for the API reference: `from a import X as X` makes X public."""

import ast
from typing import Any

import griffe


class Exports(griffe.Extension):
    """Marks the names that a module imports as themselves as public."""

    def on_alias_instance(self, *, alias: griffe.Alias, node: Any, **_: Any) -> None:
        names = node.names if isinstance(node, ast.ImportFrom) else []
        if any(name.name == name.asname == alias.name for name in names):
            alias.public = True
