"""Pages in a real browser: Chromium, driven by playwright, that remembers what a page asks for and complains about."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason="needs Chromium and playwright"
)
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

# The same for a page with colours that are partly clear, and grounds of its own: of the text of its article.
BLENDED = """() => {
  const parts = text => { const all = text.match(/[\\d.]+/g).map(Number); return all.length < 4 ? [...all, 1] : all; };
  const over = (top, below) => [0, 1, 2].map(at => top[at] * top[3] + below[at] * (1 - top[3]));
  const ground = e => {
    if (!e) return [255, 255, 255];
    const own = parts(getComputedStyle(e).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, ground(e.parentElement));
  };
  return [...document.querySelectorAll('article *')].filter(e => e.getClientRects().length
      && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
      && getComputedStyle(e).opacity === '1').map(e => {
    const paper = ground(e);
    return [over(parts(getComputedStyle(e).color), paper), paper, e.textContent.slice(0, 40)];
  });
}"""


@pytest.fixture(scope="module", name="browser")
def a_browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


class Watched:
    """A page that remembers every request and every complaint."""

    def __init__(self, browser, address, *, width=1280, scheme="light", javascript=True):
        self.requests, self.complaints = [], []
        self.page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=javascript
        )
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address, wait_until="load")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.page.close()


def rgb(text):
    """Turn "rgb(1, 2, 3)" into numbers."""
    return tuple(int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(","))
