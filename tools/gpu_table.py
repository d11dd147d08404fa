"""The results of tools/check_gpu.py and tools/bench_train.py as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tfrobust.report.text import markdown_table

SMALL = 0.01  # the largest difference by rounding in a few steps, relative to the weights' change
STOPS = ("skipped", "failed", "ended")
SIDES = {"ours": "ours", "theirs": "public"}

Measured = Mapping[str, Any]


def markdown(about: Measured) -> str:
    """Return the page: a table for each section, or why there is none or only a part of it."""
    sections: Mapping[str, Measured] = about["sections"]
    device = sections.get("device", {})
    parts = [f"# On {device.get('device', 'an unknown device')}", _about(about, sections)]
    for name, measured in sections.items():
        parts.append(f"## {measured['title']}")
        parts += [f"{stop}: {measured[stop]}" for stop in STOPS if stop in measured]
        parts += filter(None, [TABLES[name](measured)])
    return "\n\n".join(parts) + "\n"


def _about(about: Measured, sections: Mapping[str, Measured]) -> str:
    seconds = sum(measured["took"] for measured in sections.values())
    line = f"`python tools/check_gpu.py`, {seconds:.0f} s of at most {60 * about['minutes']:.0f}."
    if not sections.get("device", {}).get("gpu"):
        line += " **No GPU was found: these are figures of a CPU.**"
    if about["quick"]:
        line += " **Quick: tiny networks and few images, to try the command; no measurement.**"
    unfinished = [name for name, measured in sections.items() if any(s in measured for s in STOPS)]
    return f"{line} Not finished: {', '.join(unfinished)}." if unfinished else line


def _device(measured: Measured) -> str:
    facts = {k: v for k, v in measured.items() if k not in ("title", "took", "gpu", *STOPS)}
    return markdown_table(["what", "is"], list(facts.items())) if facts else ""


def _pipeline(measured: Measured) -> str:
    starts = {name: row for name, row in measured.items() if name.endswith(" start")}
    rows = [
        [
            name,
            _number(row["exit_code"], "{}"),
            f"{row['seconds']:.0f}",
            _number(row["first_epoch_seconds"], "{:.1f}"),
            ", ".join(row["stages"]),
            len(row["tensorflow_said"]),
            "; ".join(str(row[stop]) for stop in STOPS if stop in row),
        ]
        for name, row in starts.items()
    ]
    if not rows:
        return ""
    header = ["", "exit code", "s", "s to the first epoch", "stages done", "lines of TensorFlow's"]
    parts = [markdown_table([*header, "failure"], rows)]
    if "programs kept" in measured:
        size = measured["bytes kept"] / 1e6
        parts.append(f"Compiled programs kept: {measured['programs kept']} files, {size:.1f} MB.")
    said = dict.fromkeys(line for row in starts.values() for line in row["tensorflow_said"])
    if said:
        parts.append("Lines of TensorFlow's log:\n\n```\n" + "\n".join(said) + "\n```")
    return "\n\n".join(parts)


def _differences(measured: Measured) -> str:
    """Return the table of a section that compares weights."""
    rows = []
    for name, row in measured.items():
        if not isinstance(row, Mapping):
            continue
        if "failed" in row:
            rows.append([name, "–", "–", "–", row["failed"]])
            continue
        verdict = "agree" if row["difference"] < SMALL else "DIFFER"
        firsts = [_number(row.get(f"first_seconds{k}"), "{:.1f}") for k in ("", "_uncompiled")]
        rows.append([name, f"{row['difference']:.1e}", *firsts, verdict])
    if not rows:
        return ""
    header = ["method", "difference", "first step, s", "first step uncompiled, s", "weights"]
    text = "Largest difference of a weight / largest change of one in training, in float32."
    return f"{text}\n\n{markdown_table(header, rows)}"


def steps(measured: Measured) -> str:
    """Return the table of the training steps that tools/bench_train.py measured."""
    rows = measured.get("rows", [])
    if not rows:
        return ""
    sides = dict.fromkeys(["ours", *(side for row in rows for side in row["seconds"])])
    cells = []
    for row in rows:
        seconds, ours = row["seconds"], row["seconds"]["ours"]
        others = [value for side, value in seconds.items() if not side.startswith("ours")]
        times = [_number(seconds.get(side), "{:.1f}", 1000) for side in sides]
        ratio = f"{min(others) / ours:.2f}" if others else "–"
        first = f"{row['first_seconds']['ours']:.1f}"
        rate = row["flops"] / ours
        shares = [f"{rate / 1e12:.3g}", f"{rate / measured['peak']:.0%}"]
        cells.append([row["row"], *times, ratio, first, *shares])
    header = ["step, ms", *sides, "fastest other / ours", "our first step, s"]
    peaks = ", ".join(f"{k} {value / 1e12:.3g}" for k, value in measured["peaks"].items())
    supply = measured["input_batches_per_second"]
    factor = supply * min(row["seconds"]["ours"] for row in rows)
    compiled = "compiled by XLA" if measured.get("xla") else "not compiled"
    text = (
        f"{measured['network']}, batch {measured['batch']}, {measured['precision']}, "
        f"{compiled}; peak of a product: {peaks} "
        f"TFLOP/s; input pipeline {supply:.0f} batches/s, "
        f"{factor:.1f} times the need of the fastest step."
    )
    if "torch" not in measured["versions"]:
        text += " No torch that computes on this device: only our steps are timed."
    return f"{text}\n\n{markdown_table([*header, 'TFLOP/s', 'of the peak'], cells)}"


def _autoattack(measured: Measured) -> str:
    trained, rows = measured.get("training", {}), []
    for side, shown in SIDES.items():
        attacks = measured.get(side, [])
        total = sum(row["seconds"] for row in attacks)
        for row in attacks:
            rows.append(_attack(shown, row["attack"], row["seconds"], row["robust"], measured))
        if len(attacks) > 1:
            rows.append(_attack(shown, "all", total, attacks[-1]["robust"], measured))
    if not rows:
        return ""
    text = (
        f"{measured['images']} images, {trained['data']}; the network was trained in "
        f"{trained['training_seconds']:.0f} s, "
        f"{trained['first_seconds']:.0f} of them to the end of the first step."
    )
    return f"{text}\n\n{markdown_table(['side', 'attack', 's', 'images/s', 'robust'], rows)}"


def _attack(side: str, attack: str, seconds: float, robust: float, measured: Measured) -> list[str]:
    rate = measured["images"] / seconds
    return [side, attack, f"{seconds:.1f}", f"{rate:.1f}", f"{robust:.2%}"]


def _number(value: float | None, shape: str, factor: float = 1) -> str:
    """Return factor * value in a format such as "{:.1f}", or a dash for None."""
    return "–" if value is None else shape.format(factor * value)


TABLES: dict[str, Callable[[Measured], str]] = {
    "device": _device,
    "pipeline": _pipeline,
    "methods": _differences,
    "wrn_16_2": steps,
    "wrn_28_10": steps,
    "autoattack": _autoattack,
    "replicas": _differences,
    "layers": steps,
}
