"""Does `calibrate --tune latency` let out the layers that are slower in INT8, and these alone?

    python benchmarks/tune_latency.py [--slow 2] [--same 20] [--out FILE]

slow    a network in which two of six layers are slower in INT8 on ONNX Runtime's CPU kernels (SLOW); `--slow` times
same    every candidate is the INT8 file of that network, so that whatever is let out is noise; `--same` times

In half of the runs of `same`, drawn at random, another process loads a core, in spells of random length.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from control import load
from onnx import ModelProto, numpy_helper
from result import add_out, give

from msn_deploy.bench.stats import Ratio
from msn_deploy.machine.environment import read_environment
from msn_deploy.machine.state import Probe
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.tune import find_slow, loaded

SCHEMA = "msn-deploy-tune-latency/1"
INPUT = (1, 32, 64, 64)
NETWORK = """(float[1,32,64,64] x) => (float[1,32,64,64] last) {
    first = Conv<pads=[1,1,1,1]>(x, w0)               a = Abs(first)
    narrow = Conv<pads=[1,1,1,1], group=16>(a, w1)    b = Abs(narrow)
    second = Conv<pads=[1,1,1,1]>(b, w2)              c = Abs(second)
    wide = Conv<pads=[1,1,1,1], group=8>(c, w3)       d = Abs(wide)
    third = Conv<pads=[1,1,1,1]>(d, w4)               e = Relu(third)
    last = Conv<pads=[1,1,1,1]>(e, w5)
}"""
WEIGHTS = dict.fromkeys(("w0", "w2", "w4", "w5"), (32, 32, 3, 3)) | {"w1": (32, 2, 3, 3), "w3": (32, 4, 3, 3)}
SLOW = ("narrow", "wide")
"""Convolutions in 16 and 8 groups: ONNX Runtime's INT8 kernel multiplies them group by group."""


def network() -> ModelProto:
    """Return the network, with seeded random weights; each layer is called like its output."""
    model: ModelProto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> tuned {NETWORK}')
    draw = np.random.default_rng(5)
    for name, shape in WEIGHTS.items():
        weight = draw.normal(scale=np.prod(shape[1:]) ** -0.5, size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model


def files(folder: Path) -> tuple[Path, Path]:
    """Write the network and what it is fed; return both."""
    path, feeds = folder / "net.onnx", folder / "feeds.npz"
    path.write_bytes(network().SerializeToString())
    np.savez(feeds, x=np.random.default_rng(6).standard_normal((32, *INPUT[1:])).astype(np.float32))
    return path, feeds


def tuned(path: Path, feeds: Path) -> dict[str, Any]:
    """Tune the network as users do, and return what was let out, and the table."""
    report = calibrate(path, data=str(feeds), runtime="onnxruntime", tune="latency")
    assert report.tuning is not None
    return {
        "let_out": list(report.tuning.let_out),
        "together": _row(report.tuning.together),
        "layers": [
            {"layer": each.layer, "precision": each.precision, "sqnr_db": each.sqnr_db, "time": _row(each.time)}
            for each in report.tuning.layers
        ],
        "timed_by": report.tuning.timed_by,
    }


def same(path: Path, feeds: Path, layers: Sequence[str], seed: int) -> dict[str, Any]:
    """Tune where all candidates are one INT8 file, and return what was let out of it."""
    graph = onnx.load(str(path))
    x = np.load(feeds)["x"]
    queries = [{"x": x[at : at + 1]} for at in range(16)]
    found = find_slow(layers, lambda _: loaded(graph, queries, None), seed=seed, probe=Probe())
    return {
        "let_out": list(found.let_out),
        "slow": list(found.slow),
        "times": {name: _row(time) for name, time in found.times.items()},
    }


def _row(time: Ratio | None) -> list[float] | None:
    return None if time is None else [round(each, 4) for each in (time.ratio, time.low, time.high)]


def measured(slow: int, same_runs: int) -> dict[str, Any]:
    """Run both series."""
    draw = random.Random(7)
    series: dict[str, list[dict[str, Any]]] = {"slow": [], "same": []}
    with tempfile.TemporaryDirectory(prefix="msn-deploy-") as name:
        path, feeds = files(Path(name))
        int8 = calibrate(path, Path(name) / "all.int8.onnx", data=str(feeds), runtime="onnxruntime").path
        layers = [node.output[0] for node in network().graph.node if node.op_type == "Conv"]
        for at in range(slow):
            series["slow"].append(tuned(path, feeds))
            sys.stderr.write(f"slow, {at + 1} of {slow}: let out {series['slow'][-1]['let_out']}\n")
        for at, busy in enumerate(draw.sample([at % 2 == 1 for at in range(same_runs)], same_runs)):
            with load(at if busy else None):
                series["same"].append({"loaded": busy, **same(int8, feeds, layers, seed=at)})
            sys.stderr.write(f"same, {at + 1} of {same_runs}: let out {series['same'][-1]['let_out']}\n")
    return {
        "schema": SCHEMA,
        "what": "layers that --tune latency lets out where the truth is known: two slow layers, and equal files",
        "network": NETWORK,
        "truth": list(SLOW),
        "environment": read_environment().to_json(),
        "right": sum(sorted(each["let_out"]) == sorted(SLOW) for each in series["slow"]),
        "false": sum(bool(each["let_out"]) for each in series["same"]),
        "runs": series,
    }


def text(result: Path) -> str:
    """Return what the docs say of a committed result."""
    value = json.loads(result.read_text(encoding="utf-8"))
    slow, same_runs = value["runs"]["slow"], value["runs"]["same"]
    rows = ["| layer | precision | SQNR, dB | time without INT8 in it (95 %) |", "|---|---|---|---|"]
    for each in slow[0]["layers"]:
        time = "{:.3f} ({:.3f} to {:.3f})".format(*each["time"])
        rows.append(f"| {each['layer']} | {each['precision'].upper()} | {each['sqnr_db']:.1f} | {time} |")
    together = "{:.3f} ({:.3f} to {:.3f})".format(*slow[0]["together"])
    loaded_runs = sum(each["loaded"] for each in same_runs)
    rows += [
        "",
        f"A network built for it: `{'` and `'.join(value['truth'])}` have groups, which ONNX Runtime's INT8 kernel "
        f"multiplies one by one. {value['right']} of {len(slow)} runs let out exactly these; without them the network "
        f"takes {together} of the time. In {len(same_runs)} runs all candidates were one file: {value['false']} of "
        f"them let out a layer, though in {loaded_runs} another process loaded a core in spells. "
        f"{slow[0]['timed_by']} "
        f"({value['environment']['cpu']}); other work ran on the machine. Raw, by `python benchmarks/tune_latency.py`: "
        f"`benchmarks/results/{result.parent.name}/{result.name}`.",
    ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", type=int, default=2)
    parser.add_argument("--same", type=int, default=20)
    add_out(parser)
    options = parser.parse_args()
    result = measured(options.slow, options.same)
    give(result, options.out)


if __name__ == "__main__":
    main()
