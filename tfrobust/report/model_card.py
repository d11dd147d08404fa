"""The model card of a run: MODEL_CARD.md, in the format of the Hugging Face Hub."""

from typing import Any

import yaml

from tfrobust.record import AUTOATTACK, Record, is_autoattack
from tfrobust.report.record import RunRecord
from tfrobust.report.summary import accuracy_rows, data_of
from tfrobust.report.text import factors_text, number, threat_text

# What an adversary may do to an input under each norm, at eps.
MOVES = {
    "linf": "change every value of {input} by at most {eps}",
    "l2": "change {input} by at most {eps} in Euclidean distance",
    "l1": "change the values of {input} by at most {eps} in sum",
}


def card_values(record: RunRecord) -> dict[str, Any]:
    """Return the variables of templates/card.md that the report's page does not have."""
    config, evaluation = record.config, record.evaluation
    is_table = data_of(config, evaluation).shape is not None
    one = "a row" if is_table else "an image"
    moves = [
        MOVES[norm].format(input=one, eps=number(eps)) + factors_text(factors)
        for norm, eps, factors in evaluation.balls
    ]
    return {
        "head": yaml.safe_dump(metadata(record), sort_keys=False, allow_unicode=True),
        "moves": ", or ".join(moves),
        "untested": untested(record),
        "text": (config.get("card") or {}).get("text"),
        "trained": bool(config.get("train")),
        "inputs": "rows" if is_table else "images",
        "conditional": "lambdas" in (config.get("model") or {}),
        "command": config.get("command"),
    }


def metadata(record: RunRecord) -> dict[str, Any]:
    """Return the card's metadata, with the accuracies as fractions.

    The keys are those of https://huggingface.co/docs/hub/model-cards.
    """
    config, evaluation = record.config, record.evaluation
    card, data = config.get("card") or {}, data_of(config, evaluation)
    task = "tabular-classification" if data.shape else "image-classification"
    metrics = []
    for row in accuracy_rows(config, evaluation):
        name = f"accuracy, {row.name}{_within(row.name, evaluation)}, {row.examples} images"
        metrics.append({"type": "accuracy", "name": name, "value": round(row.accuracy, 4)})
    result = {
        "task": {"type": task},
        "dataset": {"name": f"{data.name}, {data.split} split", "type": data.name},
        "metrics": metrics,
    }
    head: dict[str, Any] = {"library_name": "keras", "pipeline_tag": task}
    if card.get("license"):
        head["license"] = card["license"]
    head["tags"] = ["adversarial-robustness", "tfrobust"]
    head["model-index"] = [{"name": config["name"], "results": [result]}]
    return head


def _within(name: str, evaluation: Record) -> str:
    """Return the threat of a row in parentheses, or "" for a row without an attack."""
    if name == "clean" or name.startswith("corruptions"):
        return ""
    own = [ball for ball in evaluation.balls if name.startswith(f"{ball[0]}: ")]
    return f" ({threat_text(own or evaluation.balls)})"


def _ran_autoattack(evaluation: Record) -> bool:
    """Return whether the whole AutoAttack ran under every norm."""
    several = len(evaluation.balls) > 1
    prefixes = [f"{norm}: " if several else "" for norm, _, _ in evaluation.balls]
    finished = evaluation.suites & {row.name for row in evaluation.attacks}
    return all(
        any(is_autoattack(s.removeprefix(p)) for s in finished if s.startswith(p)) for p in prefixes
    )


def untested(record: RunRecord) -> list[str]:
    """Return a sentence for each kind of evidence that the evaluation does not hold."""
    evaluation = record.evaluation
    norms = {norm for norm, _, _ in evaluation.balls}
    missing = []
    if not evaluation.attacks:
        missing.append("No attack was run: nothing is known about an adversary.")
    elif not _ran_autoattack(evaluation):
        missing.append(f"{AUTOATTACK} was not run, so the robust accuracy may be lower.")
    others = [norm for norm in MOVES if norm not in norms]
    if others:
        missing.append(f"No attack was run under {' or '.join(others)}.")
    if evaluation.robust_accuracy is not None and not evaluation.checks:
        missing.append("Nothing checked whether useless gradients stopped the attacks.")
    is_table = evaluation.data is not None and evaluation.data.shape is not None
    if evaluation.corruptions is None and not is_table:
        missing.append("The accuracy under common corruptions was not measured.")
    elsewhere = (
        "Images of another origin than this data set were not tried, and neither were patches, "
        "rotations or other changes that no norm bounds."
    )
    missing += [
        "No attack was designed for this network in particular.",
        "Rows of another origin than this data set were not tried." if is_table else elsewhere,
    ]
    return missing
