"""Writes report/index.html of a search: accuracy over each searched key, the trade-off, the trials.

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
from tfrobust.report.html import INK, Table, write_page
from tfrobust.report.text import NOTHING, number, percent
from tfrobust.report.trials import SearchTrial, best_trial, completed, read_trials, unbeaten

CELLS = 120  # of a heat map, each way
MAPPED = 3  # of more keys than these, only the first have heat maps
WHERE_MEASURED = (
    "All accuracies are on {} validation images, at the epoch that a trial keeps. No trial has "
    "seen the test split. The best of several is chosen by its luck too: expect less of it on "
    "others."
)
MEASURED_BY = (
    "threat", "train.eps", "train.validation_attack", "data.name", "data.validation", "seed",
)  # fmt: skip


def write_search_report(run: Path) -> Path:
    """Writes `report/index.html` and `report/report.md` of a search, its figures and tables.

    run: the folder with config.yaml and search/trials.csv. Returns the path of the page. Raises
    UserError, in one line that names the file, where one of them is missing or damaged.
    """
    config = _config(Path(run) / "config.yaml")
    keys, trials = read_trials(Path(run) / "search" / "trials.csv")
    search = config["search"]
    logarithmic = {key for key in keys if "log" in search["space"].get(key, {})}
    top, done = best_trial(trials, search.get("min_clean")), completed(trials)
    figures: dict[str, Figure] = {}
    for key in keys if done else ():
        figures[f"over-{key}"] = over(key, done, top, key in logarithmic, len(keys) == 1)
    for pair in combinations(keys[:MAPPED], 2) if done else ():
        figures[f"map-{pair[0]}-{pair[1]}"] = heat_map(pair, done, top, logarithmic)
    if done:
        figures["front"] = front(done, top, search.get("min_clean"))
    values = {
        "name": config["name"],
        "headline": _headline(trials, top, search, config),
        "note": config.get("note"),
        "over": [(key, f"over-{key}") for key in keys if done],
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
    """Clean and robust accuracy over the values of a key; where no other key was searched, joined
    by lines. The ring is the best trial."""
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
    """Clean and robust accuracy over two keys: each place in the colour of its nearest trial."""
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
    """Robust against clean accuracy, a point a trial; those that none beats in both are joined."""
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
    """(where each trial lies, None) for numbers; (0, 1, ..., the names there) for other values."""
    values = [trial.values[key] for trial in trials]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return np.array(values, float), None
    names = sorted({_short(value) for value in values})
    return np.array([names.index(_short(value)) for value in values], float), names


def _scale(axes: Any, way: str, key: str, names: list[str] | None, log: bool) -> None:
    """The axis `way`, x or y, for the values of a key."""
    if log and names is None:
        axes.set(**{f"{way}scale": "log"})
    axis = getattr(axes, f"{way}axis")
    axis.set_label_text(key, color=INK)
    if names is not None:
        axis.set_ticks(range(len(names)), [name[:18] for name in names])


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    return number(value)


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items())


def _headline(
    trials: Sequence[SearchTrial],
    top: SearchTrial | None,
    search: Mapping[str, Any],
    config: Mapping[str, Any],
) -> str:
    threat, own = config["threat"], (config.get("train") or {}).get("eps")
    eps = number(threat["eps"] if own is None else own)
    total, failed = len(trials), sum(trial.status == "failed" for trial in trials)
    tuner = str(search.get("tuner", "random")).capitalize()
    told = f"{tuner} search, {total} trial{'s' if total > 1 else ''}"
    told += f", {failed} of them failed" if failed else ""
    least = search.get("min_clean")
    bound = "" if least is None else f" of at least {percent(float(least))} clean"
    if top is None:
        return f"{told}: none{bound} that is complete"
    return (
        f"{told}: the best{bound} has {percent(top.robust)} robust and {percent(top.clean)} clean "
        f"validation accuracy ({threat['norm']}, eps {eps}) at "
        f"{_told(top.values)}"
    )


def _measured(keys: Sequence[str]) -> str:
    """The searched keys that change what the accuracies mean."""
    return ", ".join(k for k in keys if any(f"{k}.".startswith(f"{m}.") for m in MEASURED_BY))


def _table(keys: Sequence[str], trials: Sequence[SearchTrial], top: SearchTrial | None) -> Table:
    joined = unbeaten(trials)
    rows = []
    for trial in trials:
        done = trial.status == "completed"
        marks = ["best"] if trial is top else []
        marks += ["on the front"] if trial in joined else []
        rows.append(
            [
                trial.name,
                *(_short(trial.values[key]) for key in keys),
                str(trial.epochs) if done else NOTHING,
                percent(trial.clean) if done else NOTHING,
                percent(trial.robust) if done else NOTHING,
                trial.status,
                ", ".join(marks) or trial.reason or NOTHING,
            ]
        )
    return Table(["trial", *keys, "epochs", "clean", "robust", "status", "mark"], rows)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        needed = (config["search"]["space"], config["data"], config["threat"])
        if all(isinstance(section, Mapping) for section in needed) and config["name"]:
            return dict(config)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        pass
    raise UserError(f"{path}: expected the config of a search")
