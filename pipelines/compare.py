"""Compare runs: `python -m pipelines.compare RUN RUN ... [--out DIR]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from pipelines.command import fail, parse_flags, show
from tfrobust.errors import UserError, require
from tfrobust.report import (
    comparison,
    differences,
    measured,
    named,
    write_comparison,
)

_OUT = flags.DEFINE_string("out", None, "A folder for the same as a page, with figures and tables.")


def compare(folders: Sequence[Path], out: Path | None) -> None:
    """Prints the table of runs, and which of their differences are beyond chance."""
    require(len(folders) > 1, "runs", "two run folders or more", [str(f) for f in folders])
    rows = named(folders)
    runs = measured(rows)
    tested = differences(runs)
    show(comparison(runs))
    show(tested)
    print("p: McNemar's exact test on the same images; bold: p < 0.05.")
    if out is not None:
        print(f"Page: {write_comparison(out, 'Comparison', rows, {})}")


def main(argv: list[str]) -> None:
    try:
        compare([Path(run) for run in argv[1:]], None if _OUT.value is None else Path(_OUT.value))
    except UserError as error:
        fail(str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
