"""Tables of a comparison of runs, printed in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from tfrobust.report import (
    ReportTable,
    comparison,
    differences,
    read_runs,
    require_own,
    rows_of,
    unfinished,
    write_comparison,
)

TITLE = "Comparison"
WIDTH = 10_000  # columns of a table that goes into a file, which is as wide as it needs to be


def compare(folders: Sequence[Path], out: Path | None) -> None:
    """Print a table of runs, and a table of which differences between them are beyond chance.

    Args:
        folders: Two run folders or more.
        out: A folder for a page with the same tables and with figures; None for no page.

    Raises:
        UserError: For a folder without an evaluation, or if `out` is itself the folder of a run.
    """
    if out is not None:
        require_own(out, TITLE, "--out")
    rows = rows_of(folders)
    runs = read_runs(rows)
    tested = differences(runs)
    show(comparison(runs))
    show(tested)
    for line in unfinished(runs):
        print(line)
    print("p: McNemar's exact test on the same images; bold: p < 0.05.")
    if out is not None:
        print(f"Page: {write_comparison(out, TITLE, rows, {})}")


def show(table: ReportTable) -> None:
    """Print a table in the terminal, its bold cells in bold.

    In a narrow terminal a number goes on in the next line: cut off, it would be another number.
    """
    grid = Grid()
    for column, title in enumerate(table.header):
        first = column == 0
        overflow: Any = "ellipsis" if first else "fold"
        grid.add_column(Text(title), no_wrap=first, overflow=overflow)  # markup in it is text
    for y, row in enumerate(table.rows):
        styles = ["bold" if (y, x) in table.bold else "" for x in range(len(row))]
        grid.add_row(*(Text(cell, style) for cell, style in zip(row, styles, strict=True)))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(grid)
