"""Does `bench` tell a difference where there is none, and does it tell one that is there? On this machine, under load.

    python benchmarks/control.py [--runs 20] [--seconds S] [--out FILE]

same    VGG7 with MSN, trained for a moment, exported and folded, against a copy of its own file: FASTER and SLOWER
        are false then; `--runs` times
larger  three convolutions against the same with 5 % more channels in the widest, so that SLOWER is right; four times

Each run is the command that users type, a process of its own. In every second run (drawn at random) another process
loads a core, in spells of random length.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from result import add_out, give

from msn_deploy.bench import from_json
from msn_deploy.core.optional import version_of
from msn_deploy.machine.environment import read_environment

SCHEMA = "msn-deploy-control/1"
CHANNELS, MORE_CHANNELS = 320, 336  # of the widest layer: 20 and 21 blocks of 16, in which ONNX Runtime computes
_LARGER_RUNS = 4
_INVALID = 4  # exit code
_LOAD = """
import random, time
draw = random.Random(int({seed}))
while True:
    until = time.perf_counter() + draw.uniform(0.05, 1.0)
    while time.perf_counter() < until:
        sum(range(1000))
    time.sleep(draw.uniform(0.05, 1.0))
"""


def network(path: Path, channels: int) -> None:
    """Write three convolutions of random weights on 32x32 images; nine tenths of the work hang on `channels`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(5)
    nodes, weights, read = [], [], "x"
    for at, (before, after) in enumerate([(3, 64), (64, channels), (channels, 64)]):
        weight = draw.normal(scale=(9 * before) ** -0.5, size=(after, before, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{at}"))
        nodes.append(helper.make_node("Conv", [read, f"w{at}"], [f"c{at}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"]))
        read = f"r{at}"
    nodes += [helper.make_node("GlobalAveragePool", [read], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["y"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])
    graph = helper.make_graph(nodes, "control", [given], [made], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def vgg7_twice(folder: Path) -> tuple[Path, Path]:
    """Train VGG7 on a few images, export it, and return the file and its copy."""
    checkpoint, same, copy = folder / "vgg7_msn.safetensors", folder / "same.onnx", folder / "copy.onnx"
    _msn_deploy("train", "vgg7_msn", "--epochs", "1", "--limit-train", "256", "--out", str(folder))
    _msn_deploy("export", str(checkpoint), "--out", str(same))
    shutil.copy(same, copy)
    return same, copy


def _msn_deploy(*words: str) -> None:
    command = [sys.executable, "-m", "msn_deploy", "--quiet", *words]
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
    if code not in (0, _INVALID):
        raise SystemExit(f"{words[0]} ended with exit {code}")


@contextmanager
def load(seed: int | None) -> Iterator[None]:
    """Keep a core busy in spells meanwhile; None leaves the machine alone."""
    if seed is None:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", _LOAD.format(seed=seed)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def one_run(arm: Path, baseline: Path, seconds: float) -> dict[str, Any]:
    """Measure by the command line, one thread, and return what it says of `arm`."""
    result = arm.with_suffix(".json")
    result.unlink(missing_ok=True)  # too short a run writes none
    options = ["--threads", "1", "--seconds", str(seconds), "--json", str(result)]
    _msn_deploy("bench", str(arm), "--baseline", str(baseline), *options)
    found = from_json(result.read_text(encoding="utf-8"), source=str(result))
    (one,) = (each for each in found.arms if each.name == arm.stem)
    return {
        "verdict": one.verdict,
        "ratio": round(one.ratio, 4),
        "interval": [round(each, 4) for each in one.ratio_interval],
        "median_ms": round(one.median_ms, 4),
        "valid": found.validity.valid,
    }


def measured(runs: int, larger_runs: int, seconds: float) -> dict[str, Any]:
    """Run both series; in half of each, drawn at random, a core is loaded."""
    draw = random.Random(7)
    series: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="msn-deploy-") as name:
        folder = Path(name)
        pairs = {"same": vgg7_twice(folder), "larger": (folder / "larger.onnx", folder / "smaller.onnx")}
        for path, channels in zip(pairs["larger"], (MORE_CHANNELS, CHANNELS), strict=True):
            network(path, channels)
        for (kind, pair), count in zip(pairs.items(), (runs, larger_runs), strict=True):
            series[kind] = []
            for at, busy in enumerate(draw.sample([at % 2 == 1 for at in range(count)], count)):
                with load(at if busy else None):
                    series[kind].append({"loaded": busy, **one_run(*pair, seconds)})
                sys.stderr.write(f"\r{kind}: {at + 1} of {count} runs ")
        sys.stderr.write("\n")
    return {
        "schema": SCHEMA,
        "what": "verdicts of bench where the truth is known: a copy of the baseline, and 5 % more channels",
        "seconds": seconds,
        "versions": {name: version_of(name) for name in ("onnxruntime", "numpy")},
        "environment": read_environment().to_json(),
        "verdicts": {name: dict(Counter(each["verdict"] for each in found)) for name, found in series.items()},
        "runs": series,
    }


def text(result: Path) -> str:
    """Return what the README says of a committed result."""
    value = json.loads(result.read_text(encoding="utf-8"))
    same, larger = value["runs"]["same"], value["runs"]["larger"]
    false = sum(each["verdict"] in ("FASTER", "SLOWER") for each in same)
    found = sum(each["verdict"] == "SLOWER" for each in larger)
    low, high = (at(each["ratio"] for each in larger) for at in (min, max))
    return (
        f"Compared with a copy of itself in {len(same)} runs, a VGG7 came out FASTER or SLOWER {false} times, though "
        f"in {sum(each['loaded'] for each in same)} of them another process loaded a core in spells. A network whose "
        f"widest layer has 5 % more channels was called SLOWER in {found} of {len(larger)} ({low:.3f} to {high:.3f}).\n"
        "`make control`, raw in `benchmarks/results/epyc-2-cores/control.json`."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0, help="per model and run")
    add_out(parser)
    options = parser.parse_args()
    result = measured(options.runs, _LARGER_RUNS, options.seconds)
    give(result, options.out)


if __name__ == "__main__":
    main()
