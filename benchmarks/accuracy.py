"""From the trainings of a table to its rows: mean and spread of each arm, and its difference to BN seed by seed."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "paper"
BASELINE = "BN"
METRICS = {"classification": "test_accuracy", "segmentation": "test_mIoU", "detection": "test_mAP50"}
"""What of a training's history a table compares, by the recipe's task."""
EACH = {metric: f"{metric}_of_epochs" for metric in METRICS.values()} | {"test_accuracy": "test_accuracies"}
"""What a result calls that of every epoch."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm: what METRICS has for its task, in percent, its deviation over the seeds, its paired difference to BN.

    difference: (mean, low, high) in points with a 95 % t-interval over the seeds that both have; None for BN itself
    and with fewer than three seeds.
    """

    arm: str
    seeds: int
    accuracy: float
    deviation: float
    difference: tuple[float, float, float] | None
    recipe: dict[str, Any]


def read(table: str) -> dict[str, Any] | None:
    """Return a table's result, or None if it has none yet."""
    path = RESULTS / f"{table}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def rows_of(result: dict[str, Any]) -> list[Row]:
    """Return a row per arm, in the table's order."""
    from scipy import stats

    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for run in result["runs"]:
        arms.setdefault(run["arm"], {})[run["seed"]] = run
    rows = []
    for arm, runs in arms.items():
        each = {seed: 100 * metric_of(run) for seed, run in runs.items()}
        difference = None
        both = sorted(each.keys() & arms.get(BASELINE, {}).keys())
        if arm != BASELINE and len(both) > 2:  # the interval of two is chance
            gaps = [each[seed] - 100 * metric_of(arms[BASELINE][seed]) for seed in both]
            half = stats.t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / len(gaps) ** 0.5
            mean = statistics.mean(gaps)
            difference = (mean, mean - half, mean + half)
        rows.append(
            Row(
                arm=arm,
                seeds=len(each),
                accuracy=statistics.mean(each.values()),
                deviation=statistics.stdev(each.values()) if len(each) > 1 else 0.0,
                difference=difference,
                recipe=next(iter(runs.values()))["recipe"],
            )
        )
    return rows


def metric_of(run: dict[str, Any]) -> float:
    """Return what a training's table compares, 0 to 1."""
    return float(run[METRICS[run["recipe"].get("task", "classification")]])


def said(row: Row) -> tuple[str, str]:
    """Return how accuracy and difference are written in a table."""
    spread = f" ± {row.deviation:.2f}" if row.seeds > 1 else ""
    accuracy = f"{row.accuracy:.2f}{spread} ({row.seeds})"
    if row.difference is None:
        return accuracy, ""
    return accuracy, "{:+.2f} ({:+.2f} to {:+.2f})".format(*row.difference)
