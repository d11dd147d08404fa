"""Pages in Chromium without a network: no error, tables sort, all text is visible and readable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.test_report import CHECKS, change, make_run
from tfrobust.report import rows_of, write_comparison, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install '.[browser]'")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine"),
]
SIZES = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]

# Returns [ratio, text] of the text with the least contrast to its background (WCAG 2).
CONTRAST = """() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let least = [99, ""];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), node = walk.currentNode.parentElement;
    if (!text || node.closest("script") || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), svg = node.closest("svg");
    const plain = ["rgb(0, 0, 0)", "rgb(255, 255, 255)"].includes(style.fill);
    if (svg?.querySelector("image") && plain) continue;  // on a cell of a heat map, not on the page
    const ink = light(parts(svg ? style.fill : style.color));
    const paper = light(behind(node));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < least[0]) least = [ratio, text];
  }
  return least;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Yield a running Chromium."""
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the pages of a run with every section and of a comparison of two such runs."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / name, channels=3) for name in ("one", "other")]
    rng, axis = np.random.default_rng(0), np.linspace(-1.5, 1.5, 7)
    rows = [{"eps": eps, "robust_accuracy": 0.9 - eps, "examples": 10} for eps in (0.0, 0.15, 0.3)]
    pairs = [{"lambda": s, "clean_accuracy": 0.9, "robust_accuracy": s / 2} for s in (0.0, 1.0)]
    image = np.arange(10)
    right = {"clean": image < 8, "PGD-20": image < 4, "Square": image < 3}
    flags = {"index": image, "label": image % 2, **right}
    for run in runs:
        change(run, eps_curve=rows, curve=pairs, checks=CHECKS)
        np.savez(run / "flags.npz", **flags)
        np.savez(run / "valley.npz", **{k: rng.random(5) for k in ("clean", "highest", "lowest")})
        loss = rng.normal(size=(2, 7, 7))
        two = {"index": np.arange(2), "label": np.arange(2), "stands": np.array([True, False])}
        np.savez(run / "landscape.npz", axis=axis, loss=np.abs(loss), margin=loss, **two)
    return {
        "run": write_report(runs[0]),
        "comparison": write_comparison(folder / "both", "both", rows_of(runs), {}),
    }


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path], request: Any) -> Iterator[Any]:
    """Open a page in a window of some width and colour scheme; fail if the page has an error."""
    name, (width, scheme) = request.param
    view = {"width": width, "height": 900}
    context = browser.new_context(viewport=view, color_scheme=scheme, offline=True)
    page, errors, asked = context.new_page(), [], []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(pages[name].as_uri())
    yield page
    assert not errors
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}, asked
    context.close()


ALL = [(name, size) for name in ("run", "comparison") for size in SIZES]


@pytest.mark.parametrize("opened", ALL, indirect=True, ids=str)
def test_page_fits_the_window_and_every_text_is_readable(opened: Any) -> None:
    boxes = opened.eval_on_selector_all(
        "svg, img",
        "all => all.map((one) => one.getBoundingClientRect()).map((b) => [b.width, b.height])",
    )
    assert len(boxes) > 3 and np.min(boxes) > 20
    wide, room = opened.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= room
    ratio, text = opened.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == dark


def column(page: Any, header: str) -> list[str]:
    """Click on a header and return the first cells of the rows of the first table."""
    table = page.locator("table.sortable").first
    table.locator("thead th", has_text=header).click()
    return table.locator("tbody th").all_inner_texts()


@pytest.mark.parametrize("opened", [("run", SIZES[0])], indirect=True)
def test_second_click_on_a_header_reverses_the_order(opened: Any) -> None:
    """Accuracies are 80, 40, 30 and 30, and a tie keeps its order; 3 min 03 s exceeds 3.1 s."""
    assert column(opened, "accuracy") == ["clean", "PGD-20", "Square", "worst case"]
    assert column(opened, "accuracy") == ["Square", "worst case", "PGD-20", "clean"]
    assert column(opened, "time")[:2] == ["Square", "PGD-20"]
    assert column(opened, "time")[:2] == ["PGD-20", "Square"]
    assert column(opened, "evaluation") == ["worst case", "clean", "Square", "PGD-20"]
    head = opened.locator("th[aria-sort]")
    assert head.count() == 1 and head.get_attribute("aria-sort") == "descending"
    head.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
