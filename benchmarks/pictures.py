"""Draw the pictures of the docs from recorded results; each holds the SHA-256 of the file that it shows.

    python benchmarks/pictures.py report REPORT.html BENCH.json     the page of `make demo`, by Chromium
    python benchmarks/pictures.py study                             the drift of the means, of VGG7

`report` also keeps BENCH.json as benchmarks/results/<machine>/demo-bench.json, which the docs quote.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image, PngImagePlugin

from msn_deploy.core.artifacts import atomic_file
from msn_deploy.report.curves import line_chart
from msn_deploy.report.plots import Panel

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "epyc-2-cores"
IMAGES = ROOT / "docs" / "images"
SHOWN = {"report.png": RESULTS / "demo-bench.json", "study-vgg7.png": RESULTS / "study-vgg7.json"}
"""What each picture shows."""
MADE_FROM = "Source"
"""The key of a PNG file's text under which the digest stands."""
_WIDTH_PX, _HEIGHT_PX = 800, 1000


def main() -> None:
    match sys.argv[1:]:
        case ["report", page, result]:
            shutil.copyfile(result, SHOWN["report.png"])
            keep("report.png", screenshot(Path(page)))
        case ["study"]:
            keep("study-vgg7.png", drift(json.loads(SHOWN["study-vgg7.png"].read_text(encoding="utf-8"))))
        case _:
            sys.exit(__doc__)


def keep(name: str, picture: bytes) -> None:
    """Write a picture with the digest of what it shows."""
    text = PngImagePlugin.PngInfo()
    text.add_text(MADE_FROM, digest(SHOWN[name]))
    with atomic_file(IMAGES / name) as partial:
        Image.open(BytesIO(picture)).convert("RGB").quantize(128).save(partial, "PNG", pnginfo=text, optimize=True)


def digest(result: Path) -> str:
    """Return the SHA-256 of a recorded result."""
    return hashlib.sha256(result.read_bytes()).hexdigest()


def screenshot(page: Path) -> bytes:
    """Return how a report begins in a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": _WIDTH_PX, "height": _HEIGHT_PX}, device_scale_factor=2)
        shown.goto(page.absolute().as_uri())
        picture = shown.screenshot()
        browser.close()
    return picture


def drift(study: dict) -> bytes:
    """Return by how much the means of the layers drift with each norm, over the training."""
    lines = {
        norm: [(window["step"], sorted(window["drift"])[len(window["drift"]) // 2]) for window in found["windows"]]
        for norm, found in study["norms"].items()
    }
    title = "Mean drift, median over the layers"
    return line_chart([Panel(title=title, x="step", y="|mean| / deviation of a channel", lines=lines)])


if __name__ == "__main__":
    main()
