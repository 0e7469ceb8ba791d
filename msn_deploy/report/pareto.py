"""Which model is worth having? Accuracy against latency against size, and which models no other beats in all three."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from msn_deploy.bench.result import ArmResult, BenchResult
from msn_deploy.bench.stats import SAME_WITHIN
from msn_deploy.report import svg
from msn_deploy.report.plots import axis, both_cuts
from msn_deploy.report.tables import COLOURS, bytes_text, decimals_for, figure, named, section, table

_LARGEST_PX, _SMALLEST_PX = 17.0, 4.0  # radius of a marker
_LINE_PX = 16.0  # between labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One arm: accuracy from 0 to 1, median latency in ms, size of the file in bytes (None: not known)."""

    name: str
    index: int
    accuracy: float
    ms: float
    size_bytes: int | None


def points_of(arms: Sequence[ArmResult]) -> list[Point]:
    """Return the arms whose facts tell an accuracy; "bytes" or "size_bytes" is the size."""
    return [
        Point(
            name=arm.name,
            index=index,
            accuracy=float(arm.facts["accuracy"]),
            ms=arm.median_ms,
            size_bytes=arm.facts.get("bytes") or arm.facts.get("size_bytes"),
        )
        for index, arm in enumerate(arms)
        if isinstance(arm.facts.get("accuracy"), Real) and math.isfinite(arm.facts["accuracy"])
    ]


def front_of(points: Sequence[Point]) -> set[str]:
    """Return the names that no other point dominates: as accurate, as fast and as small, and better in one of these.

    Latencies within SAME_WITHIN count as equal, as they do for verdicts. Sizes count where all are known.
    """
    sized = all(point.size_bytes is not None for point in points)
    return {point.name for point in points if not any(_dominates(other, point, sized=sized) for other in points)}


def _dominates(one: Point, other: Point, *, sized: bool) -> bool:
    sizes = ((one.size_bytes or 0), (other.size_bytes or 0)) if sized else (0, 0)
    as_good = one.accuracy >= other.accuracy and one.ms <= other.ms * (1 + SAME_WITHIN) and sizes[0] <= sizes[1]
    better = one.accuracy > other.accuracy or one.ms * (1 + SAME_WITHIN) < other.ms or sizes[0] < sizes[1]
    return as_good and better


def pareto_section(result: BenchResult) -> str:
    """Return the plot and its table; nothing where fewer than two arms have an accuracy."""
    points = points_of(result.arms)
    if len(points) < 2:
        return ""
    front = front_of(points)
    digits = decimals_for(point.ms for point in points)
    rows = [
        [
            named(point.name, point.index),
            f"{100 * point.accuracy:.2f}",
            f"{point.ms:.{digits}f}",
            _size_text(point),
            "yes" if point.name in front else "no",
        ]
        for point in sorted(points, key=lambda point: -point.accuracy)
    ]
    return section(
        "What the speed costs",
        figure(
            both_cuts(lambda width, css: pareto_plot(points, width, css)),
            "Up is more accurate, left is faster, a smaller disc is a smaller file. Filled: on the Pareto front, that "
            "is, no other model here is as accurate, as fast (within 2 %) and as small, and better in one of them. "
            "Hollow: some other model is. Neither axis need start at zero.",
        ),
        table(
            "Accuracy, latency and size",
            ("Model", "Accuracy (%)", "Median (ms)", "Size", "On the front"),
            rows,
            numeric=(False, True, True, True, False),
        ),
    )


def pareto_plot(points: Sequence[Point], width: float, css: str) -> str:
    """Draw a disc per arm whose area is the size of its file; labels stand in a column of their own order on the right.

    On a narrow page they stand below, where there is room, and a number tells which disc they mean.
    """
    narrow = width < 500
    bottom = 250.0
    x = _scale([point.ms for point in points], start=58, end=width - (22 if narrow else 256))
    y = _scale([100 * point.accuracy for point in points], start=bottom - 22, end=24)
    front = front_of(points)
    parts = axis(x, 10.0, bottom, "median latency (ms)", about=5 if not narrow else 4)
    ticks = y.ticks(5)
    for tick in ticks:
        parts.append(svg.line(x.start, y(tick), x.end, y(tick), css="grid"))
        parts.append(svg.text(x.start - 8, y(tick) + 4, svg.tick_text(tick, ticks), css="tick", anchor="end"))
    parts.append(svg.text(0, 14, "%", css="tick"))
    ranked = sorted(points, key=lambda point: -point.accuracy)
    largest = max((point.size_bytes or 0) for point in points)
    # The largest first, so that small discs lie on top.
    for point in sorted(points, key=lambda point: -(point.size_bytes or 0)):
        share = math.sqrt((point.size_bytes or 0) / largest) if largest else 0.0
        look = "disc" if point.name in front else "hollow"
        at = (x(point.ms), y(100 * point.accuracy))
        radius = max(_SMALLEST_PX, _LARGEST_PX * share)
        parts.append(svg.dot(*at, radius, css=f"{look} c{point.index % COLOURS}"))
        if narrow:
            parts.append(svg.text(at[0] + radius + 4, at[1] + 4, str(1 + ranked.index(point)), css="figure"))
    if narrow:
        places = [bottom + 66 + 2.4 * _LINE_PX * number for number in range(len(ranked))]
        left, room, height = 0.0, width, places[-1] + 26
    else:
        places = _spread([y(100 * point.accuracy) - 4 for point in ranked], apart=2.3 * _LINE_PX)
        left, room, height = x.end + 34, width - x.end - 36, max(bottom + 42, places[-1] + 26)
    for number, (point, at_y) in enumerate(zip(ranked, places, strict=True), start=1):
        colour, mark = point.index % COLOURS, f"{number}  " if narrow else ""
        if not narrow:
            parts.append(svg.line(x(point.ms), y(100 * point.accuracy), left - 6, at_y + 4, css=f"leader c{colour}"))
        parts.append(svg.text(left, at_y, svg.shortened(mark + point.name, room), css=f"name t{colour}"))
        words = f"{100 * point.accuracy:.2f} %, {point.ms:.3g} ms, {_size_text(point)}"
        parts.append(svg.text(left, at_y + _LINE_PX, words, css="faint"))
    label = "Accuracy, latency and size. " + "; ".join(
        f"{point.name}: {100 * point.accuracy:.2f} %, {point.ms:.3g} ms, {_size_text(point)}"
        + (", on the front" if point.name in front else "")
        for point in ranked
    )
    return svg.drawing(width, height, label, parts, css=css)


def _scale(values: Sequence[float], *, start: float, end: float) -> svg.Scale:
    low, high = min(values), max(values)
    pad = 0.18 * (high - low) or 0.05 * abs(high) or 1.0
    return svg.Scale(low=low - pad, high=high + pad, start=start, end=end)


def _spread(wanted: Sequence[float], *, apart: float) -> list[float]:
    """Move places down, in order, until neighbours do not overlap."""
    placed: list[float] = []
    for at in wanted:
        placed.append(max(at, placed[-1] + apart) if placed else max(at, 14.0))
    return placed


def _size_text(point: Point) -> str:
    return "size unknown" if point.size_bytes is None else bytes_text(point.size_bytes)
