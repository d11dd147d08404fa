"""The page of a search: accuracy over each searched key, the trade-off, the trials.

The figures are those of the ATLAS paper's appendix F (Figures 12 to 17), on validation data.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.interpolate import NearestNDInterpolator

from tfrobust.errors import UserError
from tfrobust.report.figures import COLOURS, plain_axes
from tfrobust.report.html import INK, ReportTable, write_page
from tfrobust.report.text import NOTHING, number, percent, threat_text
from tfrobust.report.trials import SearchTrial, best_trial, completed, read_trials, unbeaten

CELLS = 120  # of a heat map, in each direction
MAPPED = 3  # keys, the first ones, that have heat maps
WHERE_MEASURED = (
    "All accuracies are on {} validation images, at the epoch whose weights a trial keeps. No "
    "trial has seen the test split. The best of many trials owes something to luck: expect less of "
    "it on other images."
)
MEASURED_BY = (
    "threat", "train.eps", "train.validation_attack", "data.name", "data.validation", "seed",
)  # fmt: skip


def write_search_report(run: Path) -> Path:
    """Write the report of a search: `report/index.html`, `report/report.md`, figures and tables.

    Args:
        run: The folder with config.yaml and search/trials.csv.

    Returns:
        The path of the page.

    Raises:
        UserError: One of the files is missing or damaged. The line names the file.
    """
    config = _config(Path(run) / "config.yaml")
    keys, trials = read_trials(Path(run) / "search" / "trials.csv")
    search = config["search"]
    logarithmic = {key for key in keys if "log" in search["space"].get(key, {})}
    top, drawn = best_trial(trials, search.get("min_clean")), completed(trials)
    figures: dict[str, Figure] = {}
    if drawn:
        for key in keys:
            figures[f"over-{key}"] = over(key, drawn, top, key in logarithmic, len(keys) == 1)
        for pair in combinations(keys[:MAPPED], 2):
            figures[f"map-{pair[0]}-{pair[1]}"] = heat_map(pair, drawn, top, logarithmic)
        figures["front"] = front(drawn, top, search.get("min_clean"))
    values = {
        "name": config["name"],
        "headline": _headline(trials, top, search, config),
        "note": config.get("note"),
        "over": [(key, f"over-{key}") for key in keys if drawn],
        "maps": [name for name in figures if name.startswith("map-")],
        "others": len(keys) > 2,
        "best": None if top is None else top.name,
        "measured": _measured(keys),
        "where_measured": WHERE_MEASURED.format(config["data"].get("validation")),
        "details": yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip(),
    }
    tables = {"trials": _table(keys, trials, top)}
    return write_page(Path(run) / "report", "search", values, figures, tables)


def over(
    key: str, trials: Sequence[SearchTrial], top: SearchTrial | None, log: bool, alone: bool
) -> Figure:
    """Draw clean and robust accuracy over the values of a key, with a ring around the best trial.

    Args:
        key: The searched key.
        trials: The completed trials.
        top: The best trial.
        log: Whether the axis of the key is logarithmic.
        alone: Whether it is the only searched key, so that lines may join the trials.
    """
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes = figure.add_subplot()
    places, names = _places(key, trials)
    order = np.argsort(places, kind="stable")
    for colour, name in zip(COLOURS, ("clean", "robust"), strict=False):
        heights = np.array([getattr(trial, name) for trial in trials])
        line = "-" if alone and names is None else ""
        axes.plot(
            places[order], heights[order], marker="o", ms=5, ls=line, lw=1.2, color=colour,
            label=name,
        )  # fmt: skip
        if top is not None:
            at = trials.index(top)
            axes.plot(places[at], heights[at], "o", ms=10, mfc="none", mec=INK, mew=1.2)
    _scale(axes, "x", key, names, log)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def heat_map(
    pair: tuple[str, str],
    trials: Sequence[SearchTrial],
    top: SearchTrial | None,
    logarithmic: set[str],
) -> Figure:
    """Draw clean and robust accuracy over two keys, each point coloured by its nearest trial."""
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    grids, spots, labels = [], [], []
    for key in pair:
        places, names = _places(key, trials)
        logs = key in logarithmic
        along = np.log(places) if logs else places
        margin = 0.05 * np.ptp(along) or 0.5
        grid = np.linspace(along.min() - margin, along.max() + margin, CELLS)
        grids.append((grid, np.exp(grid) if logs else grid))
        spots.append((along, places))
        labels.append(names)
    points = np.stack([along for along, _ in spots], axis=1)
    for axes, name in zip(figure.subplots(1, 2), ("clean", "robust"), strict=True):
        heights = np.array([getattr(trial, name) for trial in trials])
        nearest = NearestNDInterpolator(points, heights, rescale=True)
        cells = nearest(*np.meshgrid(grids[0][0], grids[1][0]))
        drawn = axes.pcolormesh(grids[0][1], grids[1][1], cells, rasterized=True, shading="nearest")
        axes.plot(spots[0][1], spots[1][1], "o", ms=4, mfc="white", mec="black", mew=0.8, ls="")
        if top is not None:
            at = trials.index(top)
            axes.plot(spots[0][1][at], spots[1][1][at], "*", ms=13, mfc="white", mec="black")
        for way, key, names in zip("xy", pair, labels, strict=True):
            _scale(axes, way, key, names, key in logarithmic)
        plain_axes(axes)
        axes.grid(visible=False)
        axes.set_title(f"{name} accuracy", color=INK, fontsize=10)
        bar = figure.colorbar(drawn, ax=axes, format=PercentFormatter(xmax=1))
        bar.ax.tick_params(colors=INK, labelsize=9)
        bar.outline.set_visible(False)
    return figure


def front(
    trials: Sequence[SearchTrial], top: SearchTrial | None, min_clean: float | None
) -> Figure:
    """Draw robust against clean accuracy, a point for each trial, with the Pareto front."""
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    clean, robust = ([getattr(trial, name) for trial in trials] for name in ("clean", "robust"))
    axes.plot(clean, robust, "o", ms=5, color=COLOURS[0], alpha=0.6, label="trial")
    joined = unbeaten(trials)
    axes.plot(
        [trial.clean for trial in joined],
        [trial.robust for trial in joined],
        marker="o", ms=5, lw=1.4, color=COLOURS[1], label="Pareto front",
    )  # fmt: skip
    if top is not None:
        axes.plot(
            top.clean, top.robust, "o", ms=10, mfc="none", mec=INK, mew=1.2, ls="", label="best"
        )
    for trial in joined:
        place = (trial.clean, trial.robust)
        axes.annotate(trial.name, place, (5, 5), textcoords="offset points", color=INK, fontsize=8)
    if min_clean is not None:
        axes.axvline(min_clean, color=INK, lw=1, ls="--", alpha=0.55, label="least clean")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1))
        axis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("clean accuracy", color=INK)
    axes.set_ylabel("robust accuracy", color=INK)
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _places(key: str, trials: Sequence[SearchTrial]) -> tuple[np.ndarray, list[str] | None]:
    """Return each trial's position on the axis of a key, and the names of the positions.

    Numbers are their own positions, without names. Other values get the positions 0, 1, ...
    """
    values = [trial.values[key] for trial in trials]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return np.array(values, float), None
    texts = [_short(value) for value in values]
    names = sorted(set(texts))
    return np.array([names.index(text) for text in texts], float), names


def _scale(axes: Any, way: str, key: str, names: list[str] | None, log: bool) -> None:
    """Prepare an axis, x or y, for the values of a key."""
    if log and names is None:
        axes.set(**{f"{way}scale": "log"})
    axis = getattr(axes, f"{way}axis")
    axis.set_label_text(key, color=INK)
    if names is not None:
        axis.set_ticks(range(len(names)), [name[:18] for name in names])


def _short(value: Any) -> str:
    """Return a value in short: a number, a name, or 'key value, key value' of a mapping."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    return number(value)


