"""The same networks through several exporters and optimisers: nodes, bytes, exactness and latency in ONNX Runtime.

    python benchmarks/peers/graphs.py [--out FILE] [--only vgg7,u_net] [--seconds S]

All graphs of one network are loaded at once and take turns in blocks of randomised mirrored order, for every batch
size and number of threads. Graphs that ONNX Runtime turns into one and the same, weights aside, are timed once: there
is nothing between them to measure. FILE is written after each network, and a second run goes on where it stops.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from graphs_arms import OURS, Row, build
from graphs_exact import runner_of
from graphs_nets import CASES, Case, inputs
from graphs_table import table
from onnx import ModelProto

from msn_deploy.bench.measure import BLOCKS_PER_ROUND, MIN_ROUNDS, Arm, MeasureOptions, measure
from msn_deploy.bench.stats import block_medians, ratio_to_baseline
from msn_deploy.core.errors import InvalidMeasurement
from msn_deploy.core.optional import version_of
from msn_deploy.machine.environment import read_environment

SCHEMA = "msn-deploy-graphs/1"
ACROSS = "densenet_bc across norms"
BATCHES = (1, 32)
THREADS = (1, 2)
_BLOCK_MS = 10
_SLOW_MS = 50  # a query that long needs none before it to settle
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxsim", "onnxslim", "onnxruntime")


def timed(
    graphs: dict[str, ModelProto], runs: dict[str, str], x: np.ndarray, *, threads: int, seconds: float
) -> dict[str, Any]:
    """Time every different graph of `graphs` on the input x.

    runs: what identifies the graph that ONNX Runtime runs, by arm. Returns the block medians (ms) by the first arm with
    such a graph (`blocks_ms`), and for every arm which one that is (`timed_as`).
    """
    first: dict[str, str] = {}
    timed_as = {name: first.setdefault(runs[name], name) for name in graphs}
    with ExitStack() as stack:
        runners = {name: stack.enter_context(runner_of(graphs[name], threads=threads)) for name in first.values()}
        arms = [
            Arm(name=name, run=lambda runner=runner: runner.run({runner.inputs[0].name: x}))
            for name, runner in runners.items()
        ]
        queries_ms = [_query_ms(arm.run) for arm in arms]
        blocks_s = BLOCKS_PER_ROUND * statistics.fmean(max(each, 1.5 * _BLOCK_MS) for each in queries_ms) / 1e3
        seconds = max(seconds, 1.2 * MIN_ROUNDS * blocks_s)
        settle = 0 if max(queries_ms) > _SLOW_MS else 1
        while True:
            options = MeasureOptions(
                seconds=seconds,
                block_ms=_BLOCK_MS,
                warmup_seconds=0.2,
                warmup_queries=3,
                settle_queries=settle,
            )
            try:
                samples = measure(arms, options=options)
                break
            except InvalidMeasurement:  # slower by now than when it was tried out
                seconds *= 2
    blocks = {arm.name: [round(each / 1e6, 6) for each in block_medians(arm.blocks)] for arm in samples.arms}
    return {"timed_as": timed_as, "blocks_ms": blocks}


def _query_ms(run: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        taken.append(1e3 * (time.perf_counter() - start))
    return min(taken)


def compared(measured: dict[str, Any], baselines: list[str]) -> dict[str, Any]:
    """Add to the times of `timed` each arm's median and its ratio to the fastest of the baselines, if there is one."""
    timed_as, blocks = measured["timed_as"], measured["blocks_ms"]
    medians = {name: statistics.median(blocks[timed_as[name]]) for name in timed_as}
    best = min(baselines, key=medians.__getitem__, default=None)
    rows = {}
    for name, median in medians.items():
        row: dict[str, Any] = {"median_ms": round(median, 4), "to_best": None}
        if best is not None:
            row["same_graph"] = timed_as[name] == timed_as[best]
            ratio = ratio_to_baseline(np.array(blocks[timed_as[name]]), np.array(blocks[timed_as[best]]))
            row["to_best"] = [round(each, 4) for each in (ratio.ratio, ratio.low, ratio.high)]
        rows[name] = row
    return {"best": best, "rows": rows, **measured}


