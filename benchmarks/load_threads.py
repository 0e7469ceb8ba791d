"""`msn_deploy.load(path)` called by eight threads: are the answers right, and how many pictures per second are there?

    python benchmarks/load_threads.py [--seconds S] [--out FILE]

One model is loaded once, and called on pictures of 640x480 pixels by one thread and by eight: prepare, run, read. First
every thread answers every picture, and each answer has to be that of a single thread, number by number. Then both arms
take turns in rounds of randomised mirrored order; `gain` is how many times as many pictures eight threads answer, with
its 95 % interval. `threads` is what `load` is given: of one run of ONNX Runtime; null leaves the choice to it (all
cores). Networks are untrained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from result import add_out, give

from msn_deploy.bench.load import ThreadedLoad
from msn_deploy.bench.measure import Arm, MeasureOptions, measure
from msn_deploy.bench.stats import mean_interval, ratio_to_baseline
from msn_deploy.core.recipes import load_recipe
from msn_deploy.data.preparation import preparation
from msn_deploy.machine.environment import read_environment
from msn_deploy.nets import build_net
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.load import Model, load

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from resnet18 import resnet18_32

SHAPE = (1, 3, 32, 32)
NETWORKS = {
    "VGG7": lambda: build_net(replace(load_recipe("vgg7_msn"), input_shape=SHAPE), classes=10).eval(),
    "ResNet-18": resnet18_32,
}
MANY = 8
PICTURES = 24
CLASSES = tuple("abcdefghij")


def exported(network: str, folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / f"{network}.onnx"
    export_onnx(
        NETWORKS[network](),
        path,
        input_shape=SHAPE,
        preparation=preparation("zero-one", {}),
        task="classification",
        classes=CLASSES,
    )
    return path


def wrong_answers(model: Model, pictures: list[Any]) -> int:
    """Return how many answers of eight threads at once differ from those of one."""
    alone = [model(picture).to_json() for picture in pictures]

    def all_of(thread: int) -> int:
        turned = [*range(thread, len(pictures)), *range(thread)]
        return sum(model(pictures[at]).to_json() != alone[at] for at in turned)

    with ThreadPoolExecutor(MANY) as pool:
        return sum(pool.map(all_of, range(MANY)))


def caller(model: Model, pictures: list[Any], start: int) -> Callable[[], object]:
    turn = itertools.cycle([*pictures[start:], *pictures[:start]])
    return lambda: model(next(turn))


def compared(path: Path, network: str, threads: int | None, options: MeasureOptions) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    pictures = list(generator.integers(0, 256, (PICTURES, 480, 640, 3), dtype=np.uint8))
    with load(path, threads=threads) as model:
        wrong = wrong_answers(model, pictures)
        arms = []
        for name, count in (("one", 1), ("eight", MANY)):
            lanes = [caller(model, pictures, at) for at in range(count)]
            arms.append(Arm(name=name, run=lanes[0], load=ThreadedLoad(lanes)))
        taken = measure(arms, options=options)
    ns = {arm.name: np.array([[block.ns_per_query for block in arm.loaded]]) for arm in taken.arms}
    ratio = ratio_to_baseline(ns["eight"], ns["one"])
    row: dict[str, Any] = {"network": network, "threads": threads, "answers": MANY * PICTURES, "wrong": wrong}
    for name, each in ns.items():
        mean, low, high = mean_interval(each)
        row[f"{name}_per_s"] = [round(1e9 / value, 1) for value in (mean, high, low)]
    row["gain"] = [round(1 / each, 4) for each in (ratio.ratio, ratio.high, ratio.low)]
    row["rounds"] = ns["one"].size // 2
    row["blocks_ns_per_picture"] = {name: [round(float(each)) for each in found.ravel()] for name, found in ns.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="measured time per arm and case, s")
    add_out(parser)
    asked = parser.parse_args()
    options = MeasureOptions(seconds=asked.seconds, block_ms=150, warmup_seconds=1, warmup_queries=16)
    rows = []
    with TemporaryDirectory() as folder:
        for network in NETWORKS:
            path = exported(network, Path(folder))
            for threads in (1, None):
                rows.append(compared(path, network, threads, options))
                shown = {key: value for key, value in rows[-1].items() if not key.startswith("blocks")}
                sys.stderr.write(f"{json.dumps(shown)}\n")
    result = {"schema": 1, "seconds": asked.seconds, "environment": read_environment().to_json(), "cases": rows}
    give(result, asked.out)


if __name__ == "__main__":
    main()
