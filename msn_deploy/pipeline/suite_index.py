"""What a suite found, in one small file: medians, ratios, verdicts, accuracy and size of every row of every case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msn_deploy.bench import ArmResult, BenchResult
from msn_deploy.bench.compare import ratio_between
from msn_deploy.bench.stats import Ratio, holm
from msn_deploy.core.artifacts import parent_of, publish, write_json
from msn_deploy.core.suites import Suite
from msn_deploy.machine.environment import Environment, machine_name
from msn_deploy.pipeline.suite import Outcome, arm_name
from msn_deploy.report.suite_page import suite_html
from msn_deploy.report.suite_text import markdown

SCHEMA = "msn-deploy-suite/1"


def write_index(suite: Suite, outcomes: Sequence[Outcome], out: Path) -> dict[str, Any]:
    """Write suite.json, suite.md and report.html of a suite into `out`, atomically, with sidecars; return the index."""
    index = index_of(suite, outcomes)
    results = {each.case.name: each.result for each in outcomes if each.result is not None}
    parents = [parent_of(out / f"{name}.json", role="bench") for name in results]
    page = suite_html(index, results)
    publish(out / "suite.json", lambda path: write_json(path, index), kind="suite", parents=parents)
    publish(
        out / "suite.md",
        lambda path: path.write_text(markdown(index) + "\n", "utf-8"),
        kind="suite-table",
        parents=parents,
    )
    publish(out / "report.html", lambda path: path.write_text(page, "utf-8"), kind="report", parents=parents)
    return index


def index_of(suite: Suite, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the index, JSON values only. Its environment is that of the first case that was measured."""
    measured = [each.result for each in outcomes if each.result is not None]
    environment = measured[0].environment if measured else Environment()
    return {
        "schema": SCHEMA,
        "suite": suite.name,
        "title": suite.title,
        "machine": machine_name(environment),
        "provider": suite.provider,
        "threads": measured[0].profile.threads if measured else suite.threads,
        "environment": environment.to_json(),
        "cases": [_case(suite, each) for each in outcomes],
    }


def _case(suite: Suite, outcome: Outcome) -> dict[str, Any]:
    case, result = outcome.case, outcome.result
    return {
        "case": case.name,
        "file": None if result is None else f"{case.name}.json",
        "network": case.network.title or case.network.name,
        "batch": case.batch,
        "invalid": outcome.invalid,
        "baseline": "" if result is None else result.baseline,
        "reference": case.network.reference,
        "arms": [] if result is None else _arms(suite, outcome, result),
    }


def _arms(suite: Suite, outcome: Outcome, result: BenchResult) -> list[dict[str, Any]]:
    network = outcome.case.network
    arms = {arm.name: arm for arm in result.arms}
    pairs = [(row, precision) for precision in suite.precisions for row in network.rows]
    ratios = _to_reference(arms, network.reference, list(suite.precisions))
    found = []
    for row, precision in pairs:
        arm = arms[arm_name(row.name, precision)]
        other = arms.get(arm_name(network.reference, precision))
        ratio = ratios.get(arm.name)
        found.append(
            {
                "name": arm.name,
                "row": row.name,
                "precision": precision,
                **{key: arm.facts.get(key) for key in ("norm", "folded", "accuracy", "bytes", "graph", "sha256")},
                **{key: getattr(arm, key) for key in ("median_ms", "p90_ms", "p99_ms", "ratio", "verdict")},
                "ratio_interval": list(arm.ratio_interval),
                "to_reference": None if ratio is None else asdict(ratio),
                "same_graph": ratio is not None and other is not None and _same_graph(arm, other),
            }
        )
    return found


def _to_reference(arms: dict[str, ArmResult], reference: str, precisions: list[str]) -> dict[str, Ratio]:
    """Compare every arm with the reference in its own precision; p-values are for all of these comparisons together."""
    pairs = {}
    for precision in precisions:
        other = arm_name(reference, precision)
        mine = [name for name in arms if name.endswith(arm_name("", precision)) and name != other]
        pairs |= {name: ratio_between(arms[name], arms[other]) for name in mine if other in arms}
    return dict(zip(pairs, holm(list(pairs.values())), strict=True)) if pairs else {}


def _same_graph(arm: ArmResult, other: ArmResult) -> bool:
    return bool(arm.facts.get("graph")) and arm.facts["graph"] == other.facts.get("graph")
