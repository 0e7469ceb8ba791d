"""What does a query take from a frame's bytes to the output: prepared by numpy for a file of floats, or by the graph?

    python benchmarks/uint8_input.py [--threads N] [--seconds S] [--out FILE]

A frame is what a decoder gives: uint8 (1, height, width, channels), red, green, blue, in the size of the input. Arms:

floats     `to_input`, as every command of msn-deploy prepares images, then the file of floats
in place   the same numbers by the fewest passes that numpy has: turned as bytes, cast, and the rest in place
nhwc       the file of `export --uint8-input --uint8-layout nhwc`, fed with the frame as it is
nchw       the file of `export --uint8-input`, fed with the frame turned to channels first

Arms take turns in rounds of randomised mirrored order, in ONNX Runtime on the CPU; each query takes the next of several
frames. Each arm has a session of its own, and the first queries of a block are dropped: the threads of the session
before still spin. Before that, the outputs of all arms are compared on every frame. Networks are untrained: times do
not hang on weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from msn_deploy.bench.measure import Arm, MeasureOptions, measure
from msn_deploy.bench.stats import block_medians, ratio_to_baseline
from msn_deploy.core.artifacts import write_json
from msn_deploy.core.model_info import Preprocess
from msn_deploy.core.recipes import load_recipe
from msn_deploy.data import to_input
from msn_deploy.data.preparation import preparation
from msn_deploy.engine import load_runner
from msn_deploy.engine.runner import Runner
from msn_deploy.machine.environment import read_environment
from msn_deploy.model.opened import open_model
from msn_deploy.nets import build_net
from msn_deploy.pipeline.export import ExportReport, export_onnx

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from resnet18 import resnet18_224

FRAMES = 16
MOST_APART = 1e-5  # of the range of the outputs
Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A network, the channels and pixels of its input, and how images are prepared for it."""

    network: str
    build: Callable[[], nn.Module]
    channels: int
    side_px: int
    preset: str


def ours(name: str, channels: int, side_px: int) -> nn.Module:
    recipe = replace(load_recipe(name), input_shape=(1, channels, side_px, side_px))
    return build_net(recipe, classes=10).eval()


CASES = (
    Case("cnn3", lambda: ours("cnn3_msn", 1, 28), 1, 28, "zero-one"),
    Case("VGG7", lambda: ours("vgg7_msn", 3, 32), 3, 32, "imagenet"),
    Case("ResNet-18", resnet18_224, 3, 224, "zero-one"),
    Case("ResNet-18", resnet18_224, 3, 224, "imagenet"),
)


def in_place(frame: Frame, prep: Preprocess) -> NDArray[np.float32]:
    """Return what `to_input` returns, in fewer passes over the numbers."""
    x = frame.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    std = np.asarray(prep.std, dtype=np.float32).reshape(-1, 1, 1)
    x *= 1 / (255 * std)
    if any(prep.mean):
        x -= np.asarray(prep.mean, dtype=np.float32).reshape(-1, 1, 1) / std
    return x


def turned(frame: Frame) -> Frame:
    return np.ascontiguousarray(frame.transpose(0, 3, 1, 2))


def exported(case: Case, folder: Path) -> dict[str, ExportReport]:
    """Export a network, and make files of bytes of the one of floats."""
    torch.manual_seed(0)
    shape, floats = (1, case.channels, case.side_px, case.side_px), folder / "floats.onnx"
    stated = preparation(case.preset, {})
    reports = {"floats": export_onnx(case.build(), floats, input_shape=shape, preparation=stated)}
    for layout in ("nhwc", "nchw"):
        out = folder / f"{layout}.onnx"
        reports[layout] = export_onnx(str(floats), out, uint8_input=True, uint8_layout=layout.upper())
    return reports


def before_the_first_layer(report: ExportReport) -> list[str]:
    """Return the operators between the input and the first convolution."""
    operators = [node.op_type for node in open_model(report.path, step="benchmark").proto.graph.node]
    return list(itertools.takewhile(lambda each: each != "Conv", operators))


def compared(case: Case, *, threads: int, seconds: float) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        reports = exported(case, Path(folder))
        files = {"in place": reports["floats"].path} | {name: report.path for name, report in reports.items()}
        runners = {name: load_runner(file, threads=threads) for name, file in files.items()}
        left = {name: before_the_first_layer(report) for name, report in reports.items() if name != "floats"}
    prep = reports["floats"].preprocess
    assert prep is not None
    generator = np.random.default_rng(0)
    size = (FRAMES, 1, case.side_px, case.side_px, case.channels)
    frames: list[Frame] = list(generator.integers(0, 256, size, dtype=np.uint8))

    def query(runner: Runner, prepare: Callable[[Frame], NDArray[Any]]) -> Callable[[Frame], NDArray[Any]]:
        name = runner.inputs[0].name

        def run(frame: Frame) -> NDArray[Any]:
            (made,) = runner.run({name: prepare(frame)}).values()
            return made

        return run

    queries = {
        "floats": query(runners["floats"], lambda frame: to_input(frame, prep)),
        "in place": query(runners["in place"], lambda frame: in_place(frame, prep)),
        "nhwc": query(runners["nhwc"], lambda frame: frame),
        "nchw": query(runners["nchw"], turned),
    }
    outputs = {name: np.stack([run(frame) for frame in frames]) for name, run in queries.items()}
    spread = float(np.ptp(outputs["floats"]))
    apart = {name: float(np.abs(each - outputs["floats"]).max()) / spread for name, each in outputs.items()}
    if max(apart.values()) > MOST_APART:
        raise SystemExit(f"{case.network}, {case.preset}: outputs differ by {apart} of their range")

    def arm(name: str) -> Arm:
        run, turn = queries[name], itertools.cycle(frames)
        return Arm(name=name, run=lambda: run(next(turn)))

    options = MeasureOptions(seconds=seconds, warmup_seconds=1, block_ms=100, settle_queries=3)
    samples = measure([arm(name) for name in queries], options=options)
    medians = {each.name: block_medians(each.blocks) for each in samples.arms}
    rows: dict[str, Any] = {}
    for name, each in medians.items():
        rows[name] = {"median_ms": round(float(np.median(each)) / 1e6, 4), "apart": apart[name]}
        for baseline in ("floats", "in place"):
            if name not in ("floats", baseline):
                ratio = ratio_to_baseline(each, medians[baseline])
                rows[name][f"to_{baseline.replace(' ', '_')}"] = [
                    round(value, 4) for value in (ratio.ratio, ratio.low, ratio.high)
                ]
        shown = "  ".join(f"{key} {value}" for key, value in rows[name].items() if key.startswith("to_"))
        sys.stderr.write(f"{case.network:<10}{case.preset:<10}{name:<10}{rows[name]['median_ms']:>9.3f} ms  {shown}\n")
    return {
        "network": case.network,
        "input": [case.channels, case.side_px, case.side_px],
        "preset": case.preset,
        "left": left,
        "rows": rows,
        "blocks_us": {name: [round(float(value) / 1e3, 1) for value in each] for name, each in medians.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=20, help="measured time per arm and case, s")
    parser.add_argument("--only", default="", help="a network's name")
    parser.add_argument("--out", type=Path, help="write the JSON here instead of printing it")
    options = parser.parse_args()
    chosen = [case for case in CASES if options.only in ("", case.network)]
    result = {
        "schema": 1,
        "threads": options.threads,
        "environment": read_environment().to_json(),
        "cases": [compared(case, threads=options.threads, seconds=options.seconds) for case in chosen],
    }
    if options.out is None:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
