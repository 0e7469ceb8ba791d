"""INT8 on a CPU with ONNX Runtime: `calibrate --runtime onnxruntime` against all that `onnxruntime.quantization` makes.

    python benchmarks/ort_int8.py [--work FOLDER] [--only NAME] [--threads N ...] [--seconds S] [--out FILE]

VGG7 (digits) and the detector (digits-scenes) are the checkpoints of seed 0 that `benchmarks/paper.py digits-vgg7
scenes-detector` leaves below `--work`; ResNet-18 is trained here on digits, for a minute or two. Each is exported,
folded and calibrated on the same images. Arms take turns in rounds of randomised mirrored order:

fp32        the file that all others are made of
tensorrt    `calibrate`
ours        `calibrate --runtime onnxruntime`
theirs      `quantize_static`, in Q/DQ nodes or its own operators, UINT8 or INT8 activations and weights, weights
            with one scale or one per channel

A first, short run times all of theirs, and the fastest two go into the second, which is the result. There each file is
opened RUNNERS times, and the intervals hold what another opening would give. Their ranges are the smallest and largest
values, as is their default. Metric: of the files in the second run, on the whole test split. SQNR: of the worst output,
on the first test images.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
import torch
from int8 import checkpoint_of
from numpy.typing import NDArray
from paper import HERE, TABLES, runs_of
from result import add_out, give

from msn_deploy.bench.measure import Arm, MeasureOptions, measure
from msn_deploy.bench.stats import block_medians, ratio_to_baseline
from msn_deploy.core.model_info import Preprocess
from msn_deploy.data import load_split, to_input
from msn_deploy.data.preparation import preparation
from msn_deploy.engine.ort import OrtRunner
from msn_deploy.machine.environment import read_environment
from msn_deploy.model.feeds import joined
from msn_deploy.model.opened import OpenModel, made_model, open_model, with_info
from msn_deploy.model.parity import rung
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.pipeline.export import export_onnx

sys.path.insert(0, str(HERE / "peers"))
from resnet18 import ResNet18

SAMPLES, COMPARED, EPOCHS = 256, 128, 2
RUNNERS = 3  # of each file: where a network lies in memory is worth one or two percent of its time
TYPES = (("QDQ", "QOperator"), ("QUInt8", "QInt8"), ("QInt8", "QUInt8"), ("one scale", "per channel"))
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def checkpoint(table: str, arm: str) -> Callable[[Path, Path], None]:
    """Return what exports the checkpoint of seed 0 of a table."""

    def export(work: Path, out: Path) -> None:
        run = next(each for each in runs_of(TABLES / f"{table}.toml") if each.key == (arm, 0))
        export_onnx(str(checkpoint_of(run, work)), out, dynamic_batch=True)

    return export


def resnet18(work: Path, out: Path) -> None:
    """Train ResNet-18 for 32x32 images on digits, in three equal channels, and export it."""
    split = load_split("digits", "train", height_px=32, width_px=32, channels=3)
    prep = Preprocess(height_px=32, width_px=32, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    images, labels = torch.from_numpy(to_input(split.images, prep)), torch.from_numpy(split.labels)
    torch.manual_seed(0)
    net, trained = ResNet18(), work / "resnet18.pt"
    if trained.is_file():
        net.load_state_dict(torch.load(trained, weights_only=True))
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(0 if trained.is_file() else EPOCHS):
        for at in torch.randperm(len(images)).split(64):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(net(images[at]), labels[at]).backward()
            adam.step()
    torch.save(net.state_dict(), trained)
    export_onnx(
        net.eval(), out, input_shape=(1, 3, 32, 32), dynamic_batch=True, task="classification",
        preparation=preparation("zero-one", {"fit": "stretch"}), classes=split.classes,
    )  # fmt: skip


NETWORKS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "vgg7": ("digits", checkpoint("digits-vgg7", "MSN")),
    "resnet18": ("digits", resnet18),
    "detector": ("digits-scenes", checkpoint("scenes-detector", "MSN")),
}


class Case:
    """One network, exported, with its images and every file that is made of it."""

    def __init__(self, name: str, work: Path, folder: Path) -> None:
        self.data, export = NETWORKS[name]
        self.folder, fp32 = folder, folder / "fp32.onnx"
        export(work, fp32)
        self.model = open_model(fp32, step="benchmark")
        info, self.input = self.model.info, self.model.inputs[0].name
        assert info is not None
        assert info.preprocess is not None
        self.info = info
        train, test = (load_split(self.data, split, **info.preprocess.image_size) for split in ("train", "test"))
        self.calibration = to_input(train.first(SAMPLES).images, info.preprocess)
        self.images = to_input(test.first(COMPARED).images, info.preprocess)
        self.truth = self.outputs(self.model)
        self.files = {
            "fp32": self.model,
            "tensorrt": self.calibrated("tensorrt"),
            "ours": self.calibrated("onnxruntime"),
        }
        self.refused: dict[str, str] = {}

    def calibrated(self, runtime: Literal["tensorrt", "onnxruntime"]) -> OpenModel:
        out = self.folder / f"{runtime}.onnx"
        calibrate(self.model.path, out, data=self.data, samples=SAMPLES, runtime=runtime, use_cache=False)
        return open_model(out, step="benchmark")

    def quantised(self, nodes: str, activations: str, weights: str, scales: str) -> OpenModel | None:
        """Return the file that onnxruntime.quantization makes; None where it makes none that runs."""
        from onnxruntime import quantization as theirs

        images, name = self.calibration, self.input

        class Reader(theirs.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
            def __init__(self) -> None:
                self.left = iter(images)

            def get_next(self) -> dict[str, NDArray[np.float32]] | None:
                image = next(self.left, None)
                return None if image is None else {name: image[None]}

        logging.getLogger().setLevel(logging.ERROR)  # it advises other combinations, each time
        out = self.folder / "theirs.onnx"
        key = "theirs " + " ".join((nodes, activations, weights, scales))
        try:
            theirs.quantize_static(
                self.model.path, out, Reader(), quant_format=getattr(theirs.QuantFormat, nodes),
                activation_type=getattr(theirs.QuantType, activations), weight_type=getattr(theirs.QuantType, weights),
                per_channel=scales == "per channel",
            )  # fmt: skip
            proto = onnx.load(str(out))
            content = with_info(proto, self.info.with_precision("int8"))
            made = made_model(self.folder / f"{key}.onnx", proto, content)
            made.path.write_bytes(content)
            self.outputs(made)
        except Exception as cause:  # a combination that it does not have is a result
            self.refused[key] = f"{type(cause).__name__}: {cause}".splitlines()[0][:200]
            return None
        self.files[key] = made
        return made

    def outputs(self, model: OpenModel) -> dict[str, NDArray[Any]]:
        runner = OrtRunner(model)
        return joined([runner.run({self.input: image[None]}) for image in self.images])

    def kernels(self, model: OpenModel) -> dict[str, int]:
        """Return what ONNX Runtime runs in the place of a file's nodes."""
        path = self.folder / "optimised.onnx"
        OrtRunner(model, optimized_to=path).close()
        return dict(Counter(node.op_type for node in onnx.load(str(path)).graph.node).most_common())

    def timed(self, names: list[str], *, threads: int, seconds: float, runners: int) -> dict[str, NDArray[np.float64]]:
        """Return the block medians of every arm, ns, (runners, blocks)."""

        def arm(name: str, build: int) -> Arm:
            runner, turn = OrtRunner(self.files[name], threads=threads), itertools.cycle(self.images[:16])
            return Arm(name=name, build=build, run=lambda: runner.run({self.input: next(turn)[None]}))

        options = MeasureOptions(seconds=seconds, warmup_seconds=0.3, block_ms=50, settle_queries=3)
        taken = measure([arm(name, build) for build in range(runners) for name in names], options=options).arms
        return {name: np.stack([block_medians(each.blocks) for each in taken if each.name == name]) for name in names}


