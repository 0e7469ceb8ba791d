"""How many images per second does ONNX Runtime take with 1, 2 and 4 queries in flight, and does `bench` say so?

    python benchmarks/in_flight.py [--only NETWORK] [--batches 1,8,32] [--in-flight 1,2,4] [--out FILE]

bench      what `bench --profile throughput` counts: the sum of the lanes' rates over whole queries
by hand    threads that call one session in a loop and note when they had each answer; after a while that is left out,
           the answers of each thread from its first until its first after the block's end, over the time between those
           two, added up (what ended at the last answer inside of the block would leave out long queries rather than
           short ones)
alone      one query at a time on all cores, as `--profile single-stream` measures it

The first two call one session, since two of the same file and options differ by up to 4 %, which has nothing to do with
counting. All take turns in rounds of randomised mirrored order, in ONNX Runtime on the CPU, for VGG7 and ResNet-18 on
32x32 images. Networks are untrained: times do not hang on weights. The rate of `bench` has to lie within 5 % of that
counted by hand, interval included.

One rule for all cases says how long: a block is 150 ms, or as long as four queries of each thread take; each arm is
measured for 20 s (for as long as ten rounds take, if that is longer), and as long again, until the ratio's interval is
at most 0.05 wide, wherever it lies, or 120 s are over. All that was measured counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from result import add_out, give

from msn_deploy.bench.load import LoadedBlock, ThreadedLoad
from msn_deploy.bench.measure import Arm, ArmFacts, MeasureOptions, Samples, measure, time_queries
from msn_deploy.bench.stats import mean_interval, ratio_to_baseline
from msn_deploy.core.errors import InvalidMeasurement
from msn_deploy.core.recipes import load_recipe
from msn_deploy.engine import load_runner
from msn_deploy.machine.environment import read_environment
from msn_deploy.machine.state import usable_cores
from msn_deploy.nets import build_net
from msn_deploy.pipeline.bench_load import bound_query, load_of, threads_under_load
from msn_deploy.pipeline.export import export_onnx

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from resnet18 import resnet18_32

SHAPE = (1, 3, 32, 32)
NETWORKS = {
    "VGG7": lambda: build_net(replace(load_recipe("vgg7_msn"), input_shape=SHAPE), classes=10).eval(),
    "ResNet-18": resnet18_32,
}
WITHIN = 0.05
PART_S, MOST_S = 20, 120  # of an arm
WIDE = 0.05
BLOCK_MS = 150
EACH = 4  # queries of a thread in a block
LOOK_S = 0.02
FEEDS = 16


class ByHand:
    """A loop of threads as one writes it; `block` has the form of bench.load.Load, with which it takes turns."""

    spread_ns = ThreadedLoad.spread_ns

    def __init__(self, session: Any, feeds: list[Any], in_flight: int) -> None:
        self._session, self._feeds = session, feeds
        self.in_flight, self._ns_per_query = in_flight, 1e6

    def block(self, queries: int, settle: int, clock: Any) -> LoadedBlock:
        answers: list[list[int]] = [[] for _ in range(self.in_flight)]
        stop = False

        def loop(own: list[int]) -> None:
            for feeds in itertools.cycle(self._feeds):
                if stop:
                    return
                self._session.run(None, feeds)
                own.append(time.perf_counter_ns())

        workers = [threading.Thread(target=loop, args=(own,)) for own in answers]
        for worker in workers:
            worker.start()
        time.sleep(self.spread_ns / 1e9)
        while min(map(len, answers)) < settle:
            time.sleep(LOOK_S)  # one that looks all the time has its threads put back on a busy core sooner
        before = list(map(len, answers))
        time.sleep(queries * self._ns_per_query / 1e9)
        ends = [max(len(own), skipped + 1) for own, skipped in zip(answers, before, strict=True)]
        while any(len(own) <= end for own, end in zip(answers, ends, strict=True)):
            time.sleep(LOOK_S)
        counted = [own[skipped : end + 1] for own, skipped, end in zip(answers, before, ends, strict=True)]
        stop = True
        for worker in workers:
            worker.join()
        self._ns_per_query = 1 / sum((len(own) - 1) / (own[-1] - own[0]) for own in counted)
        return LoadedBlock(samples=[round(self._ns_per_query)], ns_per_query=self._ns_per_query)


def exported(network: str, batch: int, folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / f"{network}-{batch}.onnx"
    export_onnx(NETWORKS[network](), path, input_shape=(batch, *SHAPE[1:]))
    return path


def measured(arms: list[Arm]) -> tuple[Samples, ...]:
    """Measure part by part until the ratio of the first two arms is known well enough, or for as long as is allowed."""
    alone_ms = statistics.median(time_queries(arms[-1].run, 20, time.perf_counter_ns)[10:]) / 1e6
    options = MeasureOptions(
        seconds=PART_S,
        block_ms=max(BLOCK_MS, EACH * arms[0].in_flight * alone_ms),
        warmup_seconds=1,
        warmup_queries=8,
    )
    parts = list[Samples]()
    while True:
        try:
            parts.append(measure(arms, options=replace(options, seed=len(parts))))
        except InvalidMeasurement:  # ten rounds do not fit
            options = replace(options, seconds=options.seconds + PART_S)
            continue
        ratio = ratio_to_baseline(rates_of(parts, 0), rates_of(parts, 1))
        if ratio.high - ratio.low <= WIDE or (len(parts) + 1) * options.seconds > MOST_S:
            return tuple(parts)


def rates_of(parts: Sequence[Samples], at: int) -> Any:
    """Return ns per query of each block of an arm, shape (1, blocks), in time order."""
    arms = [part.arms[at] for part in parts]
    return np.array(
        [[ns for arm in arms for ns in ([block.ns_per_query for block in arm.loaded] or map(np.mean, arm.blocks))]]
    )


def compared(path: Path, batch: int, in_flight: int) -> dict[str, Any]:
    cores = len(usable_cores())
    threads = threads_under_load(None, in_flight)
    runner, alone = load_runner(path, threads=threads), load_runner(path, threads=cores)
    name = runner.inputs[0].name
    generator = np.random.default_rng(0)
    feeds = [{name: generator.random((batch, *SHAPE[1:]), dtype=np.float32)} for _ in range(FEEDS)]
    alone_query = bound_query(alone, feeds)
    load = load_of(runner, feeds, streams=in_flight, copies=True, root=Path("/"))
    by_hand: Any = ByHand(runner._session, feeds, in_flight)
    arms = [
        Arm(name="bench", run=alone_query, load=load, facts=ArmFacts(in_flight=in_flight)),
        Arm(name="by hand", run=alone_query, load=by_hand),
        Arm(name="alone", run=alone_query),
    ]
    parts = measured(arms)
    found = {arm.name: rates_of(parts, at) for at, arm in enumerate(arms)}
    options = parts[0].options
    rows: dict[str, Any] = {
        "batch": batch,
        "in_flight": in_flight,
        "threads": threads,
        "rounds": found["bench"].size // 2,
        "seconds": len(parts) * options.seconds,
        "block_ms": round(options.block_ms, 1),
    }
    for arm, ns in found.items():
        mean, low, high = mean_interval(ns)
        rows[arm] = [round(1e9 * batch / each, 2) for each in (mean, high, low)]
    for key, over in (("bench_to_by_hand", "by hand"), ("gain_over_alone", "alone")):
        ratio = ratio_to_baseline(found["bench"], found[over])
        rows[key] = [round(1 / each, 4) for each in (ratio.ratio, ratio.high, ratio.low)]
    latencies = np.concatenate([np.asarray(block) for part in parts for block in part.arms[0].blocks]) / 1e6
    rows["latency_ms"] = {f"p{each}": round(float(np.percentile(latencies, each)), 3) for each in (50, 95, 99)}
    usage = [block.usage for part in parts for block in part.arms[0].loaded if block.usage is not None]
    rows["cores_busy"] = round(float(np.mean([each.cores for each in usage])), 3)
    _, low, high = rows["bench_to_by_hand"]
    rows["within_5_percent"] = bool(low >= 1 - WITHIN and high <= 1 + WITHIN)
    rows["blocks_ns_per_query"] = {arm: [round(float(each)) for each in ns.ravel()] for arm, ns in found.items()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a network's name")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--in-flight", default="1,2,4")
    add_out(parser)
    asked = parser.parse_args()
    cases = []
    with TemporaryDirectory() as folder:
        for network in NETWORKS:
            for batch in map(int, asked.batches.split(",")) if asked.only in ("", network) else ():
                path = exported(network, batch, Path(folder))
                for in_flight in map(int, asked.in_flight.split(",")):
                    row = {"network": network, **compared(path, batch, in_flight)}
                    cases.append(row)
                    shown = {key: value for key, value in row.items() if not key.startswith("blocks")}
                    sys.stderr.write(f"{json.dumps(shown)}\n")
    result = {"schema": 1, "environment": read_environment().to_json(), "cases": cases}
    give(result, asked.out)


if __name__ == "__main__":
    main()