def _headline(
    trials: Sequence[SearchTrial],
    top: SearchTrial | None,
    search: Mapping[str, Any],
    config: Mapping[str, Any],
) -> str:
    training_eps = (config.get("train") or {}).get("eps")
    threats = config["threat"] if isinstance(config["threat"], list) else [config["threat"]]
    radii = [(t["norm"], t["eps"] if training_eps is None else training_eps) for t in threats]
    total, failed = len(trials), sum(trial.status == "failed" for trial in trials)
    tuner = str(search.get("tuner", "random")).capitalize()
    text = f"{tuner} search, {total} trial{'s' if total > 1 else ''}"
    text += f", {failed} of them failed" if failed else ""
    min_clean = search.get("min_clean")
    bound = "" if min_clean is None else f" of at least {percent(float(min_clean))} clean"
    if top is None:
        return f"{text}: none{bound} that is complete"
    return (
        f"{text}: the best{bound} has {percent(top.robust)} robust and {percent(top.clean)} clean "
        f"validation accuracy ({threat_text(radii)}) at "
        f"{_short(top.values)}"
    )


def _measured(keys: Sequence[str]) -> str:
    """Return the searched keys that change what the accuracies mean."""
    return ", ".join(k for k in keys if any(f"{k}.".startswith(f"{m}.") for m in MEASURED_BY))


def _table(
    keys: Sequence[str], trials: Sequence[SearchTrial], top: SearchTrial | None
) -> ReportTable:
    joined = unbeaten(trials)
    rows = []
    for trial in trials:
        marks = ["best"] if trial is top else []
        marks += ["on the front"] if trial in joined else []
        results = [NOTHING] * 3
        if trial.status == "completed":
            results = [str(trial.epochs), percent(trial.clean), percent(trial.robust)]
        values = [_short(trial.values[key]) for key in keys]
        mark = ", ".join(marks) or trial.reason or NOTHING
        rows.append([trial.name, *values, *results, trial.status, mark])
    return ReportTable(["trial", *keys, "epochs", "clean", "robust", "status", "mark"], rows)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        needed = (config["search"]["space"], config["data"])
        mappings = all(isinstance(section, Mapping) for section in needed)
        mappings &= isinstance(config["threat"], Mapping | list)
        if mappings and config["name"]:
            return dict(config)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        pass
    raise UserError(f"{path}: expected the config of a search")
