import re

import pytest
from bench_report_page import THREE, result_of
from bench_results import NAMES, realistic

from msn_deploy.report.bench import front_of, render_html
from msn_deploy.report.plots import Point


def test_accuracy_against_latency_and_size_where_two_arms_have_an_accuracy():
    html = render_html(realistic(), title="t")
    part = html[html.index("What the speed costs") : html.index("Where the time goes")]
    filled, hollow = (set(re.findall(rf'class="{look} c(\d)"', part)) for look in ("disc", "hollow"))
    assert (filled, hollow) == ({"2", "3"}, {"0", "1"})
    radii = {colour: float(r) for r, colour in re.findall(r'r="([\d.]+)" class="(?:disc|hollow) c(\d)"', part)}
    assert radii["0"] == pytest.approx(17)
    assert (radii["3"] / radii["0"]) ** 2 == pytest.approx(860 / 3400, rel=1e-3)
    rows = re.findall(r"<tr><th scope=.row.*?</tr>", part)
    assert [("densenet_<wbr>producer" in rows[0]), "94.37" in rows[0], "839.8 KiB" in rows[3]] == [True] * 3
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
