"""What our commands share: flags, mistakes told in one line, tables in the terminal."""

from __future__ import annotations

import sys
from typing import NoReturn

from absl import flags
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from tfrobust.report import Table

WIDTH = 200  # of a table that goes into a file


def parse_flags(argv: list[str]) -> list[str]:
    """absl's flags, with one line and exit code 2 for a mistake."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(str(error).replace("\n", " "))


def fail(line: str, status: int = 2) -> NoReturn:
    """Print the error's line and exit."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)


def show(table: Table) -> None:
    """Prints a table."""
    grid = Grid()
    for x, title in enumerate(table.header):
        grid.add_column(title, no_wrap=x == 0)
    for y, row in enumerate(table.rows):
        cells = (Text(cell, "bold" if (y, x) in table.bold else "") for x, cell in enumerate(row))
        grid.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(grid)
