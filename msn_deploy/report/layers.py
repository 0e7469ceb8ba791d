"""Where does the time go? The slowest layers of each model as bars, and what its graph needs at least."""

from __future__ import annotations

from html import escape

from msn_deploy.bench.layers import LayerProfile, roofline_parts
from msn_deploy.bench.result import BenchResult
from msn_deploy.report import svg
from msn_deploy.report.plots import both_cuts
from msn_deploy.report.tables import COLOURS, breakable, decimals_for, figure, named, section, table

_SHOWN = 12  # layers per arm
_ROW_PX = 24.0
_SMALL_PX = 10.5  # 12 px and not bold: what svg.shortened counts with is bold


def layers_section(result: BenchResult) -> str:
    """Return bars and table per profiled arm; nothing where none was."""
    parts = [
        _of_one(arm.layers, arm.name, index, arm.median_ms)
        for index, arm in enumerate(result.arms)
        if arm.layers is not None and arm.layers.layers
    ]
    if not parts:
        return ""
    note = (
        '<p class="note">Timed after the measuring, with a profiler on, which slows a query down: the bars show where '
        "the time goes, the medians above how long a query takes. Operations (2 per multiply\N{EN DASH}accumulate) "
        "and bytes (weights, and what is written and read between layers) are counted on the graph.</p>"
    )
    return section("Where the time goes", note, *parts)


def _of_one(profile: LayerProfile, name: str, index: int, median_ms: float) -> str:
    roofline = " \N{MIDDLE DOT} ".join(map(escape, roofline_parts(profile, median_ms)))
    drawn = figure(
        both_cuts(lambda width, css: bars_plot(profile, name, index % COLOURS, width, css)),
        f"{escape(profile.source)}, median of {profile.runs} runs: "
        f"{len(profile.layers)} layers take {profile.total_us:,.0f} \N{MICRO SIGN}s together"
        + (f", those that are not shown {rest:,.0f} \N{MICRO SIGN}s." if (rest := _rest_us(profile)) else "."),
    )
    return (
        f"<h3>{named(name, index)}</h3>"
        + (f'<p class="note">{roofline}</p>' if roofline else "")
        + f"{drawn}<details><summary>The same as a table</summary>{_layer_table(profile, name)}</details>"
    )


def _rest_us(profile: LayerProfile) -> float:
    """Time of the layers that are not among the slowest."""
    return sum(layer.us for layer in profile.slowest(len(profile.layers))[_SHOWN:])


def bars_plot(profile: LayerProfile, name: str, colour: int, width: float, css: str) -> str:
    """Draw the slowest layers as bars of their time; names left, on a narrow page above their bar."""
    narrow = width < 500
    rows = profile.slowest(_SHOWN)
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


def _layer_table(profile: LayerProfile, name: str) -> str:
    digits = decimals_for((layer.us for layer in profile.layers), digits=2)
    rows = [
        [
            breakable(layer.name),
            escape(layer.operator),
            f"{layer.us:,.{digits}f}",
            f"{100 * layer.share:.1f}",
            escape((layer.precision or "").upper()),
            ", ".join(map(breakable, layer.fused_from)),
        ]
        for layer in profile.slowest(_SHOWN)
    ]
    return table(
        f"The slowest layers of {name}",
        ("Layer", "Operator", "Time (\N{MICRO SIGN}s)", "Share (%)", "Precision", "Fused from"),
        rows,
        numeric=(False, False, True, True, False, False),
    )
