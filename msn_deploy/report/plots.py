"""The drawings of all pages: latencies, ratios, drift, layers, accuracy against latency, and lines over steps.

A drawing of a benchmark comes in two cuts, for a wide and a narrow page; a chart of lines is small enough for both.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from msn_deploy.bench.bootstrap import Floats
from msn_deploy.bench.layers import LayerProfile
from msn_deploy.bench.result import ArmResult, BenchResult
from msn_deploy.bench.stats import SAME_WITHIN, Ratio, block_medians
from msn_deploy.core.errors import size_text
from msn_deploy.report import svg
from msn_deploy.report.page import COLOURS, decimals_for

WIDE_PX, NARROW_PX = 700.0, 350.0
_DOTS = 200  # per arm; more would neither be seen nor leave the page small
_BINS = 120  # at most; few queries get fewer, or the hill would be a comb
_QUERIES_SHOWN = 0.95  # of the queries; an axis that reaches the slowest one would squeeze what tells arms apart
LAYERS_SHOWN = 12  # per arm
_PANEL_PX = 86.0  # of one arm's drift
_NARROWEST_PX = 2.0  # of a shaded band, and of a gap between two
_ROW_PX = 24.0  # of one layer
_SMALL_PX, _PLAIN_PX = 10.5, 12.25  # 12 and 14 px and not bold: what svg.shortened counts with is bold
_LARGEST_PX, _SMALLEST_PX = 17.0, 4.0  # radius of a disc
_LINE_PX = 16.0  # between labels
_FEW_POINTS = 15  # of a line, below which each is marked
_CHART_PX = 340.0  # width of a chart of lines; two stand side by side on a wide page


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row of the ratio plot; colour: number of the arm whose colour it wears.

    where: said instead of what the arm is compared with, if that is the same in every row.
    same_graph: whether both arms run the same graph. The ratio is then the noise of the run, without a verdict.
    """

    arm: str
    other: str
    ratio: Ratio
    colour: int
    where: str = ""
    same_graph: bool = False

    @property
    def verdict(self) -> str:
        """What the comparison says."""
        return "same graph" if self.same_graph else self.ratio.verdict

    @property
    def text(self) -> str:
        """The ratio with its interval, with the decimals that the interval's width deserves."""
        digits = 2 if self.ratio.high - self.ratio.low > 0.03 else 3
        return f"{self.ratio.ratio:.{digits}f} [{self.ratio.low:.{digits}f}, {self.ratio.high:.{digits}f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One arm: accuracy from 0 to 1, median latency in ms, size of the file in bytes (None: not known)."""

    name: str
    index: int
    accuracy: float
    ms: float
    size_bytes: int | None

    @property
    def size(self) -> str:
        """The size in words."""
        return "size unknown" if self.size_bytes is None else size_text(self.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart: named lines of (x, y) points. log: a logarithmic y axis."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log: bool = False


def both_cuts(draw: Callable[[float, str], str]) -> str:
    """Draw for a wide and a narrow page; the page shows the one that fits, so text keeps its size on a phone."""
    return draw(WIDE_PX, "wide") + draw(NARROW_PX, "narrow")


def comparisons_with(result: BenchResult) -> list[Comparison]:
    """Return every other arm against the baseline."""
    baseline = next(arm for arm in result.arms if arm.name == result.baseline)
    return [
        Comparison(
            arm=arm.name,
            other=result.baseline,
            ratio=arm.against_baseline,
            colour=index % COLOURS,
            same_graph=arm.facts.same_graph(baseline.facts),
        )
        for index, arm in enumerate(result.arms)
        if arm.name != result.baseline
    ]


def latency_plot(arms: Sequence[ArmResult], width: float, css: str) -> str:
    """Draw per arm a hill of its clean queries over dots of block medians, on one shared axis of milliseconds."""
    values = [np.concatenate(_clean(arm)) / 1e6 for arm in arms]
    low = min(float(value.min()) for value in values)
    high = max(float(np.quantile(value, _QUERIES_SHOWN)) for value in values)
    log = high > 10 * low > 0
    pad = 0.0 if log else 0.1 * (high - low) or 0.05 * high or 1.0
    if log:
        low, high = low / 1.15, high * 1.15
    x = svg.Scale(low=max(0.0, low - pad), high=high + pad, start=5, end=width - 5, log=log)
    digits = decimals_for(arm.median_ms for arm in arms)
    row = 106.0
    bottom = row * len(arms)
    parts = axis(x, 18.0, bottom, "milliseconds per query" + (", logarithmic" if log else ""))
    for index, (arm, value) in enumerate(zip(arms, values, strict=True)):
        top = row * index
        parts += _latency_row(arm, value, x, top, width=width, digits=digits, colour=index % COLOURS)
    label = "Latency per query. " + "; ".join(f"{arm.name}: median {arm.median_ms:.{digits}f} ms" for arm in arms)
    return svg.drawing(width, bottom + 42, label, parts, css=css)


def _latency_row(
    arm: ArmResult, value: Floats, x: svg.Scale, top: float, *, width: float, digits: int, colour: int
) -> list[str]:
    ground, tint = top + 70, f"c{colour}"
    median = f"median {arm.median_ms:.{digits}f} ms"
    parts = [
        svg.text(0, top + 17, svg.shortened(arm.name, width - 125), css=f"name t{colour}"),
        svg.text(width, top + 17, median, css=f"figure t{colour}", anchor="end"),
        svg.line(x.start, ground, x.end, ground, css="ground"),
    ]
    edges = np.linspace(0, 1, min(_BINS, max(24, round(3 * len(value) ** 0.5))) + 1)
    spread = x.low * (x.high / x.low) ** edges if x.log else x.low + (x.high - x.low) * edges
    counts = np.histogram(value, bins=spread)[0].astype(np.float64)
    smooth = np.convolve(np.pad(counts, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    heights = 42 * smooth / max(float(smooth.max()), 1.0)
    middles = x.start + (x.end - x.start) * (edges[:-1] + edges[1:]) / 2
    seen = slice(*np.flatnonzero(heights > 0.2)[[0, -1]] + (0, 1))
    hill = [(at, ground - up) for at, up in zip(middles[seen].tolist(), heights[seen].tolist(), strict=True)]
    parts.append(svg.path([(hill[0][0], ground), *hill, (hill[-1][0], ground)], css=f"hill {tint}"))
    for number, median_ms in enumerate(_thinned(block_medians(_clean(arm)) / 1e6)):
        parts.append(svg.dot(x(float(median_ms)), ground + 7 + 5 * (number % 3), 1.9, css=f"speck {tint}"))
    at = x(arm.median_ms)
    parts.append(svg.line(at, ground - 44, at, ground + 3, css=f"mark {tint}"))
    beyond = int((value > x.high).sum())
    if beyond:
        note = f"{beyond:,} slower, up to {value.max():.{digits}f} \N{RIGHTWARDS ARROW}"
        parts.append(svg.text(width, ground + 33, note, css="faint", anchor="end"))
    return parts


def _clean(arm: ArmResult) -> list[array[int]]:
    """Return the blocks that count."""
    return [block for block, cause in zip(arm.samples_ns, arm.block_causes, strict=True) if cause is None]


def ratio_plot(rows: Sequence[Comparison], width: float, css: str) -> str:
    """Draw each ratio with its interval against 1; the band is the 2 % within which two arms count as the same.

    Wide: names left, drawing in the middle, numbers right. Narrow: names and numbers stand above their drawing.
    """
    narrow = width < 500
    low = min(1 - 2 * SAME_WITHIN, *(row.ratio.low for row in rows))
    high = max(1 + 2 * SAME_WITHIN, *(row.ratio.high for row in rows))
    log = high > 3 or low < 1 / 3
    pad = 0.06 * (high - low)
    start, end = (5.0, width - 5) if narrow else (236.0, width - 262)
    edges = (low / 1.1, high * 1.1) if log else (max(0.0, low - pad), high + pad)
    x = svg.Scale(low=edges[0], high=edges[1], start=start, end=end, log=log)
    row_px, strip = (78.0, 26.0) if narrow else (44.0, 44.0)
    top, bottom = 22.0, 22.0 + row_px * len(rows)
    left, one, right = (x(edge) for edge in (1 - SAME_WITHIN, 1.0, 1 + SAME_WITHIN))
    parts = axis(x, bottom if narrow else top, bottom, "times as long" + (", logarithmic" if log else ""), about=4)
    if one - start > 50:
        parts.append(svg.text(one - 8, 14, "\N{LEFTWARDS ARROW} faster", css="faint", anchor="end"))
    if end - one > 50 or not narrow:
        parts.append(svg.text(one + 8, 14, "slower \N{RIGHTWARDS ARROW}", css="faint"))
    for index, row in enumerate(rows):
        foot, ratio, tint = top + row_px * (index + 1), row.ratio, f"c{row.colour}"
        arm, other, figures = row.arm, row.where or f"vs {row.other}", row.text
        if narrow:
            half = (width - 20) / 2
            pair = f"{svg.shortened(arm, half)} vs {svg.shortened(row.other, half)}"
            texts = [(0.0, foot - 58, pair, 2 * width), (0.0, foot - 39, figures, width)]
            if row.where:
                texts = [(0.0, foot - 58, arm, width), (0.0, foot - 39, row.where, width - 90)]
        else:
            texts = [(0.0, foot - 25, arm, start - 20), (0.0, foot - 8, other, start - 20)]
            parts.append(svg.text(end + 16, foot - 17, figures, css="figure"))
        for number, (at_x, at_y, words, room) in enumerate(texts):
            style, size_px = (f"name t{row.colour}", 14) if number == 0 else ("figure", _PLAIN_PX)
            parts.append(svg.text(at_x, at_y, svg.shortened(words, room, size_px=size_px), css=style))
        parts.append(
            svg.text(width, foot - (39 if narrow else 17), row.verdict, css=f"verdict {row.verdict}", anchor="end")
        )
        parts.append(svg.rectangle(left, foot - strip, right - left, strip, css="zone"))
        parts.append(svg.line(one, foot - strip, one, foot, css="one"))
        at = foot - strip / 2
        parts.append(svg.line(x(ratio.low), at, x(ratio.high), at, css=f"whisker {tint}"))
        for edge in (ratio.low, ratio.high):
            parts.append(svg.line(x(edge), at - 5, x(edge), at + 5, css=f"whisker {tint}"))
        parts.append(svg.dot(x(ratio.ratio), at, 4.5, css=f"point {tint}"))
    label = "Latency ratios. " + "; ".join(
        f"{row.arm} against {row.other}{row.where and f', {row.where}'}: {row.text}, {row.verdict}" for row in rows
    )
    return svg.drawing(width, bottom + 42, label, parts, css=css)


def drift_plot(arms: Sequence[ArmResult], width: float, css: str) -> str:
    """Draw per arm how far each block lay from that arm's own clean middle, in percent, over the time of the run.

    Bands over all arms: when blocks were dropped, of whichever arm.
    """
    away = [_away(arm) for arm in arms]
    dirty = [np.array([cause is not None for cause in arm.block_causes]) for arm in arms]
    clean = [value[~lost] for value, lost in zip(away, dirty, strict=True)]
    reach = _round_above(max(float(np.quantile(np.abs(value), 0.98)) for value in clean))
    end_s = max(max(arm.block_start_ms) for arm in arms) / 1e3
    x = svg.Scale(low=0, high=end_s or 1.0, start=52, end=width - 5)
    bottom = _PANEL_PX * len(arms)
    bands = _bands(arms, x)
    parts = axis(x, 20.0, bottom, "seconds since the start")
    for index, (arm, value) in enumerate(zip(arms, away, strict=True)):
        top, colour = _PANEL_PX * index, index % COLOURS
        y = svg.Scale(low=-reach, high=reach, start=top + _PANEL_PX - 8, end=top + 28)
        # Below the name: text keeps the page behind it.
        parts += [svg.rectangle(start, top + 23, end - start, _PANEL_PX - 26, css="dirty") for start, end in bands]
        parts.append(svg.text(x.start, top + 17, svg.shortened(arm.name, width - 70), css=f"name t{colour}"))
        parts.append(svg.line(x.start, y(0), x.end, y(0), css="ground"))
        for mark in (-reach, reach):
            sign = "+" if mark > 0 else "\N{MINUS SIGN}"
            parts.append(svg.text(x.start - 6, y(mark) + 4, f"{sign}{reach:g} %", css="faint", anchor="end"))
        seconds, lost = np.array(arm.block_start_ms) / 1e3, dirty[index]
        for kept, size, look in ((~lost, 1.9, "speck"), (lost, 2.2, "dropped")):
            dots = zip(_thinned(seconds[kept]).tolist(), _thinned(value[kept]).tolist(), strict=True)
            parts += [svg.dot(x(at), y(share), size, css=f"{look} c{colour}") for at, share in dots]
    spans = "; ".join(f"{arm.name} {v.min():+.1f} to {v.max():+.1f} %" for arm, v in zip(arms, clean, strict=True))
    count = sum(int(each.sum()) for each in dirty)
    label = f"Block medians over the run, off their own middle. {spans}"
    return svg.drawing(width, bottom + 42, label + (f". {count} blocks dropped" if count else ""), parts, css=css)


def _round_above(share: float) -> float:
    """Return the first of 1, 2, 5, 10, 20, ... percent that is not below a share in percent."""
    power = 10.0 ** math.floor(math.log10(max(1.0, share)))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= share)


def _away(arm: ArmResult) -> Floats:
    """Return how far each block, dropped ones too, lies from the middle of the arm's clean blocks, in percent."""
    return 100 * (block_medians(arm.samples_ns) / np.nanmedian(arm.medians_by_build()) - 1)


def _bands(arms: Sequence[ArmResult], x: svg.Scale) -> list[tuple[float, float]]:
    """Return the stretches, in px and in order, in which some dropped block ran; near ones become one."""
    spans = sorted(
        (x(start / 1e3), x(start / 1e3 + sum(block) / 1e9))
        for arm in arms
        for start, block, cause in zip(arm.block_start_ms, arm.samples_ns, arm.block_causes, strict=True)
        if cause is not None
    )
    merged: list[tuple[float, float]] = []
    for start, end in spans:
        end = max(end, min(start + _NARROWEST_PX, x.end))
        start = min(start, end - _NARROWEST_PX)
        if merged and start - merged[-1][1] < _NARROWEST_PX:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def bars_plot(profile: LayerProfile, name: str, colour: int, width: float, css: str) -> str:
    """Draw the slowest layers as bars of their time; names left, on a narrow page above their bar."""
    narrow = width < 500
    rows = profile.slowest(LAYERS_SHOWN)
    digits = decimals_for((layer.us for layer in rows), digits=2)
    start, end = (0.0, width - 110) if narrow else (300.0, width - 110)
    x = svg.Scale(low=0, high=rows[0].us or 1.0, start=start, end=end)
    room = width if narrow else start - 14
    row_px = 1.65 * _ROW_PX if narrow else _ROW_PX
    parts = []
    for at, layer in enumerate(rows):
        foot = row_px * (at + 1)
        kind = f" ({layer.operator})" if layer.operator else ""
        words = svg.shortened(layer.name, room - _SMALL_PX * 0.7 * len(kind), size_px=_SMALL_PX) + kind
        parts.append(svg.text(0, foot - 24 if narrow else foot - 7, words, css="tick"))
        parts.append(svg.rectangle(start, foot - 17, max(1.0, x(layer.us) - start), 12, css=f"layer c{colour}"))
        shown = f"{layer.us:,.{digits}f} \N{MICRO SIGN}s, {100 * layer.share:.0f} %"
        parts.append(svg.text(x(layer.us) + 6, foot - 7, shown, css="tick"))
    said = "; ".join(f"{layer.name} {layer.us:.{digits}f} \N{MICRO SIGN}s" for layer in rows)
    return svg.drawing(width, row_px * len(rows) + 6, f"Layers of {name} by time. {said}", parts, css=css)


def pareto_plot(points: Sequence[Point], front: Collection[str], width: float, css: str) -> str:
    """Draw a disc per arm whose area is the size of its file; labels have a column of their own order on the right.

    On a narrow page they stand below, where there is room, and a number tells which disc they mean.
    """
    narrow = width < 500
    bottom = 250.0
    x = _scale([point.ms for point in points], start=58, end=width - (22 if narrow else 256))
    y = _scale([100 * point.accuracy for point in points], start=bottom - 22, end=24)
    parts = axis(x, 10.0, bottom, "median latency (ms)", about=5 if not narrow else 4)
    parts += [*_upright_axis(y, x), svg.text(0, 14, "%", css="tick")]
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
        words = f"{100 * point.accuracy:.2f} %, {point.ms:.3g} ms, {point.size}"
        parts.append(svg.text(left, at_y + _LINE_PX, words, css="faint"))
    label = "Accuracy, latency and size. " + "; ".join(
        f"{point.name}: {100 * point.accuracy:.2f} %, {point.ms:.3g} ms, {point.size}"
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


def line_plot(panel: Panel) -> str:
    """Draw lines over a common axis, their names above in their colours; what is not finite is left out."""
    lines = {
        name: [(at, value) for at, value in points if math.isfinite(value) and (value > 0 or not panel.log)]
        for name, points in panel.lines.items()
    }
    values = [value for points in lines.values() for _, value in points] or [1.0]
    places = [at for points in lines.values() for at, _ in points] or [0.0, 1.0]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    edges = (low / 1.2, high * 1.2) if panel.log else (low - pad if low < 0 else max(0.0, low - pad), high + pad)
    y = svg.Scale(low=edges[0], high=edges[1], start=214, end=54, log=panel.log)
    last = max(places) if max(places) > min(places) else min(places) + 1
    x = svg.Scale(low=min(places), high=last, start=58, end=_CHART_PX - 5)
    parts = [*axis(x, y.end, y.start, panel.x, about=5), *_upright_axis(y, x)]
    parts.append(svg.text(0, 14, panel.title, css="name"))
    words = svg.shortened(panel.y + (", logarithmic" if panel.log else ""), _CHART_PX, size_px=_SMALL_PX)
    parts.append(svg.text(0, 32, words, css="faint"))
    along = x.end
    for index, (name, points) in reversed(list(enumerate(lines.items()))):
        colour = index % COLOURS
        parts.append(svg.text(along, 48, name, css=f"name t{colour}", anchor="end"))
        along -= 10.0 * len(name) + 12
        drawn = [(x(at), y(value)) for at, value in points]
        if drawn:
            parts.append(svg.path(drawn, css=f"curve l{colour}"))
        parts += [svg.dot(*at, 2.4, css=f"c{colour}") for at in drawn if len(drawn) < _FEW_POINTS]
    said = "; ".join(f"{name}: {points[-1][1]:.3g} at the end" for name, points in lines.items() if points)
    return svg.drawing(_CHART_PX, y.start + 42, f"{panel.title}. {said}", parts, css="panel")


def axis(x: svg.Scale, top: float, bottom: float, title: str, *, about: int | None = None) -> list[str]:
    """Draw grid lines, tick labels and the axis title below a plot."""
    ticks = x.ticks(about or (8 if x.end > 500 else 4))
    parts = [svg.line(x(tick), top, x(tick), bottom, css="grid") for tick in ticks]
    for tick in ticks:
        shown = f"{tick:g}" if x.log else svg.tick_text(tick, ticks)
        at = x(tick)
        anchor = "end" if at > x.end - 12 else "start" if at < 16 else "middle"
        parts.append(svg.text(at, bottom + 16, shown, css="tick", anchor=anchor))
    return [*parts, svg.text((x.start + x.end) / 2, bottom + 34, title, css="tick", anchor="middle")]


def _upright_axis(y: svg.Scale, x: svg.Scale) -> list[str]:
    """Draw grid lines across and tick labels left of a plot."""
    ticks = y.ticks(5)
    parts = []
    for tick in ticks:
        shown = svg.tick_text(tick, ticks) if y.high >= 0.01 and not y.log else f"{tick:g}"
        parts.append(svg.line(x.start, y(tick), x.end, y(tick), css="grid"))
        parts.append(svg.text(x.start - 8, y(tick) + 4, shown, css="tick", anchor="end"))
    return parts


def _thinned(values: Floats) -> Floats:
    """Keep at most _DOTS values, evenly spaced in time."""
    if len(values) <= _DOTS:
        return values
    return values[np.linspace(0, len(values) - 1, _DOTS).round().astype(np.intp)]
