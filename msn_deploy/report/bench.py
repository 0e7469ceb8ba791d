"""One self-contained HTML page from a benchmark result: what is faster, how sure that is, on what it was measured.

What is computed stands here, what is said in templates/bench.html.j2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from msn_deploy.bench.compare import ratio_between
from msn_deploy.bench.layers import roofline_parts
from msn_deploy.bench.result import ArmResult, BenchResult
from msn_deploy.bench.stats import MINIMUM_QUERIES, SAME_WITHIN
from msn_deploy.report import plots
from msn_deploy.report.page import (
    COLOURS,
    DASH,
    decimals_for,
    fixed,
    measured_on,
    render,
    threads_text,
    value_text,
)
from msn_deploy.report.plots import Comparison, Point, both_cuts, comparisons_with

# Above this many arms, comparing each with each gives more rows than anyone reads.
_ARMS_FOR_ALL_PAIRS = 4
_TENTHS = 10


@dataclass(frozen=True, slots=True)
class Line:
    """What a tile says of one network: its name, the number of its arm (None: no arm), the value, and what that is."""

    name: str
    index: int | None
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the numbers that a page opens with."""

    title: str
    lines: tuple[Line, ...]


def render_html(result: BenchResult, *, title: str, stages: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the report as one HTML document that loads nothing from outside.

    stages: rows such as {"network": "MSN", "stage": "INT8", "accuracy": 0.98, "bytes": 12345}; the keys become the
    columns. Keys ending in "bytes" are shown in KiB or MiB, those ending in "accuracy" (0 to 1) in percent.
    """
    arms, profile = result.arms, result.profile
    comparisons = _comparisons(result)
    folded = {arm.name for arm in arms if arm.facts.folded}
    points = _points(arms)
    front = front_of(points)
    energies = [(index, arm) for index, arm in enumerate(arms) if arm.energy is not None]
    rates = [arm.throughput.rate.per_s for arm in arms if arm.throughput is not None]
    conditions = (profile.provider.upper(), f"batch {profile.batch}", threads_text(profile.threads), profile.input)
    drawn = {
        "latency": partial(plots.latency_plot, arms),
        "ratio": partial(plots.ratio_plot, comparisons) if comparisons else None,
        "pareto": partial(plots.pareto_plot, points, front) if len(points) > 1 else None,
        "drift": partial(plots.drift_plot, arms),
    }
    return render(
        "bench.html.j2",
        title=title,
        result=result,
        arms=arms,
        measured_on=measured_on(result.environment, *conditions),
        digits=decimals_for(arm.median_ms for arm in arms),
        needed=MINIMUM_QUERIES,
        comparisons=comparisons,
        # What the page opens with: each arm against the baseline, and the folded networks against each other.
        tiles=_tiles_of_stages(stages) or _tiles_of_arms(arms),
        headlines=[row for row in comparisons if row.other == result.baseline or {row.arm, row.other} <= folded],
        plots={name: draw and both_cuts(draw) for name, draw in drawn.items()},
        points=points,
        front=front,
        profiled=_profiled(arms),
        energies=energies,
        loaded=[(index, arm) for index, arm in enumerate(arms) if arm.throughput is not None],
        rate_digits=decimals_for(rates) if rates else 0,
        energy_digits=decimals_for(energy.mj for arm in arms if (energy := arm.energy) is not None),
        stages=stages,
        names_of_stages=list(dict.fromkeys(next(iter(stage.values())) for stage in stages)),
        columns=_columns(stages),
        tenths=_tenths(arms),
        conditions={
            "Machine and software": {**result.environment.to_json(), **result.states},
            "Timing profile": asdict(profile),
            "Validity": asdict(result.validity),
            "Schedule, equal for all models": result.options,
        },
        facts=[arm.facts.to_json() for arm in arms],
    )


def _tiles_of_arms(arms: Sequence[ArmResult]) -> list[Tile]:
    """Return accuracy, size and latency of each arm, as far as they are known; nothing of more than have a colour."""
    if len(arms) > COLOURS:
        return []
    digits = decimals_for(arm.median_ms for arm in arms)
    known = {
        "Accuracy": [(arm.name, at, value_text("accuracy", arm.facts.accuracy)) for at, arm in enumerate(arms)],
        "Size": [(arm.name, at, value_text("bytes", arm.facts.bytes)) for at, arm in enumerate(arms)],
        "Latency, median": [(arm.name, at, f"{fixed(arm.median_ms, digits)} ms") for at, arm in enumerate(arms)],
    }
    tiles = (Tile(title, tuple(Line(*line) for line in lines if line[2] != DASH)) for title, lines in known.items())
    return [tile for tile in tiles if tile.lines]


def _tiles_of_stages(stages: Sequence[Mapping[str, Any]]) -> list[Tile]:
    """Return what accuracy, size and latency come to along the stages of each network; nothing without such stages."""
    stages = [each for each in stages if {"network", "stage"} <= each.keys()]
    tiles = []
    digits = decimals_for(stage["median_ms"] for stage in stages if stage.get("median_ms"))
    for title, key in (("Accuracy", "accuracy"), ("Size", "bytes"), ("Latency, median", "median_ms")):
        lines = []
        for network in dict.fromkeys(stage["network"] for stage in stages):
            known = [each for each in stages if each["network"] == network and each.get(key) is not None]
            ends = known[:1] + known[1:][-1:]
            values = (
                f"{fixed(each[key], digits)} ms" if key == "median_ms" else value_text(key, each[key]) for each in ends
            )
            text, note = (" \N{RIGHTWARDS ARROW} ".join(each) for each in (values, (e["stage"] for e in ends)))
            if ends:
                lines.append(Line(str(network), None, text, note))
        if lines:
            tiles.append(Tile(title, tuple(lines)))
    return tiles


def _comparisons(result: BenchResult) -> list[Comparison]:
    """List every arm against the baseline, then, for a few arms, the others against each other."""
    rows = comparisons_with(result)
    if len(result.arms) <= _ARMS_FOR_ALL_PAIRS:
        others = [(index, arm) for index, arm in enumerate(result.arms) if arm.name != result.baseline]
        for (_, other), (index, arm) in combinations(others, 2):
            between = ratio_between(arm, other)
            same = arm.facts.same_graph(other.facts)
            rows.append(
                Comparison(arm=arm.name, other=other.name, ratio=between, colour=index % COLOURS, same_graph=same)
            )
    return rows


def _points(arms: Sequence[ArmResult]) -> list[Point]:
    """Return the arms whose accuracy is known."""
    return [
        Point(
            name=arm.name,
            index=index,
            accuracy=arm.facts.accuracy,
            ms=arm.median_ms,
            size_bytes=arm.facts.bytes,
        )
        for index, arm in enumerate(arms)
        if arm.facts.accuracy is not None
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


def _profiled(arms: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Return what the page shows of each arm whose layers were timed."""
    found = []
    for index, arm in enumerate(arms):
        if arm.layers is None or not arm.layers.layers:
            continue
        slowest = arm.layers.slowest(len(arm.layers.layers))
        found.append(
            {
                "index": index,
                "arm": arm,
                "profile": arm.layers,
                "roofline": roofline_parts(arm.layers, arm.median_ms),
                "plot": both_cuts(partial(plots.bars_plot, arm.layers, arm.name, index % COLOURS)),
                "shown": slowest[: plots.LAYERS_SHOWN],
                "rest_us": sum(layer.us for layer in slowest[plots.LAYERS_SHOWN :]),
                "digits": decimals_for((layer.us for layer in slowest), digits=2),
            }
        )
    return found


def _tenths(arms: Sequence[ArmResult]) -> list[tuple[list[float | None], int]]:
    """Return for each tenth of the run the median of every arm's block medians (ms), and how many were dropped."""
    orders = [np.argsort(arm.block_start_ms, kind="stable") for arm in arms]
    medians = [arm.medians_by_build().ravel()[order] / 1e6 for arm, order in zip(arms, orders, strict=True)]
    rows = zip(*(np.array_split(each, min(_TENTHS, len(each))) for each in medians), strict=True)
    return [
        (
            [None if np.isnan(part).all() else float(np.nanmedian(part)) for part in row],
            sum(int(np.isnan(part).sum()) for part in row),
        )
        for row in rows
    ]


def _columns(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the columns of the stages: the keys in order of appearance, whether they hold numbers, the largest bytes.

    Byte columns carry a bar, so that halvings are seen and not only read. Times have equally many decimals.
    """
    columns = []
    for at, key in enumerate(dict.fromkeys(key for stage in stages for key in stage)):
        numbers = [stage[key] for stage in stages if type(stage.get(key)) in (int, float)]
        largest = max(numbers, default=0) if key.endswith("bytes") else 0
        digits = decimals_for(numbers) if key.endswith("_ms") else 0
        columns.append({"at": at, "key": key, "numeric": bool(numbers), "largest": largest, "digits": digits})
    return columns
