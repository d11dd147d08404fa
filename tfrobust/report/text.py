"""Numbers as texts for readers, and texts and tables in Markdown and LaTeX."""

import functools
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

NOTHING = "–"


@functools.cache
def interval(successes: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson, 1927), (low, high) as fractions.

    interval(8, 10) is (0.4902, 0.9433). Raises ValueError unless 0 <= successes <= total and
    total >= 1.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(
            f"interval: expected 0 <= successes <= total and total >= 1, "
            f"received successes={successes}, total={total}"
        )
    bounds = binomtest(successes, total).proportion_ci(confidence_level=0.95, method="wilson")
    return float(bounds.low), float(bounds.high)


def percent(fraction: float | None) -> str:
    """Return a fraction in percent: 0.853 -> '85.3 %'."""
    return NOTHING if fraction is None else f"{100 * fraction:.1f} %"


def between(low: float, high: float) -> str:
    """Return an interval of fractions in percent: '82.0 to 89.4'."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def points(difference: float | None) -> str:
    """Return a difference of two fractions in percentage points: 0.012 -> '+1.2'."""
    return NOTHING if difference is None else f"{100 * difference:+.1f}"


def p_value(p: float) -> str:
    """Return a p-value with its sign: '= 0.031', '< 0.001'."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def number(value: Any) -> str:
    """Return a short text for a setting; a multiple of 1/255 is '8/255 = 0.03137'.

    A short decimal such as 0.2 has no fraction, although it equals 51/255.
    """
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.4g}"
    steps = round(value * 255) if 0 < value < 1 else 0  # a huge value has no such number
    is_multiple = 0 < steps < 255 and abs(value * 255 - steps) < 1e-4
    is_short = abs(float(short) - value) <= 1e-9
    return f"{steps}/255 = {short}" if is_multiple and not is_short else short


def duration(seconds: float | None) -> str:
    """Return a time in a unit that suits it: '3.1 s', '4 min 05 s', '2 h 07 min'."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def milliseconds(seconds: float | None) -> str:
    """Return a time in milliseconds: 0.0421 -> '42.1 ms'."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    return f"{1000 * seconds:.1f} ms"


def markdown_escape(text: Any) -> str:
    """Return the text in one line, escaped for a cell of a Markdown table."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    # In Markdown an underscore means emphasis only at the edge of a word, not in digits_atlas.
    return re.sub(r"([\\`*|\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", line)


LATEX = {
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    NOTHING: "--",
}


def latex_escape(text: Any) -> str:
    """Return the text in one line, with LaTeX's special characters escaped."""
    return "".join(LATEX.get(sign, sign) for sign in " ".join(str(text).split()))


def markdown_table(header: Sequence[Any], rows: Sequence[Sequence[Any]], lines: str = " ") -> str:
    """Return a Markdown table with all cells escaped; `lines` takes the place of line breaks."""

    def line(row: Sequence[Any]) -> str:
        cells = (lines.join(map(markdown_escape, str(cell).split("\n"))) for cell in row)
        return f"| {' | '.join(cells)} |"

    return "\n".join(map(line, [header, ["---"] * len(header), *rows]))


def threat_text(threats: Iterable[tuple[str, Any, Any]]) -> str:
    """Return threats as text: "linf, eps 0.03", or the union of several threats.

    Args:
        threats: The norm, the eps and the factors of features of each, as `Record.balls`.
    """
    texts = [f"{norm}, eps {number(eps)}{factors_text(factors)}" for norm, eps, factors in threats]
    return texts[0] if len(texts) == 1 else f"union of {' and '.join(texts)}"


def factors_text(per_feature: Any) -> str:
    """Return what the factors of a threat's features say, or an empty string without any."""
    if per_feature is None:
        return ""
    values = per_feature.values() if isinstance(per_feature, Mapping) else per_feature
    frozen = int((np.array(list(values), float) == 0).sum())
    return f" times a factor of each feature (factors that are 0: {frozen})"
