"""The page of a run, report/index.html and report/report.md, and its card, MODEL_CARD.md."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from tfrobust.errors import user_path
from tfrobust.io import write_text
from tfrobust.record import CheckRow, CorruptionTable, ExportRow, Record
from tfrobust.report.before_after import NOTE, before_after_table, before_and_after
from tfrobust.report.compare_figures import over_eps
from tfrobust.report.evaluation_figures import (
    BARS,
    class_bars,
    corruption_map,
    eps_curve,
    landscapes,
    trade_off,
    valley,
)
from tfrobust.report.figures import (
    PANELS,
    amplification,
    curves,
    extreme_cards,
    histogram,
    probe_cards,
    spread,
)
from tfrobust.report.html import ReportTable, templates, write_page
from tfrobust.report.model_card import card_values
from tfrobust.report.record import RunRecord, load_run
from tfrobust.report.summary import (
    AccuracyRow,
    ClassRow,
    accuracy_rows,
    attack_settings,
    best_epoch,
    class_rows,
    data_of,
    headline,
    how_counted,
    missing_from_paper,
    overfitting,
    summarise_training,
    warnings,
)
from tfrobust.report.text import (
    NOTHING,
    between,
    duration,
    interval,
    milliseconds,
    number,
    p_value,
    percent,
    points,
    threat_text,
)

CHECKS_NOTE = (
    "The checks look for signs that useless gradients stopped the attacks, rather than a robust "
    "network. Those on the network itself attack the first images that are right when clean. A "
    "warning is a sign, not a proof."
)
FEWER_NOTE = (
    "The worst case is over the attacks that saw the most images. Where other attacks saw only the "
    "first of them, a second one is over all attacks on those. An image counts as right only if no "
    "attack succeeded."
)
EPS_NOTE = (
    "PGD-20 alone (step eps / 4, uniform start, no restarts) at rising eps, on {} of the test "
    "images: an upper bound. An image that is broken at one eps counts as broken at every larger "
    "one."
)
CORRUPTIONS_NOTE = (
    "Accuracy on the first {} images after common corruptions (Hendrycks and Dietterich, "
    "2019), in percent. Nobody attacks here: these numbers say nothing about an adversary, and "
    "robust accuracy says nothing about them. The frost is drawn, so that its accuracy and the "
    "mean do not compare with published ones."
)
REQUIRED_NOTE = (
    "The end of the one-sided interval decides, not the number that was measured: its lower end "
    "has to reach a floor or exceed a gain, and the network is worse than the baseline if its "
    "upper end is below 0. Minutes have no interval."
)
EXPORTS_NOTE = (
    "Each exported network was opened by its own runtime and compared with the network on the "
    "first {} images, logit by logit."
)
EXPORTS_ATTACKED_NOTE = (
    " Then it was attacked there: by the images that the attacks on the network had made of each "
    "image, and by attacks that need no gradients, each on what those before it had left. "
    "Nothing followed the gradients of an exported network, which gives none, so its robust "
    "accuracy is an upper bound. The first row is the network itself under the same attacks; the "
    "difference to it, in points, has McNemar's exact test."
)
# The settings of a training that the page shows, and what it calls them.
TRAINING = {
    "method": "method",
    "attack": "attack in training",
    "optimizer": "optimizer",
    "schedule": "learning rate",
    "averaging": "average of the weights",
    "train": "training",
    "validation_attack": "attack in validation",
}
CURVE_NOTE = (
    "clean accuracy and the worst case over the attacks. The rest of this page is at the first "
    "setting."
)


def write_report(folder: str | Path) -> Path:
    """Write the report of a run, and its model card.

    `report/index.html` is one self-contained page and `report/report.md` its text; the figures and
    tables lie beside them as files. `MODEL_CARD.md` says the same in the format of the Hugging Face
    Hub. The same run gives the same bytes.

    Args:
        folder: The run folder, with eval.json and those of the other files of `RunRecord` that
            exist.

    Returns:
        The path of the page.

    Raises:
        UserError: If eval.json is missing or a file is damaged.
    """
    folder = user_path("folder", folder)
    record = load_run(folder)
    values, tables, figures = _values(record), _tables(record), _figures(record)
    pair = before_and_after(folder)
    values["before_after_note"] = NOTE
    if pair:
        tables["before-after"] = before_after_table(*pair)
        figures |= {f"before-after-{name}": figure for name, figure in over_eps(pair).items()}
    classes = class_rows(record)
    if classes:
        figures["classes"], tables["classes"] = class_bars(classes), _classes(classes)
        note = "The worst case is over the images that every attack saw."
        if len(classes) > BARS:
            note += f" The figure shows the {BARS} least robust classes."
        values["classes_note"] = note
    card = templates().get_template("card.md")
    text = card.render(values, tables=tables, **card_values(record))
    write_text(folder / "MODEL_CARD.md", text)
    return write_page(folder / "report", "index", values, figures, tables)


def _figures(record: RunRecord) -> dict[str, Figure]:
    history, evaluation = record.history, record.evaluation
    figures = curves(history, best_epoch(history, record.config))
    if evaluation.curve:
        figures["trade-off"] = trade_off(evaluation.curve)
    if evaluation.eps_curve:
        figures["eps-curve"] = eps_curve(evaluation.eps_curve, evaluation.threats[0].eps)
    if evaluation.corruptions is not None:
        figures["corruptions"] = corruption_map(evaluation.corruptions)
    if record.valley is not None:
        figures["valley"] = valley(record.valley)
    if record.landscape is not None:
        for place, figure in enumerate(landscapes(record.landscape)):
            figures[f"landscape-{place}"] = figure
    if record.extremes is not None:
        figures["spread"] = spread(history, record.extremes.name)
        figures["histogram"] = histogram(record.extremes.values)
    return figures


def _values(record: RunRecord) -> dict[str, Any]:
    config, evaluation = record.config, record.evaluation
    rows = accuracy_rows(config, evaluation)
    missing = missing_from_paper(config, evaluation)
    attacks = [attack.config for attack in evaluation.attacks if attack.config]
    details = {"config.yaml": config, "attacks": attacks}
    curve = evaluation.eps_curve
    return {
        "name": config["name"],
        "headline": headline(config, evaluation),
        "note": config.get("note"),
        "pending": ", ".join(evaluation.pending),
        "warnings": [w for w in (warnings(evaluation), overfitting(record.history, config)) if w],
        "rows": rows,
        "counted": how_counted(evaluation),
        "fewer": FEWER_NOTE if evaluation.subsets else "",
        "curve_note": CURVE_NOTE,
        "checks_note": CHECKS_NOTE,
        "required_note": REQUIRED_NOTE,
        "exports_note": _exports_note(record.exports),
        "eps_note": EPS_NOTE.format(curve[0].examples) if curve else "",
        "corruptions_note": _corruptions_note(evaluation.corruptions),
        "paper": config.get("paper"),
        "missing": ", ".join(f"{label} {percent(value)}" for label, value in missing.items()),
        "training": _training(record),
        "facts": _facts(config, evaluation),
        "details": {
            title: yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
            for title, value in details.items()
        },
        "panels": [panel for panel in PANELS if panel.measured(record.history)],
        "valley_note": _valley_note(record.valley),
        "landscapes": _landscape_titles(record),
        "extremes": record.extremes,
        "extreme_cards": extreme_cards(record),
        "probes": record.probes,
        "cards": probe_cards(record),
        "gain": amplification(record.probes) if record.probes else 1,
    }


def _valley_note(losses: dict[str, np.ndarray] | None) -> str:
    if losses is None:
        return ""
    clean, high, low = (float(losses[key].mean()) for key in ("clean", "highest", "lowest"))
    return (
        f"Mean cross entropy of {len(losses['clean'])} images: {clean:.3g} at the images, "
        f"{high:.3g} at the highest points found in their balls and {low:.3g} at the lowest, the "
        "collaborative examples. Robust networks have a shallow valley."
    )


def _landscape_titles(record: RunRecord) -> list[str]:
    if record.landscape is None:
        return []
    keys = (record.landscape[key].tolist() for key in ("index", "label", "stands"))
    return [
        f"#{index}: {record.class_name(label)}, {'stands' if stands else 'broken'}"
        for index, label, stands in zip(*keys, strict=True)
    ]


def _tables(record: RunRecord) -> dict[str, ReportTable]:
    config, evaluation = record.config, record.evaluation
    tables = {"accuracy": _accuracy(accuracy_rows(config, evaluation), bool(config.get("paper")))}
    if record.requirements:
        rows = [[r.name, r.text, "met" if r.met else "missed"] for r in record.requirements]
        tables["requirements"] = ReportTable(["requirement", "measured", "result"], rows)
    if record.exports:
        tables["exports"] = _exports(record.exports)
    if curve := evaluation.curve:
        inputs = ["width", "lambda"] if any(row.width for row in curve) else ["lambda"]
        rows = []
        for row in curve:
            point = [number(row.point[name]) for name in inputs]
            rows.append([*point, percent(row.clean_accuracy), percent(row.robust_accuracy)])
        tables["trade-off"] = ReportTable([*inputs, "clean", "worst case"], rows)
    if evaluation.eps_curve:
        rows = []
        for eps_row in evaluation.eps_curve:
            share, n = eps_row.robust_accuracy, eps_row.examples
            bounds = between(*interval(round(share * n), n))
            rows.append([number(eps_row.eps), percent(share), bounds])
        tables["eps-curve"] = ReportTable(["eps", "robust accuracy", "95 % interval"], rows)
    if evaluation.corruptions is not None:
        tables["corruptions"] = _corruptions(evaluation.corruptions)
    if evaluation.checks:
        rows = [[check.name, check.text, _mark(check)] for check in evaluation.checks]
        tables["checks"] = ReportTable(["check", "measured", "result"], rows)
    return tables


def _accuracy(rows: list[AccuracyRow], with_paper: bool) -> ReportTable:
    paper = ["paper", "difference"] if with_paper else []
    header = ["evaluation", "accuracy", "95 % interval", *paper]
    header += ["examples", "time", "cost", "settings"]
    cells = []
    for row in rows:
        line = [row.name, percent(row.accuracy), between(row.low, row.high)]
        if with_paper:
            line += [percent(row.paper), points(row.difference)]
        line += [str(row.examples), duration(row.seconds)]
        cells.append([*line, row.cost or NOTHING, row.settings or NOTHING])
    return ReportTable(header, cells)


def _classes(rows: list[ClassRow]) -> ReportTable:
    header = ["class", "images", "clean", "worst case"]
    cells = [[r.name, str(r.examples), percent(r.clean), percent(r.robust)] for r in rows]
    if any(row.attacked < row.examples for row in rows):
        header.append("attacked")
        for line, row in zip(cells, rows, strict=True):
            line.append(str(row.attacked))
    return ReportTable(header, cells)


def _corruptions(table: CorruptionTable) -> ReportTable:
    header = ["corruption", *(f"severity {severity}" for severity in table.severities), "mean"]
    shares = [(row.name, row.accuracy) for row in table.rows]
    if len(shares) > 1:
        shares.append(("mean", np.mean([share for _, share in shares], axis=0).tolist()))
    cells = [
        [name.replace("_", " "), *map(percent, share), percent(fmean(share))]
        for name, share in shares
    ]
    return ReportTable(header, cells)


def _corruptions_note(table: CorruptionTable | None) -> str:
    if table is None:
        return ""
    note = CORRUPTIONS_NOTE.format(table.examples)
    return f"{note} Not measured yet: {', '.join(table.pending)}." if table.pending else note


def _exports(rows: Sequence[ExportRow]) -> ReportTable:
    attacked = bool(rows[0].attacks)
    header = ["format", "runtime", "largest logit difference", "equal predictions", "clean"]
    if attacked:
        header += [*rows[0].attacks, "worst case", "difference"]
    cells = []
    for row in rows:
        largest = None if row is rows[0] else row.largest_difference
        differs = NOTHING if largest is None else f"{largest:.1e}"
        line = [row.name, row.runtime, differs, percent(row.equal_predictions)]
        line += [percent(row.clean_accuracy), *map(percent, row.attacks.values())]
        if attacked:
            tested = "" if row.p is None else f" (p {p_value(row.p)})"
            line += [percent(row.robust_accuracy), points(row.difference) + tested]
        cells.append(line)
    return ReportTable(header, cells)


def _exports_note(rows: Sequence[ExportRow]) -> str:
    if not rows:
        return ""
    note = EXPORTS_NOTE.format(rows[0].examples)
    return note + EXPORTS_ATTACKED_NOTE if rows[0].attacks else note


def _mark(check: CheckRow) -> str:
    if check.warns:
        return "warning"
    return NOTHING if check.value is None else "fine"


def _training(record: RunRecord) -> list[tuple[str, str]]:
    if not record.history:
        return []
    cost = summarise_training(record.history, record.config)
    validated = any("val_accuracy" in row for row in record.history)
    kept = "best epoch (from 0)" if validated else "epoch kept, the last (from 0; no validation)"
    return [
        ("epochs run", str(cost.epochs)),
        (kept, NOTHING if cost.best_epoch is None else str(cost.best_epoch)),
        ("median time per batch", milliseconds(cost.seconds_per_batch)),
        ("validation, of an epoch's time", percent(cost.validation_share)),
        ("time of training and validation", duration(cost.training_seconds)),
        ("wall time, pauses included", duration(cost.wall_seconds)),
    ]


def _facts(config: dict[str, Any], evaluation: Record) -> list[tuple[str, str]]:
    data = data_of(config, evaluation)
    versions, model = evaluation.versions or {}, config.get("model") or evaluation.model or {}
    settings = evaluation.training_settings or config
    return [
        ("threat", threat_text(evaluation.balls)),
        ("data", f"{data.name}, {data.split} split"),
        ("model", str(model.get("name") or model.get("path", NOTHING))),
        *[(name, _settings(settings[key])) for key, name in TRAINING.items() if settings.get(key)],
        ("precision", str(config.get("precision", NOTHING))),
        ("seed", f"training {config.get('seed', NOTHING)}, evaluation {evaluation.seed}"),
        ("commit", _commits(evaluation)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]


def _commits(evaluation: Record) -> str:
    """Return the commit of the evaluation, and that of each row made with another commit."""
    others = [
        f"{row.name}: {row.provenance.commit}"
        for row in evaluation.attacks
        if row.provenance and row.provenance.commit != evaluation.commit
    ]
    return "; ".join([evaluation.commit or "not recorded", *others])


def _settings(section: dict[str, Any]) -> str:
    shown = {key: value for key, value in section.items() if not isinstance(value, dict)}
    return ", ".join(filter(None, [section.get("name"), attack_settings(shown)]))
