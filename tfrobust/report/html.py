"""Self-contained HTML pages, with their figures as SVG and their tables as CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from tfrobust.io import write_text
from tfrobust.report.text import latex_escape, markdown_escape, markdown_table

FILES = "<!-- Beside this page:"  # begins the list of files at the end of a page
INK = "#010203"  # stands for the page's text colour, which suits light and dark pages
BLACK = "#1b1f24"  # takes its place in the file of a figure


@dataclass(frozen=True)
class ReportTable:
    """A table of text.

    Attributes:
        header: The names of the columns.
        rows: The rows, each with as many cells as the header.
        bold: The places (row, column) of the cells in bold type.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[tuple[int, int]] = frozenset()

    def csv(self) -> str:
        """Return the table as comma-separated values, each cell in one line."""
        buffer = io.StringIO()
        lines = [[" ".join(cell.split()) for cell in row] for row in [self.header, *self.rows]]
        csv.writer(buffer, lineterminator="\n").writerows(lines)
        return buffer.getvalue()

    def latex(self) -> str:
        """Return the table as a LaTeX tabular with the rules of the package booktabs."""
        rows = [[latex_escape(cell) for cell in row] for row in [self.header, *self.rows]]
        for row, column in self.bold:
            rows[1 + row][column] = rf"\textbf{{{rows[1 + row][column]}}}"
        for cells in rows:
            if cells[0].startswith(("[", "*")):  # which LaTeX would take for an option of the line
                cells[0] = "{}" + cells[0]
        head, *body = (" & ".join(row) + r" \\" for row in rows)
        columns = "l" * len(self.header)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def write_page(
    folder: Path,
    template: str,
    values: Mapping[str, Any],
    figures: Mapping[str, Figure],
    tables: Mapping[str, ReportTable],
) -> Path:
    """Write index.html, figures/ and tables/, and report.md if there is a template for it.

    The same input gives the same bytes. Figures and tables of a former page are removed: their
    numbers would stand beside those of this page. Other files in the folder stay.

    Args:
        folder: The folder of the page.
        template: The name of NAME.html in `templates/`, and of NAME.md if it exists. Both get the
            tables; NAME.html also gets the figures as SVG elements.
        values: Further variables of the templates.
        figures: Name -> figure.
        tables: Name -> table.

    Returns:
        The path of the page.
    """
    environment, page = templates(), folder / "index.html"
    drawn = {name: svg(figure) for name, figure in figures.items()}
    files = {f"figures/{name}.svg": text.replace(INK, BLACK) for name, text in drawn.items()}
    files |= {f"tables/{name}.csv": table.csv() for name, table in tables.items()}
    files |= {f"tables/{name}.tex": table.latex() for name, table in tables.items()}
    for name in _files_beside(page) - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)
    # Safe as markup: matplotlib has escaped the text of figures.
    elements = {name: Markup(inline(text, name)) for name, text in drawn.items()}
    values = {**values, "tables": tables}
    if f"{template}.md" in environment.list_templates():
        write_text(folder / "report.md", environment.get_template(f"{template}.md").render(values))
    html = environment.get_template(f"{template}.html").render({**values, "figures": elements})
    write_text(page, "\n".join([html, FILES, *files, "-->\n"]))
    return page


def _files_beside(page: Path) -> set[str]:
    """Return the files that were written beside a page, as its last lines name them."""
    if not page.is_file():
        return set()
    _, _, names = page.read_text(encoding="utf-8").partition(f"\n{FILES}\n")
    return {name for name in names.splitlines() if re.fullmatch(r"(figures|tables)/[^/]+", name)}


def templates() -> Environment:
    """Return the templates of pages. They escape HTML, and Markdown by the filter `md`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=markdown_escape)
    environment.globals.update(markdown_table=markdown_table)
    return environment


def svg(figure: Figure) -> str:
    """Return the figure as the text of an SVG file."""
    buffer = io.StringIO()
    # A fixed salt, and no date, give the same figure the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "tfrobust", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)


def inline(text: str, prefix: str) -> str:
    """Return the SVG file `text` as an element of a page, drawn in the page's text colour.

    The ids within begin with `prefix`, as the figures of a page share one name space.
    """
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text[text.index("<svg") :])
    return element.replace(INK, "currentColor")
