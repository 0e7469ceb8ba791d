import re

import pytest
from bench_report_page import Page
from bench_results import NAMES, realistic

from msn_deploy.report.bench import render_html


def bands_of(html):
    """The shaded bands of the wide drift plot: (left, right) in px, once per arm."""
    found = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="[\d.]+" class="dirty"/>', html)
    spans = [(float(left), float(left) + float(width)) for left, width in found]
    return spans[: len(spans) // 2]


def test_dirty_blocks_are_shaded_over_all_arms_and_counted_in_the_table():
    result = realistic(dirty=32)
    html = render_html(result, title="t")
    bands = bands_of(html)
    assert len(bands) == len(NAMES)  # one spell, shaded in each arm's panel
    (left, right), *others = bands
    assert others == [(left, right)] * 3
    end_s = max(max(arm.block_start_ms) for arm in result.arms)
    starts = [
        at for arm in result.arms for at, cause in zip(arm.block_start_ms, arm.block_causes, strict=True) if cause
    ]
    assert left == pytest.approx(52 + 643 * min(starts) / end_s, abs=1)
    assert right >= 52 + 643 * max(starts) / end_s - 1
    assert html.count('class="dropped c0"') == 2 * sum(cause is not None for cause in result.arms[0].block_causes)
    text = Page(html).text
    assert "Shaded: the times of the 32 blocks, of 480, that were dropped" in text
    assert "32 blocks dropped" in Page(html).all("svg")[-1]["aria-label"]
    part = html[html.index(">Dropped blocks<") :]
    lost = [int(row.split('<td class="n">')[-1].split("<")[0]) for row in part.split("</tr>")[1:11]]
    assert sum(lost) == 32
    clean = render_html(realistic(plain=True), title="t")
    assert bands_of(clean) == []
    assert ">Dropped blocks<" not in clean


def test_a_band_is_as_wide_as_its_block_took_and_dots_lie_around_the_clean_middle():
    result = realistic(NAMES[:1], rounds=12, queries=100, dirty=1)
    html = render_html(result, title="t")
    (arm,) = result.arms
    lost = [at for at, cause in enumerate(arm.block_causes) if cause]
    end = max(arm.block_start_ms)
    took = arm.block_start_ms[lost[-1]] + sum(arm.samples_ns[lost[-1]]) / 1e6 - arm.block_start_ms[lost[0]]
    ((left, right),) = bands_of(html)
    assert right - left == pytest.approx(643 * took / end, abs=0.3)
    low, high = map(float, re.search(r"own middle. densenet_bn_unfolded (\S+) to (\S+) %", html).groups())
    assert -5 < low < 0 < high < 5


def test_dropped_blocks_have_no_part_in_the_hill():
    result = realistic(NAMES[:1], dirty=12)
    slowest = max(max(block) for block in result.arms[0].samples_ns)
    clean = [
        block for block, cause in zip(result.arms[0].samples_ns, result.arms[0].block_causes, strict=True) if not cause
    ]
    said = re.search(r"slower, up to ([\d.]+)", render_html(result, title="t"))[1]
    assert float(said) == pytest.approx(max(map(max, clean)) / 1e6, abs=0.006)
    assert slowest / 1e6 > float(said) + 0.01
