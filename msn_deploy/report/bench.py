"""One self-contained HTML page from a benchmark result: what is faster, how sure that is, on what it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from itertools import combinations
from typing import Any

from msn_deploy import __version__
from msn_deploy.bench.compare import ratio_between
from msn_deploy.bench.result import BenchResult
from msn_deploy.bench.stats import Ratio
from msn_deploy.bench.tails import MINIMUM_QUERIES
from msn_deploy.report.drift import drift_section
from msn_deploy.report.layers import layers_section
from msn_deploy.report.page import page
from msn_deploy.report.pareto import pareto_section
from msn_deploy.report.plots import Comparison, both_cuts, latency_plot, ratio_plot, ratio_text
from msn_deploy.report.tables import (
    COLOURS,
    DASH,
    breakable,
    decimals_for,
    facts_table,
    figure,
    named,
    records_table,
    section,
    table,
)

# Above this many arms, comparing each with each gives more rows than anyone reads.
_ARMS_FOR_ALL_PAIRS = 4
_PERCENT = "\N{NO-BREAK SPACE}%"
_SAME_GRAPH = (
    "A folded MSN network and a folded BN network of conv\N{EN DASH}norm form are the same graph: convolutions with a "
    "bias, nothing else. Between those two SAME is the expected result. What folding saves shows against the unfolded "
    "network, and only where the runtime did not fold it by itself."
)


def render_html(result: BenchResult, *, title: str, stages: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the report as one HTML document that loads nothing from outside.

    stages: rows such as {"network": "MSN", "stage": "INT8", "accuracy": 0.98, "bytes": 12345}; the keys become the
    columns. Keys ending in "bytes" are shown in KiB or MiB, those ending in "accuracy" (0 to 1) in percent.
    """
    comparisons = _comparisons(result)
    body = [_header(result, title, _headlines(result, comparisons)), _latency_section(result)]
    if comparisons:
        body.append(_ratio_section(result, comparisons))
    body += [pareto_section(result), layers_section(result), _energy_section(result)]
    if stages:
        body.append(section("Each stage", records_table("Network by network, from checkpoint to device", stages)))
    body += [drift_section(result), _conditions_section(result), _provenance_section(result), _footer(result)]
    return page(title, "\n".join(body))


def _comparisons(result: BenchResult) -> list[Comparison]:
    """List every arm against the baseline, then, for a few arms, the others against each other."""
    rows = [
        Comparison(
            arm=arm.name,
            other=result.baseline,
            ratio=arm.against_baseline,
            colour=index % COLOURS,
        )
        for index, arm in enumerate(result.arms)
        if arm.name != result.baseline
    ]
    if len(result.arms) <= _ARMS_FOR_ALL_PAIRS:
        others = [(index, arm) for index, arm in enumerate(result.arms) if arm.name != result.baseline]
        for (_, other), (index, arm) in combinations(others, 2):
            between = ratio_between(arm, other)
            rows.append(Comparison(arm=arm.name, other=other.name, ratio=between, colour=index % COLOURS))
    return rows


