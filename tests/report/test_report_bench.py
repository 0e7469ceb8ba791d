"""The page of a benchmark: what it says, and that its drawings show the numbers."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import pytest
from bench_report_page import THREE, Page, result_of
from bench_results import NAMES, loaded, realistic

from msn_deploy.bench.measure import ArmFacts
from msn_deploy.pipeline.bench import write_html
from msn_deploy.report.bench import front_of, render_html
from msn_deploy.report.plots import Point, _round_above


def test_page_is_well_formed_and_says_what_was_found():
    page = Page(render_html(result_of(THREE), title="Three rows"))
    text = page.text
    assert "Three rows" in text
    assert re.search(r"BN folded\s+is faster than BN unfolded: it takes 2[23]\.\d % less time", text)
    assert re.search(r"MSN folded\s+and BN folded are equally fast", text)
    assert "cd" * 32 in text
    assert "a processor" in text


def test_names_of_files_that_are_not_text_are_written_out(tmp_path):
    write_html(result_of(THREE), tmp_path / "page.html", [], title=os.fsdecode(b"n\xff.onnx"))
    assert "n\\udcff.onnx" in Page((tmp_path / "page.html").read_text()).text


def test_every_plot_is_described_and_has_its_table():
    page = Page(render_html(result_of(THREE), title="t"))
    drawings = page.all("svg")
    assert len(drawings) == 6  # three plots, each in a wide and a narrow cut
    assert {d["class"] for d in drawings} == {"wide", "narrow"}
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert all(name in drawing["aria-label"] for name in THREE if name != "BN unfolded")
    captions = page.text
    for caption in ("Milliseconds per query", "Ratio of latencies; below 1 is faster", "in each tenth of the run"):
        assert caption in captions
    assert all("aria-label" in region for region in page.all("div") if region.get("class") == "scroll")


def test_drawn_positions_lie_inside_their_drawing():
    wild = {"a": 0.01, "b": 1.0, "c": 250.0}
    results = [result_of(levels, noise=0.3) for levels in (THREE, wild, {"only": 2.0})]
    for result in (*results, realistic()):
        html = render_html(result, title="t")
        for width, body in re.findall(r'<svg [^>]*viewBox="0 0 (\d+) \d+"[^>]*>(.*?)</svg>', html, re.S):
            places = [float(x) for x in re.findall(r'\b(?:x|x1|x2|cx)="(-?[\d.]+)"', body)]
            assert places
            assert min(places) >= 0
            assert max(places) <= float(width)


def test_a_hundred_thousand_samples_stay_below_the_size_limit():
    result = realistic(rounds=500, queries=25, dirty=380)
    assert sum(arm.queries for arm in result.arms) == 100_000
    assert result.validity.dirty_blocks == 380
    assert len(render_html(result, title="t").encode()) < 500_000  # of 1.5 MB that it may take


def test_few_queries_show_a_dash_and_say_why():
    html = render_html(result_of(THREE, queries=1), title="t")
    assert "p99 needs 662" in Page(html).text
    assert "p99 needs 662" not in Page(render_html(result_of(THREE), title="t")).text


def test_one_arm_needs_no_ratio():
    text = Page(render_html(result_of({"only": 2.0}), title="t")).text
    assert re.search(r"only\s+answers in 2\.0\d ms", text)
    assert "How much faster" not in text


@pytest.mark.parametrize(("level", "words"), [(1.2, "more time"), (5.0, "5 times as long"), (0.2, "0.2 times as long")])
def test_findings_by_verdict(level, words):
    assert words in Page(render_html(result_of({"a": 1.0, "b": level}, noise=1e-4), title="t")).text


def test_an_unsettled_comparison_says_so():
    text = Page(render_html(result_of({"a": 1.0, "b": 1.015}, noise=0.2, queries=5), title="t")).text
    assert "is not settled" in text


@pytest.mark.parametrize("level", [1.0, 1.015, 1.3])
def test_one_graph_gets_no_verdict_its_ratio_is_the_noise(level):
    facts = ArmFacts(graph="ab" * 32)
    result = result_of({"a": 1.0, "b": level}, noise=0.01, facts=facts)
    html = render_html(result, title="t")
    text = Page(html).text
    ratio = result.arms[1].ratio
    assert re.search(rf"b\s+and a are the same graph. .*{ratio:.3f}, .* noise .* {abs(100 * (ratio - 1)):.1f}\s%", text)
    assert "not settled" not in text
    assert not re.search(r'class="[^"]*\b(SAME|FASTER|SLOWER|AMBIGUOUS)"', html)


@pytest.mark.parametrize("other", [{"precision": "int8"}, {"graph": "cd" * 32}, {"in_flight": 2}, {"changed": True}])
def test_another_graph_or_another_way_to_run_it_is_compared(other):
    facts = ArmFacts(graph="ab" * 32)
    assert facts.same_graph(replace(facts))
    assert not facts.same_graph(replace(facts, **other))
    assert not ArmFacts().same_graph(ArmFacts())


def test_stages_become_columns_by_their_keys():
    stages = [
        {"network": "MSN", "stage": "ONNX", "accuracy": 0.98333, "bytes": 2048, "engine_weight_bytes": None},
        {"network": "MSN", "stage": "INT8", "accuracy": 0.98, "bytes": 512, "latency_ms": 0.5},
    ]
    html = render_html(result_of(THREE), title="t", stages=stages)
    part = html[html.index("Each stage") :]
    headings = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', part)[:6]
    assert headings == ["Network", "Stage", "Accuracy", "Size", "Engine weight", "Latency (ms)"]
    for shown in ("98.33 %", "98.00 %", "2 KiB", "512 bytes", "width:25.0%"):
        assert shown in part
    assert "Each stage" not in render_html(result_of(THREE), title="t")


def test_the_page_opens_with_accuracy_size_and_latency_of_each_model():
    result = result_of(THREE)
    arms = tuple(
        replace(arm, facts=ArmFacts(accuracy=0.9 + at / 100, bytes=1024 * (at + 1) if at else None))
        for at, arm in enumerate(result.arms)
    )
    html = render_html(replace(result, arms=arms), title="t")
    tiles = Page(html[html.index('<div class="tiles">') : html.index("</header>")]).text
    assert tiles.split("Accuracy")[1].split("Size")[0].count("%") == 3
    assert "92.00 %" in tiles
    assert "3 KiB" in tiles
    assert tiles.split("Size")[1].split("Latency")[0].count("KiB") == 2, "an unknown size has no line"
    assert f"{result.arms[0].median_ms:.3g}" in tiles.split("Latency")[1]
    many = result_of({f"n{at}": 1.0 + at for at in range(7)})
    assert 'class="tiles"' not in render_html(many, title="t")


def test_tiles_of_stages_go_from_the_first_to_the_last():
    stages = [
        {"network": "MSN", "stage": "checkpoint", "accuracy": 0.99, "bytes": 4096, "median_ms": None},
        {"network": "MSN", "stage": "ONNX", "accuracy": 0.99, "bytes": 4000, "median_ms": 0.5},
        {"network": "MSN", "stage": "INT8", "accuracy": 0.98, "bytes": 1024, "median_ms": None},
    ]
    html = render_html(result_of(THREE), title="t", stages=stages)
    tiles = " ".join(Page(html[html.index('<div class="tiles">') : html.index("</header>")]).text.split())
    assert "Accuracy MSN checkpoint \u2192 INT8 99.00 % \u2192 98.00 %" in tiles
    assert "Size MSN checkpoint \u2192 INT8 4 KiB \u2192 1 KiB" in tiles
    assert "Latency, median MSN ONNX 0.500 ms" in tiles


def test_facts_that_are_not_known_are_left_out():
    html = render_html(result_of(THREE), title="t")
    tables = re.findall(r'<table class="facts">.*?</table>', html, re.S)
    assert tables
    assert not [row for table in tables for row in re.findall(r"<td>\s*\u2013\s*</td>", table)]


@pytest.mark.parametrize(("share", "edge"), [(0.2, 1), (1.0, 1), (3.1, 5), (5.0, 5), (69.0, 100), (101, 200)])
def test_the_axis_of_the_drift_ends_at_a_round_number(share, edge):
    assert _round_above(share) == edge


def test_an_invalid_run_says_so_before_any_finding():
    html = render_html(realistic(dirty=200), title="t")
    assert "invalid: 200 of 480 blocks" in Page(html).text
    assert html.index("invalid: 200") < html.index("is faster than")


def test_the_slowest_layers_of_each_arm_as_bars_with_their_table():
    result = realistic()
    html = render_html(result, title="t")
    part = html[html.index("Where the time goes") : html.index("What one query costs")]
    drawings = re.findall(r'<svg class="wide".*?</svg>', part, re.S)
    assert len(drawings) == len(NAMES)
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"[^>]*class="layer c0"/>', drawings[0])]
    layers = result.arms[0].layers.layers
    assert len(widths) == 12
    assert widths == pytest.approx([290 * layer.us / layers[0].us for layer in layers[:12]], abs=0.1)
    text = Page(html).text
    assert "590 MFLOP \N{MIDDLE DOT} 14.5 MB moved \N{MIDDLE DOT} 40.7 FLOP/B" in text
    assert "without the operations of Softmax" in text
    rest = sum(layer.us for layer in layers[12:])
    assert f"those that are not shown {rest:,.0f} \N{MICRO SIGN}s." in text
    row = re.findall(r"<tr>(<th scope=.row.>.*?)</tr>", part.replace("<wbr>", ""))[1]
    assert "node_features_denseblock_0_conv2d_1<" in row
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    assert cells == [
        "Conv",
        f"{layers[1].us:,.0f}",
        f"{100 * layers[1].share:.1f}",
        "FP16",
        "node_conv2d_1, node_relu_1",
    ]
    assert "Where the time goes" not in render_html(realistic(plain=True), title="t")


def test_energy_has_its_interval_and_its_sensor():
    text = Page(render_html(realistic(), title="t")).text
    assert "10.04 9.65 to 10.62 4.12 9.32" in text
    assert "VDD_IN, a value per 16 ms; on-module sensor, indicative." in text
    assert "What one query costs" not in render_html(result_of(THREE), title="t")


def bands_of(html):
    """The shaded bands of the wide drift plot: (left, right) in px, once per arm."""
    found = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="[\d.]+" class="dirty"/>', html)
    spans = [(float(left), float(left) + float(width)) for left, width in found]
    return spans[: len(spans) // 2]


def test_rates_under_load_have_a_table_of_their_own():
    text = Page(render_html(loaded(), title="t")).text
    assert "4 queries in flight at a time" in text
    assert "969 960 to 978 517 1.873 1.23 346" in " ".join(text.split())
    assert "Under load" not in render_html(realistic(), title="t")


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


def test_accuracy_against_latency_and_size_where_two_arms_have_an_accuracy():
    html = render_html(realistic(), title="t")
    part = html[html.index("What the speed costs") : html.index("Where the time goes")]
    filled, hollow = (set(re.findall(rf'class="{look} c(\d)"', part)) for look in ("disc", "hollow"))
    assert (filled, hollow) == ({"2", "3"}, {"0", "1"})
    radii = {colour: float(r) for r, colour in re.findall(r'r="([\d.]+)" class="(?:disc|hollow) c(\d)"', part)}
    assert radii["0"] == pytest.approx(17)
    assert (radii["3"] / radii["0"]) ** 2 == pytest.approx(860 / 3400, rel=1e-3)
    rows = re.findall(r"<tr><th scope=.row.*?</tr>", part)
    assert [("densenet_<wbr>producer" in rows[0]), "94.37" in rows[0], "840 KiB" in rows[3]] == [True] * 3
    assert [row.endswith("<td>yes</td></tr>") for row in rows] == [True, False, False, True]
    assert "What the speed costs" not in render_html(result_of(THREE), title="t")
    alone = realistic(NAMES[:1])
    assert alone.arms[0].facts.accuracy == 0.9421
    assert "What the speed costs" not in render_html(alone, title="t")


def test_the_front_is_what_nothing_beats_in_all_three():
    def point(name, accuracy, ms, size_bytes=10):
        return Point(name=name, index=0, accuracy=accuracy, ms=ms, size_bytes=size_bytes)

    best, slow, worse, small = (
        point("best", 0.9, 1.0),
        point("slow", 0.9, 1.1),
        point("worse", 0.8, 1.0),
        point("small", 0.7, 5.0, 1),
    )
    assert front_of([best, slow, worse, small]) == {"best", "small"}
    nearly = point("nearly", 0.9, 1.015)
    assert front_of([best, nearly]) == {"best", "nearly"}, "within 2 % two latencies are equal"
    finer = point("finer", 0.95, 1.01)
    assert front_of([best, finer]) == {"finer"}, "and more accurate then decides"
    unknown = point("unknown", 0.95, 9.0, None)
    assert front_of([best, small, unknown]) == {"best", "unknown"}, "sizes count where all are known"