def measured(name: str, work: Path, *, threads: list[int], seconds: float) -> dict[str, Any]:
    """Return what every file of a network keeps, and how long it takes."""
    with TemporaryDirectory() as folder:
        case = Case(name, work, Path(folder))
        for combination in itertools.product(*TYPES):
            case.quantised(*combination)
        kept: dict[str, dict[str, Any]] = {}
        for key, model in case.files.items():
            sqnr = rung("int8", case.truth, case.outputs(model)).sqnr_db
            kept[key] = {
                "bytes": len(model.data),
                "sqnr_db": None if key == "fp32" else round(sqnr, 2),
                "kernels": case.kernels(model),
            }
            say(f"{name:<10}{key:<48}{sqnr:6.2f} dB")
        times = {}
        for count in threads:
            theirs = [key for key in case.files if key.startswith("theirs")]
            first = case.timed(theirs, threads=count, seconds=seconds / 4, runners=1)
            best = sorted(theirs, key=lambda key: float(np.median(first[key])))[:2]
            found = case.timed(["fp32", "tensorrt", "ours", *best], threads=count, seconds=seconds, runners=RUNNERS)
            times[str(count)] = {
                "all_of_theirs_ms": {key: round(float(np.median(each)) / 1e6, 4) for key, each in first.items()},
                "rows": {key: row(key, found, best[0]) for key in found},
            }
            for key, each in times[str(count)]["rows"].items():
                say(f"{name:<10}{count} threads  {key:<40}{each}")
        for key in dict.fromkeys(key for each in times.values() for key in each["rows"]):
            score = evaluate(case.files[key].path, data=case.data)
            kept[key] |= {"metric": score.metric, "value": score.value}
            say(f"{name:<10}{key:<48}{score.metric} {score.value:.4f}")
        return {"network": name, "kept": kept, "refused": case.refused, "threads": times}


def row(key: str, found: dict[str, NDArray[np.float64]], fastest: str) -> dict[str, Any]:
    """Return the median and the ratios to FP32 and to the fastest of theirs."""
    told: dict[str, Any] = {"median_ms": round(float(np.median(found[key])) / 1e6, 4)}
    for label, baseline in (("to_fp32", "fp32"), ("to_theirs", fastest)):
        if key != baseline:
            ratio = ratio_to_baseline(found[key], found[baseline])
            told[label] = [round(value, 4) for value in (ratio.ratio, ratio.low, ratio.high)]
    return told


def say(line: str) -> None:
    sys.stderr.write(line + "\n")


def flags() -> list[str]:
    """Return which of FLAGS the CPU has."""
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return [flag for flag in FLAGS if flag in words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "paper")
    parser.add_argument("--only", choices=NETWORKS, action="append")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--seconds", type=float, default=20, help="measured time per arm, s")
    add_out(parser)
    options = parser.parse_args()
    result = {
        "schema": 1,
        "samples": SAMPLES,
        "compared": COMPARED,
        "instructions": flags(),
        "environment": read_environment().to_json(),
        "networks": [
            measured(name, options.work, threads=options.threads, seconds=options.seconds)
            for name in options.only or NETWORKS
        ],
    }
    give(result, options.out)


if __name__ == "__main__":
    main()
