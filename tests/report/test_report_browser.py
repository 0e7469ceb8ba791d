"""The pages in a real browser: phone and desk, light and dark, and printed. Needs Chromium; nothing is downloaded."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import report_pages
from bench_results import contrast, realistic
from browser import CUT, OUTSIDE, TEXT, Watched, a_browser, needs_chromium, rgb

from msn_deploy.report.bench import render_html

pytestmark = [pytest.mark.slow, needs_chromium]
_ = a_browser  # a fixture


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


@pytest.mark.parametrize(("width", "scheme"), [*product((390, 1280), ("light", "dark"))])
def test_it_opens_quietly_fits_and_can_be_read(browser, report, width, scheme):
    with Watched(browser, report.as_uri(), width=width, scheme=scheme) as watched:
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
    with Watched(browser, report.as_uri(), width=794, scheme="dark") as watched:
        watched.page.emulate_media(media="print")
        colours = {(rgb(colour), rgb(background)) for colour, background, _ in watched.page.evaluate(TEXT)}
        assert all(sum(background) > 700 for _, background in colours)
        assert all(contrast(*pair) >= 4.5 for pair in colours)
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        regions = "[...document.querySelectorAll('.scroll')]"
        assert watched.page.evaluate(f"{regions}.every(e => e.scrollWidth <= e.clientWidth + 1)")
        # What nobody can open on paper is printed.
        assert (watched.page.locator("details").count() > 0) is (report.stem != "suite")
        assert all(
            watched.page.evaluate("[...document.querySelectorAll('details .scroll')].map(e => e.checkVisibility())")
        )


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
    with Watched(browser, path.as_uri(), width=390, scheme=scheme) as watched:
        texts = watched.page.evaluate(CARDS)
        assert {"train", "export", "calibrate", "build-engine", "bench"} <= {text for text, *_ in texts}
        for text, left, right, colour, background in texts:
            assert min(left, right) >= 8, text
            assert contrast(rgb(colour), rgb(background)) >= 4.5, text
            assert (sum(rgb(background)) < 200) is (scheme == "dark")
