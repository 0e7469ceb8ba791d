"""What does `bench` cost on top of a query, and how much of that is in the number it prints?

    python benchmarks/overhead.py [--seconds S] [--out FILE]

call     an empty function: a bare loop over it against the loop that `bench` times queries with
network  a tiny ONNX network: a bare loop over the runner, fed with one image, against all that `bench` does per query,
         which is the clock and the next image; this is what the limit is for
runner   the same network: a bare loop over ONNX Runtime's session against one over the runner, which checks its input
         and output; no part of `bench`, but it lies within every latency

Both loops take turns in mirrored random order, as models do in `bench`. "added" is what a query takes longer by the
clock on the wall, "reported" what of it lies between the two readings of the clock and so in the latency.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from result import add_out, give

from msn_deploy.bench.bootstrap import single_draws, widened
from msn_deploy.bench.measure import _block_order, time_queries
from msn_deploy.engine import load_runner
from msn_deploy.machine.environment import read_environment
from msn_deploy.pipeline.bench import _query

LIMIT_NS = 2000
CHUNK = 200  # queries per loop: short enough for both to see the same machine
_clock = time.perf_counter_ns
Loop = Callable[[Callable[[], object]], tuple[float, float]]


def tiny_network(folder: Path) -> Path:
    """Write y = x for one 8x8 image: the smallest query that ONNX Runtime answers."""
    import onnx
    from onnx import TensorProto, helper

    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 8, 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", [given], [made])
    path = folder / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def bare_loop(call: Callable[[], object]) -> tuple[float, float]:
    """Return nanoseconds per query by the wall, and again, as nothing else is reported."""
    start = _clock()
    for _ in range(CHUNK):
        call()
    wall = (_clock() - start) / CHUNK
    return wall, wall


def bench_loop(call: Callable[[], object]) -> tuple[float, float]:
    """Return nanoseconds per query by the wall, and as reported (mean)."""
    start = _clock()
    taken = time_queries(call, CHUNK, _clock)
    return (_clock() - start) / CHUNK, sum(taken) / CHUNK


def compared(
    bare: Callable[[], object], ours: Callable[[], object], *, seconds: float, loop: Loop = bench_loop
) -> dict[str, Any]:
    """Return bare, added and reported nanoseconds per query, each with a 95 % interval over rounds."""
    for _ in range(20):
        bare_loop(bare), loop(ours)
    round_s = 4 * CHUNK * bare_loop(bare)[0] / 1e9
    rounds = min(5000, max(50, int(seconds / round_s)))
    walls: tuple[list[float], list[float]] = ([], [])
    reported: list[float] = []
    gc.disable()
    for index in _block_order(2, rounds, seed=0):
        wall, shown = loop(ours) if index else bare_loop(bare)
        walls[index].append(wall)
        if index:
            reported.append(shown)
    gc.enable()
    plain, timed, shown_ns = (np.array(each).reshape(-1, 2).mean(axis=1) for each in (*walls, reported))
    return {
        "rounds": rounds,
        "bare_ns": _estimate(plain),
        "added_ns": _estimate(timed - plain),
        "reported_ns": _estimate(shown_ns - plain),
    }


def _estimate(values: Any) -> dict[str, Any]:
    centre = float(np.median(values))
    draws = single_draws(values[None, :], 10_000, seed=0)
    low, high, _ = widened(draws, centre=centre, freedom=len(values) - 1, units=len(values), alpha=0.05)
    return {"median": round(centre, 1), "interval": [round(float(each), 1) for each in (low, high)]}


def measured(seconds: float) -> dict[str, Any]:
    """Return both cases with the machine they were measured on."""
    with TemporaryDirectory() as folder:
        runner = load_runner(tiny_network(Path(folder)), threads=1)
    images = list(np.random.default_rng(0).standard_normal((64, 1, 1, 8, 8), dtype=np.float32))
    feeds = [{runner.inputs[0].name: image} for image in images]
    session = runner._session  # type: ignore[attr-defined]
    bare = partial(runner.run, feeds[0])
    cases = {
        "call": compared(lambda: None, lambda: None, seconds=seconds),
        "network": compared(bare, _query(runner, feeds), seconds=seconds),
        "runner": compared(partial(session.run, None, feeds[0]), bare, seconds=seconds, loop=bare_loop),
    }
    for case in (cases["call"], cases["network"]):
        case["within_limit"] = bool(case["added_ns"]["interval"][1] <= LIMIT_NS)
    return {"limit_ns": LIMIT_NS, "cases": cases, "environment": read_environment().to_json()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each case")
    add_out(parser)
    options = parser.parse_args()
    result = measured(options.seconds)
    give(result, options.out)


if __name__ == "__main__":
    main()
