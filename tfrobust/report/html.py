"""One self-contained HTML page; beside it each figure as SVG and each table as CSV and LaTeX."""

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

INK = "#010203"  # stands for the page's text colour, so that one figure suits light and dark
BLACK = "#1b1f24"  # that of a figure on its own


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells, each the text that people read. bold: (row, column) of
    the cells that stand out."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[tuple[int, int]] = frozenset()

    def csv(self) -> str:
        """The table as comma-separated values, each cell in one line."""
        buffer = io.StringIO()
        lines = [[" ".join(cell.split()) for cell in row] for row in [self.header, *self.rows]]
        csv.writer(buffer, lineterminator="\n").writerows(lines)
        return buffer.getvalue()

    def latex(self) -> str:
        """The table as a LaTeX tabular with the rules of the package booktabs."""
        cells = [
            [
                rf"\textbf{{{latex_escape(cell)}}}" if (y, x) in self.bold else latex_escape(cell)
                for x, cell in enumerate(row)
            ]
            for y, row in enumerate(self.rows)
        ]
        rows = [list(map(latex_escape, self.header)), *cells]
        head, *body = (" & ".join(row) + r" \\" for row in rows)
        columns = "l" * len(self.header)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def write_page(
    folder: Path,
    template: str,
    values: Mapping[str, Any],
    figures: Mapping[str, Figure],
    tables: Mapping[str, Table],
) -> Path:
    """Writes `folder`/index.html, report.md where the template has one, figures/ and tables/.

    template: the name in `templates/`, of which NAME.html sees the figures as inline SVG and both
    see the tables. Returns the path of the page. The same input gives the same bytes.
    """
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
    for name, figure in figures.items():
        write_text(folder / "figures" / f"{name}.svg", svg(figure).replace(INK, BLACK))
    for name, table in tables.items():
        write_text(folder / "tables" / f"{name}.csv", table.csv())
        write_text(folder / "tables" / f"{name}.tex", table.latex())
    # Figures hold no text but ours, which matplotlib has escaped.
    drawn = {name: Markup(inline(figure, name)) for name, figure in figures.items()}
    values = {**values, "tables": tables}
    if f"{template}.md" in environment.list_templates():
        write_text(folder / "report.md", environment.get_template(f"{template}.md").render(values))
    html = environment.get_template(f"{template}.html").render({**values, "figures": drawn})
    write_text(folder / "index.html", html)
    return folder / "index.html"


def svg(figure: Figure) -> str:
    """The figure as an SVG file's text, the same bytes each time."""
    buffer = io.StringIO()
    # A fixed salt and no date.
    with matplotlib.rc_context({"svg.hashsalt": "tfrobust", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)


def inline(figure: Figure, prefix: str) -> str:
    """The figure as a part of a page, in its text colour. Several share the page, so their ids
    begin with different names."""
    text = svg(figure)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text[text.index("<svg") :])
    return text.replace(INK, "currentColor")
