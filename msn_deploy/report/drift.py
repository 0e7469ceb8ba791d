"""How steady was the machine? Block medians over the time of the run, with what was dropped shaded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msn_deploy.bench.bootstrap import Floats
from msn_deploy.bench.result import ArmResult, BenchResult
from msn_deploy.bench.stats import block_medians
from msn_deploy.report import svg
from msn_deploy.report.plots import axis, both_cuts, thinned
from msn_deploy.report.tables import COLOURS, DASH, decimals_for, figure, section, table

_TENTHS = 10
_PANEL_PX = 86.0
_NARROWEST_PX = 2.0  # of a shaded band, and of a gap between two


def drift_section(result: BenchResult) -> str:
    """Return the time series of all arms and, behind it, the medians of each tenth of the run."""
    arms, dropped = result.arms, result.validity.dirty_blocks
    orders = [np.argsort(arm.block_start_ms, kind="stable") for arm in arms]
    digits = decimals_for(arm.median_ms for arm in arms)
    medians = [arm.medians_by_build().ravel()[order] / 1e6 for arm, order in zip(arms, orders, strict=True)]
    tenths = [np.array_split(each, min(_TENTHS, len(each))) for each in medians]
    rows = []
    for number in range(len(tenths[0])):
        parts = [of_arm[number] for of_arm in tenths]
        lost = sum(int(np.isnan(part).sum()) for part in parts)
        rows.append([str(number + 1), *(_median_text(part, digits) for part in parts), *([str(lost)] * bool(dropped))])
    headings = ("Tenth", *(arm.name for arm in arms), *(["Dropped blocks"] * bool(dropped)))
    listing = table(
        "Median of the block medians in each tenth of the run (ms)",
        headings,
        rows,
        numeric=(False, *(True for _ in headings[1:])),
    )
    note = (
        f" Shaded: the times of the {dropped} blocks, of {result.validity.blocks}, that were dropped; they are circles."
        if dropped
        else ""
    )
    return section(
        "How steady the machine was",
        figure(
            both_cuts(lambda width, css: drift_plot(arms, width, css)),
            "Each dot is the median of one block, as a difference from the middle of its own model. All models take "
            f"turns, so a slow spell of the machine shows at the same place in all, and drops out of the ratios.{note}",
        ),
        f"<details><summary>The same as a table</summary>{listing}</details>",
    )


def drift_plot(arms: Sequence[ArmResult], width: float, css: str) -> str:
    """Draw per arm how far each block lay from that arm's own clean middle, in percent, over the time of the run.

    Bands over all arms: when blocks were dropped, of whichever arm.
    """
    away = [_away(arm) for arm in arms]
    dirty = [np.array([cause is not None for cause in arm.block_causes]) for arm in arms]
    clean = [value[~lost] for value, lost in zip(away, dirty, strict=True)]
    reach = max(1.0, max(float(np.quantile(np.abs(value), 0.98)) for value in clean))
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
            parts.append(svg.text(x.start - 6, y(mark) + 4, f"{sign}{reach:.2g} %", css="faint", anchor="end"))
        seconds, lost = np.array(arm.block_start_ms) / 1e3, dirty[index]
        for kept, size, look in ((~lost, 1.9, "speck"), (lost, 2.2, "dropped")):
            dots = zip(thinned(seconds[kept]).tolist(), thinned(value[kept]).tolist(), strict=True)
            parts += [svg.dot(x(at), y(share), size, css=f"{look} c{colour}") for at, share in dots]
    spans = "; ".join(f"{arm.name} {v.min():+.1f} to {v.max():+.1f} %" for arm, v in zip(arms, clean, strict=True))
    count = sum(int(each.sum()) for each in dirty)
    label = f"Block medians over the run, off their own middle. {spans}"
    return svg.drawing(width, bottom + 42, label + (f". {count} blocks dropped" if count else ""), parts, css=css)


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


def _median_text(values: Floats, digits: int) -> str:
    kept = values[~np.isnan(values)]
    return f"{np.median(kept):.{digits}f}" if len(kept) else DASH
