"""The page of a search: accuracy over each searched key, the trade-off, the trials.

The figures are those of the ATLAS paper's appendix F (Figures 12 to 17), on validation data.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.interpolate import NearestNDInterpolator

from tfrobust.errors import UserError, user_path
from tfrobust.report.figures import COLOURS, in_percent, legend, new_axes, style
from tfrobust.report.html import INK, ReportTable, write_page
from tfrobust.report.text import NOTHING, number, percent, threat_text
from tfrobust.report.trials import SearchTrial, best_trial, completed, read_trials, unbeaten

CELLS = 120  # the number of cells of a heat map in each direction
MAPPED = 3  # the number of keys, from the first, that have heat maps
WHERE_MEASURED = (
    "All accuracies are on {} validation images, at the epoch whose weights a trial keeps. No "
    "trial has seen the test split. The best of many trials owes something to luck: expect less of "
    "it on other images."
)
MEASURED_BY = (
    "threat", "train.eps", "train.validation_attack", "data.name", "data.validation", "seed",
)  # fmt: skip


def write_search_report(folder: str | Path) -> Path:
    """Write the report of a search: `report/index.html`, `report/report.md`, figures and tables.

    Args:
        folder: The run folder, with config.yaml and search/trials.csv.

    Returns:
        The path of the page.

    Raises:
        UserError: If one of the files is missing or damaged; the message names the file.
    """
    folder = user_path("folder", folder)
    config = _config(folder / "config.yaml")
    keys, trials = read_trials(folder / "search" / "trials.csv")
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
    return write_page(folder / "report", "search", values, figures, tables)


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
    figure, axes = new_axes(size=(4.6, 3.0))
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
            best = trials.index(top)
            axes.plot(places[best], heights[best], "o", ms=10, mfc="none", mec=INK, mew=1.2)
    _scale(axes, "x", key, names, log)
    in_percent(axes.yaxis)
    legend(axes)
    return figure


def heat_map(
    pair: tuple[str, str],
    trials: Sequence[SearchTrial],
    top: SearchTrial | None,
    logarithmic: set[str],
) -> Figure:
    """Draw clean and robust accuracy over two keys, each point coloured by its nearest trial.

    The distance to a trial is measured on the scales of the axes.
    """
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    positions, names_of_keys, coordinates, grids = [], [], [], []
    for key in pair:
        places, names = _places(key, trials)
        on_scale = np.log(places) if key in logarithmic else places
        margin = 0.05 * np.ptp(on_scale) or 0.5
        positions.append(places)
        names_of_keys.append(names)
        coordinates.append(on_scale)
        grids.append(np.linspace(on_scale.min() - margin, on_scale.max() + margin, CELLS))
    edges = [
        np.exp(grid) if key in logarithmic else grid for key, grid in zip(pair, grids, strict=True)
    ]
    for axes, name in zip(figure.subplots(1, 2), ("clean", "robust"), strict=True):
        heights = np.array([getattr(trial, name) for trial in trials])
        nearest = NearestNDInterpolator(np.stack(coordinates, axis=1), heights, rescale=True)
        cells = nearest(*np.meshgrid(*grids))
        drawn = axes.pcolormesh(*edges, cells, rasterized=True, shading="nearest")
        axes.plot(*positions, "o", ms=4, mfc="white", mec="black", mew=0.8, ls="")
        if top is not None:
            best = [places[trials.index(top)] for places in positions]
            axes.plot(*best, "*", ms=13, mfc="white", mec="black")
        for direction, key, names in zip("xy", pair, names_of_keys, strict=True):
            _scale(axes, direction, key, names, key in logarithmic)
        style(axes)
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
    figure, axes = new_axes("clean accuracy", "robust accuracy", size=(4.6, 3.2))
    clean, robust = [trial.clean for trial in trials], [trial.robust for trial in trials]
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
    in_percent(axes.xaxis, axes.yaxis)
    legend(axes)
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


def _scale(axes: Any, direction: str, key: str, names: list[str] | None, log: bool) -> None:
    """Prepare an axis, "x" or "y", for the values of a key."""
    if log and names is None:
        axes.set(**{f"{direction}scale": "log"})
    axis = getattr(axes, f"{direction}axis")
    axis.set_label_text(key, color=INK)
    if names is not None:
        axis.set_ticks(range(len(names)), _ticks(names))


def _ticks(names: Sequence[str]) -> list[str]:
    """Return short names: the first 18 characters of each, if these differ from name to name.

    If not, they are the names without the words with which all of them begin.
    """
    cut = [name[:18] for name in names]
    if len(set(cut)) == len(names):
        return cut
    same = os.path.commonprefix(list(names)).rfind(" ") + 1
    return [name[same:] for name in names]


def _short(value: Any) -> str:
    """Return a short text for a value: a number, a name, or 'key value, key value'."""
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
    balls = []
    for threat in threats:
        eps = threat["eps"] if training_eps is None else training_eps
        balls.append((threat.get("norm", "linf"), eps, threat.get("per_feature")))
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
        f"validation accuracy ({threat_text(balls)}) at "
        f"{_short(top.values)}"
    )


def _measured(keys: Sequence[str]) -> str:
    """Return the searched keys that change how accuracy is measured."""
    prefixes = tuple(f"{key}." for key in MEASURED_BY)
    return ", ".join(key for key in keys if f"{key}.".startswith(prefixes))


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