def latencies(
    rows: dict[str, Row], shape: tuple[int, ...], baselines: list[str], *, seconds: float
) -> list[dict[str, Any]]:
    """Compare the arms that have graphs, for every batch size and number of threads."""
    found = []
    for batch in BATCHES:
        x = inputs(shape, batch, seed=7).numpy()
        graphs = {name: row.graphs[batch] for name, row in rows.items() if row.graphs}
        runs = {name: rows[name].facts["runs"][str(batch)] for name in graphs}
        for threads in THREADS:
            measured = timed(graphs, runs, x, threads=threads, seconds=seconds)
            found.append({"batch": batch, "threads": threads, **compared(measured, baselines)})
    return found


def exact_peers(rows: dict[str, Row]) -> list[str]:
    return [name for name, row in rows.items() if name != OURS and row.facts.get("is_exact")]


def one_network(case: Case, rows: dict[str, Row], *, seconds: float) -> dict[str, Any]:
    """Return what the result file holds of one network: its rows, and the times of all arms that have graphs."""
    return {
        "net": case.net,
        "norm": case.norm,
        "shape": list(case.shape),
        "rows": {name: row.facts for name, row in rows.items()},
        "latency": latencies(rows, case.shape, exact_peers(rows), seconds=seconds),
    }


def across_norms(built: dict[str, dict[str, Row]], *, seconds: float) -> dict[str, Any]:
    """Compare graphs of networks that do the same job: ours of every norm with the peers' exact ones of BatchNorm."""
    arms: dict[str, Row] = {}
    for name, rows in built.items():
        chosen = [*exact_peers(rows), OURS] if CASES[name].norm == "bn" else [OURS]
        arms |= {f"{CASES[name].norm}: {arm}": rows[arm] for arm in chosen}
    baselines = [name for name in arms if name.startswith("bn: ") and not name.endswith(OURS)]
    shape = next(iter(CASES[name].shape for name in built))
    return {
        "net": "DenseNet-BC",
        "norm": "across norms",
        "shape": list(shape),
        "rows": {name: row.facts for name, row in arms.items()},
        "latency": latencies(arms, shape, baselines, seconds=seconds),
    }


def read_result(out: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the result to go on with: that of the file, if it is there. Exits if that was measured otherwise."""
    if out is not None and out.exists():
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        if (found.get("schema"), found.get("options")) != (SCHEMA, options):
            raise SystemExit(f"{out} was measured with other options; name another --out or remove it.")
        return found
    return {
        "schema": SCHEMA,
        "what": "graphs of one network by several exporters and optimisers; latency in ONNX Runtime on the CPU",
        "options": options,
        "versions": {name: version_of(name) for name in _VERSIONS},
        "environment": read_environment().to_json(),
        "networks": {},
    }


def write(result: dict[str, Any], out: Path) -> None:
    """Replace the file at once, so that a run that is killed leaves a whole one."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(result) + "\n", encoding="utf-8")
    os.replace(part, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="measured time per graph and case, s; more if needed")
    parser.add_argument("--only", default="", help=f"networks with one of these words: {', '.join(CASES)}, across")
    parser.add_argument("--out", type=Path, help="write the JSON here; go on with it if it is there")
    options = parser.parse_args()
    logging.getLogger("msn_deploy").setLevel(logging.ERROR)  # which norms stay is in the table
    words = [word for word in options.only.split(",") if word]
    chosen = [name for name in (*CASES, ACROSS) if not words or any(word in name for word in words)]
    result = read_result(options.out, {"seconds": options.seconds, "batches": [*BATCHES], "threads": [*THREADS]})
    built: dict[str, dict[str, Row]] = {}
    for name in chosen:
        if name in result["networks"]:
            continue
        sys.stderr.write(f"{name}\n")
        if name == ACROSS:
            wanted = [each for each in CASES if CASES[each].net == "DenseNet-BC"]
            built |= {each: build(CASES[each], BATCHES) for each in wanted if each not in built}
            entry = across_norms({each: built[each] for each in wanted}, seconds=options.seconds)
        else:
            rows = build(CASES[name], BATCHES)
            if CASES[name].net == "DenseNet-BC":
                built[name] = rows  # wanted once more in the end
            entry = one_network(CASES[name], rows, seconds=options.seconds)
        result["networks"][name] = entry
        if options.out is not None:
            write(result, options.out)
    sys.stdout.write(table(result) + "\n")


if __name__ == "__main__":
    main()
