"""What all pages have in common: one file, every text escaped, readable colours, values written as their key asks."""

from __future__ import annotations

import re

import pytest
import report_pages
from bench_report_page import THREE, Page, result_of
from bench_results import contrast

from msn_deploy.bench.measure import ArmFacts
from msn_deploy.machine.environment import Environment
from msn_deploy.report.bench import render_html
from msn_deploy.report.page import DARK, LIGHT, decimals_for, heading_of, value_text

HOSTILE = "</title></svg><script>alert('x')</script><img src=x onerror=\"a()\">&amp;"


def hostile_bench() -> str:
    levels = {f"{HOSTILE} {n} unfolded": 1.0 for n in range(3)}
    result = result_of(
        levels,
        facts=ArmFacts(file=HOSTILE, others={HOSTILE: HOSTILE}),
        environment=Environment(cpu=HOSTILE, versions={HOSTILE: HOSTILE}),
    )
    stages = [{"network": HOSTILE, HOSTILE: HOSTILE, "bytes": 3}]
    return render_html(result, title=HOSTILE, stages=stages)


PAGES = {
    "bench": (lambda: render_html(result_of(THREE), title="t"), hostile_bench, 10),
    "study": (report_pages.study, lambda: report_pages.study((HOSTILE, "msn"), data=HOSTILE), 5),
    "suite": (report_pages.suite, lambda: report_pages.suite(network=HOSTILE), 2),
}


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_loaded_from_outside(page):
    html = PAGES[page][0]()
    links = [tag["href"] for tag in Page(html).all("a")]
    assert links == (["https://arxiv.org/abs/1907.04003"] if page == "study" else [])
    plain = html.replace("https://arxiv.org/abs/1907.04003", "")
    assert "http" not in plain
    assert "//" not in plain
    assert not re.search(r"url\(|@import|<script|<iframe|<object|\bsrc=", plain)
    assert [tag["href"] for tag in Page(html).all("link")] == ["data:,"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_the_same_each_time(page):
    assert PAGES[page][0]() == PAGES[page][0]()


@pytest.mark.parametrize("page", PAGES)
def test_every_string_is_escaped(page):
    _, make, times = PAGES[page]
    html = make()
    assert "<script" not in html
    assert "<img" not in html
    read = Page(html)  # also shows that no attribute or tag was broken open
    assert not [tag for tag, attributes in read.tags if "onerror" in attributes]
    assert read.text.count("alert('x')") >= times


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_contrast_of_every_text_colour_in_both_themes(palette):
    assert LIGHT.keys() == DARK.keys()
    surfaces = {"paper", "rule", "grid", "zone", "dirty"}
    rgb = {name: bytes.fromhex(colour[1:]) for name, colour in palette.items()}
    for name in rgb.keys() - surfaces:
        assert contrast(rgb[name], rgb["paper"]) >= 4.5, name


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("accuracy", 0.97222, "97.22 %"),
        ("bytes", 0, "0 bytes"),
        ("engine_bytes", 3 << 20, "3 MiB"),
        ("folded", True, "yes"),
        ("x", None, "\N{EN DASH}"),
        ("x", [1.5, None], "1.5, \N{EN DASH}"),
        ("versions", {"numpy": "2.0"}, "numpy 2.0"),
        ("memory_mib", 24105, "24,105"),
    ],
)
def test_values_are_written_as_their_key_asks(key, value, shown):
    assert value_text(key, value) == shown


def test_headings_and_decimals():
    assert heading_of("median_ms") == "Median (ms)"
    assert heading_of("engine_weight_bytes") == "Engine weight"
    assert heading_of("time_utc") == "Time UTC"
    assert [decimals_for([x]) for x in (250.0, 1.3, 0.041)] == [0, 2, 4]
