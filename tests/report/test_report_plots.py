"""Charts of lines, and what every drawing is put together from."""

from __future__ import annotations

import re

import pytest

from msn_deploy.report.plots import Panel, line_plot
from msn_deploy.report.svg import Scale, shortened, tick_text

LOSS = Panel(
    title="Loss", x="epoch", y="nats", lines={"bn": [(1, 2.0), (2, 0.1)], "msn": [(1, 3.0), (2, 0.2)]}, log=True
)


def points_of(drawing: str, colour: int) -> list[tuple[float, float]]:
    path = re.search(rf'<path d="M([^"]*)" class="curve l{colour}"/>', drawing)[1]
    return [tuple(map(float, point.split())) for point in path.split("L")]


def test_a_chart_says_what_it_shows_and_marks_the_points_of_short_lines():
    drawing = line_plot(LOSS)
    for word in ("Loss", "epoch", "nats, logarithmic", "bn", "msn"):
        assert f">{word}</text>" in drawing, word
    assert 'aria-label="Loss. bn: 0.1 at the end; msn: 0.2 at the end"' in drawing
    assert len(re.findall(r'<circle [^>]*class="c0"', drawing)) == 2
    long = Panel(title="t", x="step", y="y", lines={"a": [(at, at) for at in range(15)]})
    assert "<circle" not in line_plot(long)


def test_lines_lie_where_their_values_are():
    (left, top), (right, bottom) = points_of(line_plot(LOSS), 0)
    (_, other_top), (_, other_bottom) = points_of(line_plot(LOSS), 1)
    assert left < right
    assert other_top < top < other_bottom < bottom
    # Equal ratios are equal distances: 3 to 2 as 0.3 to 0.2, so the second pair (2:1) lies further apart.
    assert (bottom - other_bottom) / (top - other_top) == pytest.approx(1.7095, abs=0.02)


@pytest.mark.parametrize(
    "line",
    [[], [(3, 0.0)], [(0, 1e-7), (9, 2e-7)], [(0, float("nan")), (1, float("inf")), (2, 0.5)], [(0, -2.0), (1, 4.0)]],
    ids=["none", "one", "tiny", "not finite", "negative"],
)
@pytest.mark.parametrize("log", [False, True])
def test_any_line_is_drawn_inside(line, log):
    drawing = line_plot(Panel(title="t", x="step", y="y", lines={"a": line}, log=log))
    assert "nan" not in drawing
    assert "inf" not in drawing
    height = float(re.search(r'viewBox="0 0 340 (\d+)"', drawing)[1])
    for at, up in points_of(drawing, 0) if "<path" in drawing else []:
        assert 0 < at < 340
        assert 0 < up < height


def test_labels_are_shortened_in_the_middle():
    short = shortened("a_long_name_that_ends_in_7", 90)
    assert short.startswith("a_")
    assert short.endswith("7")
    assert len(short) <= 10


def test_ticks_are_round_and_inside():
    ticks = Scale(low=0.93, high=1.47, start=0, end=100).ticks(8)
    assert ticks == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])
    assert [tick_text(t, ticks) for t in ticks] == ["1.0", "1.1", "1.2", "1.3", "1.4"]
    log = Scale(low=0.1, high=12, start=0, end=100, log=True)
    assert log.ticks(8) == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5, 10])
    assert log(0.1) == 0
    assert log(12) == 100
    assert (log(0.001), log(1000)) == (0, 100), "what lies beyond the axis is drawn at its end"
