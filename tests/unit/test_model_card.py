"""The model card, and its publication on a stand-in for the Hugging Face Hub."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import tfrobust
from tests.unit.test_report import change, make_run, suite_rows
from tfrobust.errors import UserError
from tfrobust.report import write_report


def card_of(run: Path) -> tuple[dict[str, Any], str]:
    """Return the metadata and the text of the card of a run, whose report is written."""
    write_report(run)
    _, head, text = (run / "MODEL_CARD.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_accuracies_of_a_card_are_those_of_the_record(tmp_path: Path) -> None:
    command = "python -m pipelines.run digits_atlas"
    changes = {"card": {"license": "mit", "text": "For meters."}, "command": command}
    head, text = card_of(make_run(tmp_path / "run", train={"epochs": 4}, **changes))
    assert head["license"] == "mit" and head["library_name"] == "keras"
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert model["name"] == "digits_atlas" and result["dataset"]["type"] == "digits"
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "accuracy, clean, 10 images": 0.8,
        "accuracy, PGD-20 (linf, eps 0.15), 10 images": 0.4,
        "accuracy, Square (linf, eps 0.15), 10 images": 0.3,
        "accuracy, worst case (linf, eps 0.15), 10 images": 0.3,
    }
    for part in (
        "atlas on digits: 80.0 % clean, 30.0 % under the worst of 2 attacks",
        "may change every value of an image by at most 0.15.",
        "| PGD-20 | 40.0 % | 16.8 to 68.7 |",
        "For meters.",
        'keras.models.load_model("model.keras")',
        f"    {command}\n",
        "AutoAttack was not run",
        "under l2 or l1.",
        "corruptions was not measured.",
    ):
        assert part in text


def test_a_suite_that_is_not_finished_is_not_claimed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    change(run, attacks=suite_rows()[:1], robust_accuracy=0.5, pending=["AutoAttack: Square"])
    _, text = card_of(run)
    assert "80.0 % clean, 50.0 % under AutoAttack: APGD-CE (linf" in text
    assert "AutoAttack was not run" in text
    change(run, attacks=suite_rows(), robust_accuracy=0.4, pending=[])
    _, text = card_of(run)
    assert "40.0 % under AutoAttack (linf" in text and "AutoAttack was not run" not in text


@pytest.mark.parametrize(
    ("suite", "short"),
    [("AutoAttack", 0), ("mine (AutoAttack)", 0), ("AutoAttack (upper bound)", 1)],
)
def test_a_short_suite_does_not_count_as_autoattack(
    tmp_path: Path, suite: str, short: bool
) -> None:
    run = make_run(tmp_path / "run")
    row = {"name": suite, "suite": suite, "examples": 10, "robust_accuracy": 0.3}
    change(run, attacks=[row])
    assert ("AutoAttack was not run" in card_of(run)[1]) == short


def test_a_card_names_the_norm_of_each_accuracy_and_none_of_corruptions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    threats = [{"norm": "linf", "eps": 0.15}, {"norm": "l2", "eps": 1.0}]
    rows = [
        {"name": f"{norm}: {name}", "suite": suite, "examples": 10, "robust_accuracy": 0.3}
        for norm, suite in (("linf", "linf: AutoAttack"), ("l2", None))
        for name in ("AutoAttack", "PGD-20")
    ]
    fog = {"name": "fog", "accuracy": [0.5], "seconds": 1.0}
    table = {"severities": [3], "examples": 10, "accuracy": 0.5, "rows": [fog], "pending": []}
    change(run, threat=threats, attacks=rows, corruptions=table)
    head, text = card_of(run)
    names = [metric["name"] for metric in head["model-index"][0]["results"][0]["metrics"]]
    assert "accuracy, corruptions fog at severity 3, 10 images" in names
    assert "accuracy, l2: PGD-20 (l2, eps 1), 10 images" in names
    assert any("worst case (union of linf, eps 0.15 and l2, eps 1)" in name for name in names)
    assert "AutoAttack was not run" in text  # under l2


def test_card_of_a_run_without_attacks_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    change(run, attacks=[], robust_accuracy=None, worst_case_examples=None)
    head, text = card_of(run)
    assert "No attack was run: nothing is known about an adversary." in text
    assert "license" not in head


def test_warning_of_a_check_is_on_the_card(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    warning = {"name": "more steps", "text": "PGD-50 breaks more.", "warns": True, "value": 0.1}
    change(run, checks=[warning])
    _, text = card_of(run)
    assert "**1 of 1 checks warns that the robust accuracy may be too high: more steps.**" in text
    assert "Nothing checked" not in text


class Hub(BaseHTTPRequestHandler):
    """Answers what `push_to_hub` asks of the Hub, and keeps the files of its commit."""

    taken: dict[str, bytes] = {}
    refuses = False

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else b"".join(iter(self._chunk, b""))
        address = f"http://localhost:{self.server.server_address[1]}/me/net"
        if self.path == "/api/repos/create":
            answer: dict[str, Any] = {"url": address}
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": path, **plain} for path in paths]}
        elif "/commit/" in self.path:
            lines = [json.loads(line)["value"] for line in body.splitlines()]
            files = [line for line in lines if "path" in line]
            self.taken.update((file["path"], base64.b64decode(file["content"])) for file in files)
            answer = {"success": True, "commitOid": "1" * 40, "commitUrl": f"{address}/commit/1"}
        else:
            answer = {"errors": [], "warnings": []}  # of the card's metadata
        content = json.dumps({"error": "no such user"} if self.refuses else answer).encode()
        self.send_response(403 if self.refuses else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def _chunk(self) -> bytes:
        """Return the next chunk of a body that is sent in chunks; empty at its end."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return b""
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """Run a stand-in for the Hub, and let huggingface_hub call it."""
    constants = pytest.importorskip(
        "huggingface_hub.constants", reason="needs pip install '.[hub]'"
    )
    server = ThreadingHTTPServer(("localhost", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://localhost:{server.server_address[1]}")
    monkeypatch.setattr(Hub, "taken", {})
    yield Hub
    server.shutdown()


@pytest.mark.slow
def test_run_is_published_without_its_images(tmp_path: Path, hub: type[Hub]) -> None:
    run = make_run(tmp_path / "run")
    card_of(run)
    (run / "model.keras").write_bytes(b"network")
    (run / "saved_model").mkdir()
    (run / "saved_model" / "saved_model.pb").write_bytes(b"graph")
    url = tfrobust.push_to_hub(run, "me/net", token="hf_x")
    assert url.endswith("/me/net/commit/1")
    names = {"config.yaml", "eval.json", "history.csv", "model.keras", "saved_model/saved_model.pb"}
    assert hub.taken.keys() == {"README.md", *names}
    assert hub.taken["README.md"] == (run / "MODEL_CARD.md").read_bytes()
    hub.refuses = True
    with pytest.raises(UserError, match="me/net: expected the Hub to take it: .*403"):
        tfrobust.push_to_hub(run, "me/net", token="hf_x")
    hub.refuses = False


def test_what_cannot_be_published_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"^run: expected a folder with MODEL_CARD.md \(run its"):
        tfrobust.push_to_hub(run, "me/net")
    card_of(run)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"^huggingface_hub: .*pip install 'tfrobust\[hub\]'"):
        tfrobust.push_to_hub(run, "me/net")
