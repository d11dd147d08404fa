"""The numbers and tables of a report."""

import subprocess
import sys

import pytest

from tfrobust.report import ReportTable, interval, markdown_table, number, threat_text


def test_interval_is_that_of_wilson() -> None:
    """With z = 1.959964 its centre is (0.8 + z²/20) / (1 + z²/10) = 0.71674.

    Its half width is z sqrt(0.16/10 + z²/400) / (1 + z²/10) = 0.22658.
    """
    assert interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval(0, 5)[0] == 0 and interval(5, 5)[1] == 1


@pytest.mark.parametrize("successes, total", [(0, 0), (3, 2), (-1, 2)])
def test_interval_refuses_numbers_that_are_not_a_proportion(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match="interval: expected"):
        interval(successes, total)


@pytest.mark.parametrize(
    ("value", "text"),
    [(8 / 255, "8/255 = 0.03137"), (128 / 255, "128/255 = 0.502"), (0.15, "0.15"), (0.2, "0.2"),
     (20, "20"), (True, "True"), ("8/255", "8/255"), (1.0, "1"), (1e308, "1e+308"),
     (float("nan"), "nan")],
)  # fmt: skip
def test_a_number_is_a_fraction_of_255_or_a_short_decimal(value: object, text: str) -> None:
    assert number(value) == text


def test_markdown_of_a_cell_is_escaped() -> None:
    assert markdown_table(["a|b"], [["<b>x\ny_z_"]]) == "| a\\|b |\n| --- |\n| &lt;b&gt;x y_z\\_ |"


def test_the_latex_and_csv_of_a_table_are_escaped() -> None:
    table = ReportTable(["a_b", "c"], [["5 %", "x, y"], ["–", "{&}\\"]])
    assert table.csv() == 'a_b,c\n5 %,"x, y"\n–,{&}\\\n'
    assert table.latex() == (
        "\\begin{tabular}{ll}\n\\toprule\na\\_b & c \\\\\n\\midrule\n5 \\% & x, y \\\\\n"
        "-- & \\{\\&\\}\\textbackslash{} \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    table = ReportTable(["run", "[n]"], [["[old]", "[1]"], ["*", ""]])
    assert "{}[old] & [1] \\\\\n{}* &  \\\\" in table.latex()


def test_the_report_imports_neither_tensorflow_nor_keras() -> None:
    code = "import sys, tfrobust.report; sys.exit(len({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("factors", [{"1": 0.0, "3": 0.5}, [1.0, 0.0, 1.0], [[0.0], [2.0]]])
def test_threat_with_factors_counts_the_features_that_cannot_change(factors: object) -> None:
    expected = "linf, eps 0.1 times a factor of each feature (factors that are 0: 1)"
    assert threat_text([("linf", 0.1, factors)]) == expected
    union = threat_text([("linf", 0.1, None), ("l2", 0.5, factors)])
    assert union.startswith("union of linf, eps 0.1 and l2, eps 0.5 times a factor")
