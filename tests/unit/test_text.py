"""Numbers and tables for readers."""

import subprocess
import sys

import pytest

from tfrobust.report import ReportTable, interval, markdown_table, number


def test_interval_is_wilson() -> None:
    # By hand, z = 1.959964: centre (0.8 + z²/20) / (1 + z²/10) = 0.71674,
    # half width z sqrt(0.16/10 + z²/400) / (1 + z²/10) = 0.22658.
    assert interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval(0, 5)[0] == 0 and interval(5, 5)[1] == 1


@pytest.mark.parametrize("successes, total", [(0, 0), (3, 2), (-1, 2)])
def test_interval_refuses_what_is_no_proportion(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match="interval: expected"):
        interval(successes, total)


def test_numbers_show_fractions_of_255_but_leave_short_decimals() -> None:
    assert number(8 / 255) == "8/255 = 0.03137"
    assert number(128 / 255) == "128/255 = 0.502"
    assert [number(v) for v in (0.15, 0.2, 20, True, "8/255", 1.0)] == [
        "0.15",
        "0.2",
        "20",
        "True",
        "8/255",
        "1",
    ]


def test_markdown_cells_cannot_leave_their_cell() -> None:
    assert markdown_table(["a|b"], [["<b>x\ny_z_"]]) == "| a\\|b |\n| --- |\n| &lt;b&gt;x y_z\\_ |"


def test_a_table_in_latex_and_csv() -> None:
    table = ReportTable(["a_b", "c"], [["5 %", "x, y"], ["–", "{&}\\"]])
    assert table.csv() == 'a_b,c\n5 %,"x, y"\n–,{&}\\\n'
    assert table.latex() == (
        "\\begin{tabular}{ll}\n\\toprule\na\\_b & c \\\\\n\\midrule\n5 \\% & x, y \\\\\n"
        "-- & \\{\\&\\}\\textbackslash{} \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


def test_a_report_needs_neither_tensorflow_nor_keras() -> None:
    code = "import sys, tfrobust.report; sys.exit(len({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
