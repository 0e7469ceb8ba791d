"""The pages in a real browser: phone and desk, light and dark, and printed. Needs Chromium; nothing is downloaded."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import pytest
import report_pages
from bench_results import contrast, realistic

from msn_deploy.report.bench import render_html

playwright = pytest.importorskip("playwright.sync_api", reason="the browser test drives Chromium with playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
QUIET = [
    f"--{name}"
    for name in (
        *("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync"),
    )
]
# Elements that reach outside the window, but for what lies in a region that scrolls by itself.
OUTSIDE = """() => [...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && !e.closest('.scroll, title') && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(e => e.outerHTML.slice(0, 120))"""
# SVG text that is cut off at the edge of its drawing, and text that overlaps other text of the same drawing.
CUT = """() => [...document.querySelectorAll('svg text')].filter(e => {
  const box = e.getBoundingClientRect(), all = e.closest('svg').getBoundingClientRect();
  return box.width && (box.right > all.right + 1 || box.left < all.left - 1 || box.bottom > all.bottom + 1);
}).map(e => e.textContent)"""
# What text is written in, on the page's own colour: [colour, background, text].
TEXT = """() => [...document.querySelectorAll('body *')].filter(e => e.getClientRects().length
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && !e.closest('title')).map(e => {
  const style = getComputedStyle(e);
  return [e.closest('svg') ? style.fill : style.color,
    getComputedStyle(document.documentElement).backgroundColor, e.textContent.slice(0, 40)];
})"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


PAGES = {
    "four arms": lambda: render_html(realistic(), title="Report with all that a result can hold"),
    "one arm": lambda: render_html(realistic(("cnn3_msn",), plain=True), title="The plainest report"),
    "study": report_pages.study,
    "suite": report_pages.suite,
}


@pytest.fixture(scope="module", params=PAGES)
def report(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / f"{request.param}.html"
    path.write_text(PAGES[request.param](), encoding="utf-8")
    return path


class Watched:
    """A page that remembers every request and every complaint."""

    def __init__(self, browser, path, *, width=1280, scheme="light", javascript=True):
        self.requests, self.complaints = [], []
        self.page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=javascript
        )
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri(), wait_until="load")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.page.close()


@pytest.mark.parametrize(("width", "scheme"), [*product((390, 1280), ("light", "dark"))])
def test_it_opens_quietly_fits_and_can_be_read(browser, report, width, scheme):
    with Watched(browser, report, width=width, scheme=scheme) as watched:
        page = watched.page
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert watched.complaints == []
        assert [url for url in watched.requests if not url.startswith("data:,")] == [report.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(CUT) == []
        written = page.evaluate(TEXT)
        assert len(written) > 50
        dark = scheme == "dark"
        for colour, background, text in written:
            assert contrast(rgb(colour), rgb(background)) >= 4.5, text
            assert (sum(rgb(background)) < 200) is dark
        shown = page.locator("svg:visible")
        cut = "panel" if report.stem == "study" else "narrow" if width == 390 else "wide"
        assert {shown.nth(at).get_attribute("class") for at in range(shown.count())} == {cut}


def test_printed_it_is_light_and_nothing_scrolls_out_of_sight(browser, report):
    with Watched(browser, report, width=794, scheme="dark") as watched:
        watched.page.emulate_media(media="print")
        colours = {(rgb(colour), rgb(background)) for colour, background, _ in watched.page.evaluate(TEXT)}
        assert all(sum(background) > 700 for _, background in colours)
        assert all(contrast(*pair) >= 4.5 for pair in colours)
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        regions = "[...document.querySelectorAll('.scroll')]"
        assert watched.page.evaluate(f"{regions}.every(e => e.scrollWidth <= e.clientWidth + 1)")
        # What nobody can open on paper is printed.
        assert (watched.page.locator("details").count() > 0) is report.stem.endswith(("arms", "arm"))
        assert all(
            watched.page.evaluate("[...document.querySelectorAll('details .scroll')].map(e => e.checkVisibility())")
        )


def rgb(text):
    """Turn "rgb(1, 2, 3)" into numbers."""
    return tuple(int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(","))


# Of each text in a card of the picture: what it says, the room on its left and right, its colour, the card's colour.
CARDS = """() => [...document.querySelectorAll('.card')].flatMap(card => {
  const rect = card.querySelector('rect'), box = rect.getBBox();
  return [...card.querySelectorAll('text')].map(text => {
    const its = text.getBBox();
    return [text.textContent, its.x - box.x, box.x + box.width - its.x - its.width, getComputedStyle(text).fill,
      getComputedStyle(rect).fill];
  });
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_of_the_pipeline_keeps_its_words_in_their_cards(browser, scheme):
    path = Path(__file__).resolve().parents[2] / "docs" / "images" / "pipeline.svg"
    with Watched(browser, path, width=390, scheme=scheme) as watched:
        texts = watched.page.evaluate(CARDS)
        assert {"train", "export", "calibrate", "build-engine", "bench"} <= {text for text, *_ in texts}
        for text, left, right, colour, background in texts:
            assert min(left, right) >= 8, text
            assert contrast(rgb(colour), rgb(background)) >= 4.5, text
            assert (sum(rgb(background)) < 200) is (scheme == "dark")
