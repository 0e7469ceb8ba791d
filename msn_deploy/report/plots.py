"""Two drawings of the report, how fast and how much faster, and what all have in common: two cuts, axes, thinning."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from msn_deploy.bench.bootstrap import Floats
from msn_deploy.bench.result import ArmResult
from msn_deploy.bench.stats import SAME_WITHIN, Ratio, block_medians
from msn_deploy.report import svg
from msn_deploy.report.tables import COLOURS, decimals_for

WIDE_PX, NARROW_PX = 700.0, 350.0
_DOTS = 200  # per arm; more would neither be seen nor leave the page small
_BINS = 120  # at most; few queries get fewer, or the hill would be a comb
_SHOWN = 0.95  # of the queries; an axis that reaches the slowest one would squeeze what tells arms apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row of the ratio plot; colour: number of the arm whose colour it wears."""

    arm: str
    other: str
    ratio: Ratio
    colour: int


def both_cuts(draw: Callable[[float, str], str]) -> str:
    """Draw for a wide and a narrow page; the page shows the one that fits, so text keeps its size on a phone."""
    return draw(WIDE_PX, "wide") + draw(NARROW_PX, "narrow")


def latency_plot(arms: Sequence[ArmResult], width: float, css: str) -> str:
    """Draw per arm a hill of its clean queries over dots of block medians, on one shared axis of milliseconds."""
    values = [np.concatenate(_clean(arm)) / 1e6 for arm in arms]
    low = min(float(value.min()) for value in values)
    high = max(float(np.quantile(value, _SHOWN)) for value in values)
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
    for number, median_ms in enumerate(thinned(block_medians(_clean(arm)) / 1e6)):
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
        arm, other, figures = row.arm, f"vs {row.other}", ratio_text(ratio)
        if narrow:
            half = (width - 20) / 2
            pair = f"{svg.shortened(arm, half)} vs {svg.shortened(row.other, half)}"
            texts = [(0.0, foot - 58, pair, 2 * width), (0.0, foot - 39, figures, width)]
        else:
            texts = [(0.0, foot - 25, arm, start - 20), (0.0, foot - 8, other, start - 20)]
            parts.append(svg.text(end + 16, foot - 17, figures, css="figure"))
        for number, (at_x, at_y, words, room) in enumerate(texts):
            style = f"name t{row.colour}" if number == 0 else "figure"
            parts.append(svg.text(at_x, at_y, svg.shortened(words, room), css=style))
        parts.append(
            svg.text(width, foot - (39 if narrow else 17), ratio.verdict, css=f"verdict {ratio.verdict}", anchor="end")
        )
        parts.append(svg.rectangle(left, foot - strip, right - left, strip, css="zone"))
        parts.append(svg.line(one, foot - strip, one, foot, css="one"))
        at = foot - strip / 2
        parts.append(svg.line(x(ratio.low), at, x(ratio.high), at, css=f"whisker {tint}"))
        for edge in (ratio.low, ratio.high):
            parts.append(svg.line(x(edge), at - 5, x(edge), at + 5, css=f"whisker {tint}"))
        parts.append(svg.dot(x(ratio.ratio), at, 4.5, css=f"point {tint}"))
    label = "Latency ratios. " + "; ".join(
        f"{row.arm} against {row.other}: {ratio_text(row.ratio)}, {row.ratio.verdict}" for row in rows
    )
    return svg.drawing(width, bottom + 42, label, parts, css=css)


def ratio_text(ratio: Ratio) -> str:
    """Write a ratio with its interval, with the decimals that the interval's width deserves."""
    digits = 2 if ratio.high - ratio.low > 0.03 else 3
    return f"{ratio.ratio:.{digits}f} [{ratio.low:.{digits}f}, {ratio.high:.{digits}f}]"


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


def thinned(values: Floats) -> Floats:
    """Keep at most _DOTS values, evenly spaced in time."""
    if len(values) <= _DOTS:
        return values
    return values[np.linspace(0, len(values) - 1, _DOTS).round().astype(np.intp)]