def _headlines(result: BenchResult, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Keep what the page opens with: each arm against the baseline, and the folded networks against each other."""
    folded = {arm.name for arm in result.arms if arm.facts.get("folded") is True}
    return [row for row in comparisons if row.other == result.baseline or {row.arm, row.other} <= folded]


def _header(result: BenchResult, title: str, comparisons: Sequence[Comparison]) -> str:
    profile, environment = result.profile, result.environment
    machine = environment.machine or environment.cpu or environment.host
    threads = f"{profile.threads} thread{'s' * (profile.threads != 1)}" if profile.threads else "the runtime's threads"
    meta = [machine, profile.provider.upper(), f"batch {profile.batch}", threads, profile.input]
    when = (environment.time_utc or "").replace("T", " ").replace("+00:00", " UTC")
    line = " \N{MIDDLE DOT} ".join(f'<span class="nb">{escape(str(item))}</span>' for item in [*meta, when] if item)
    found = "".join(
        f'<li class="finding {row.ratio.verdict}">{_finding(row).replace(" %", _PERCENT)}</li>' for row in comparisons
    )
    if not found:
        only = result.arms[0]
        digits = decimals_for([only.median_ms])
        found = f'<li class="finding"><b>{escape(only.name)}</b> answers in {only.median_ms:.{digits}f} ms.</li>'
    found = _warnings(result) + found
    return f'<header><h1>{escape(title)}</h1><p class="meta">{line}</p><ul class="findings">{found}</ul></header>'


def _warnings(result: BenchResult) -> str:
    """Say before any finding what speaks against all of them."""
    said = []
    if not result.validity.valid:
        said.append(result.validity.message)
    if result.control is not None and result.control.verdict in ("FASTER", "SLOWER"):
        said.append(
            f"{result.baseline} against itself came out {result.control.verdict} ({result.control.ratio:.3f}): "
            "the machine was too unsteady for these verdicts."
        )
    return "".join(f'<li class="finding SLOWER">{escape(each)}</li>' for each in said)


def _finding(row: Comparison) -> str:
    """Say in one sentence what the verdict means."""
    arm, other, ratio = f"<b>{escape(row.arm)}</b>", escape(row.other), row.ratio
    if ratio.verdict == "SAME":
        return f"{arm} and {other} are equally fast: they differ by less than 2 %."
    if ratio.verdict == "AMBIGUOUS":
        return (
            f"{arm} against {other} is not settled: it takes {ratio.ratio:.3f} times as long, somewhere from "
            f"{ratio.low:.3f} to {ratio.high:.3f}. A longer run would tell."
        )
    return f"{arm} is {ratio.verdict.lower()} than {other}: it takes {_difference(ratio)}."


def _difference(ratio: Ratio) -> str:
    """Write a small ratio in percent, a large one as a multiple."""
    if not 0.5 <= ratio.ratio <= 2:
        return f"{ratio.ratio:.3g} times as long (95 % interval {ratio.low:.3g} to {ratio.high:.3g})"
    less, more = sorted(abs(100 * (edge - 1)) for edge in (ratio.low, ratio.high))
    word = "less" if ratio.ratio < 1 else "more"
    return f"{abs(100 * (ratio.ratio - 1)):.1f} % {word} time (95 % interval {less:.1f} to {more:.1f} %)"


def _latency_section(result: BenchResult) -> str:
    arms = result.arms
    digits = decimals_for(arm.median_ms for arm in arms)
    rows = []
    for index, arm in enumerate(arms):
        shown = [DASH if ms is None else f"{ms:.{digits}f}" for ms in (arm.median_ms, arm.p90_ms, arm.p99_ms)]
        rows.append([named(arm.name, index), *shown, f"{arm.queries:,}"])
    headings = ("Model", "Median (ms)", "p90 at most", "p99 at most", "Queries")
    caption = "Milliseconds per query"
    refused = any(arm.p99_ms is None or arm.p90_ms is None for arm in arms)
    note = (
        f'<p class="note">{DASH} marks a percentile with too few queries behind it: p90 needs '
        f"{MINIMUM_QUERIES[90]}, p99 needs {MINIMUM_QUERIES[99]}, and more where slow ones come in spells.</p>"
        if refused
        else ""
    )
    return section(
        "How long one query takes",
        figure(
            both_cuts(lambda width, css: latency_plot(arms, width, css)),
            "Further left is faster. The hill is the distribution of the queries, scaled to its own peak; the upright "
            "line is the median; each dot below is the median of one block. A narrow hill is a steady model. "
            "Dropped blocks are left out. The axis need not start at zero, and it leaves out the slowest few.",
        ),
        table(caption, headings, rows, numeric=(False, True, True, True, True)),
        note,
    )


def _ratio_section(result: BenchResult, comparisons: Sequence[Comparison]) -> str:
    rows = [
        [
            breakable(row.arm),
            breakable(row.other),
            " ".join(f'<span class="nb">{part}</span>' for part in ratio_text(row.ratio).split(" ", 1)),
            f'<span class="v {row.ratio.verdict}">{row.ratio.verdict}</span>',
        ]
        for row in comparisons
    ]
    rounds = result.arms[0].blocks // (2 * result.arms[0].builds)
    return section(
        "How much faster, and how sure",
        figure(
            both_cuts(lambda width, css: ratio_plot(comparisons, width, css)),
            f"Dot: median over {rounds} rounds of the ratio of latencies within a round. Whisker: 95 % interval, by "
            "resampling builds and rounds. Band: within 2 % of equal.",
        ),
        table(
            "Ratio of latencies; below 1 is faster",
            ("Model", "Against", "Ratio", "Verdict"),
            rows,
            numeric=(False,) * 4,
        ),
        '<p class="note">SAME: the whole interval lies within 2 % of 1. FASTER, SLOWER: the interval excludes 1, '
        "the ratio differs from it by more than 2 %, and a test on ranks agrees; with several models, all after Holm's "
        "correction. AMBIGUOUS: none of these; measure longer.</p>",
        f"<p>{_SAME_GRAPH}</p>",
    )


def _energy_section(result: BenchResult) -> str:
    """Show what a query costs, where it was measured."""
    found = [(index, arm.name, arm.energy) for index, arm in enumerate(result.arms) if arm.energy is not None]
    if not found:
        return ""
    digits = decimals_for(energy["mj"] for _, _, energy in found)
    rows = []
    for index, name, energy in found:
        low, high = energy["interval_mj"]
        watts = [f"{energy[key]:.2f}" for key in ("idle_w", "busy_w")]
        rows.append(
            [named(name, index), f"{energy['mj']:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}", *watts]
        )
    energy = found[0][2]
    headings = ("Model", "Energy (mJ)", "95 % interval", "Idle (W)", "Busy (W)")
    return section(
        "What one query costs",
        table("Millijoules per query above idle", headings, rows, numeric=(False, True, True, True, True)),
        f'<p class="note">{escape(str(energy["rail"]))}, a value per {energy["sensor_period_ms"]:g} ms; '
        f"{escape(str(energy['source']))}. The machine's idle power is taken off.</p>",
    )


def _conditions_section(result: BenchResult) -> str:
    return section(
        "Where and how it was measured",
        facts_table("Machine and software", {**result.environment.to_json(), **result.states}),
        facts_table("Timing profile", asdict(result.profile)),
        facts_table("Validity", asdict(result.validity)),
        facts_table("Schedule, equal for all models", result.options),
    )


def _provenance_section(result: BenchResult) -> str:
    parts = []
    for index, arm in enumerate(result.arms):
        role = " (baseline)" if arm.name == result.baseline else ""
        parts.append(f"<h3>{named(arm.name, index)}{role}</h3>")
        parts.append(facts_table(f"Facts about {arm.name}", arm.facts) if arm.facts else "<p>Nothing recorded.</p>")
    return section("Which files these are", *parts)


def _footer(result: BenchResult) -> str:
    return f"<footer>msn-deploy {escape(__version__)} \N{MIDDLE DOT} {escape(result.schema)}</footer>"
