"""One quantiser on one file, in a process of its own: python quantiser.py TOOL FP32.onnx FEEDS.npz OUT.onnx.

Prints the wall and CPU seconds of the quantiser's own call as JSON; loading libraries and images is not in them. Runs
in the environment of whoever's quantiser it is, so it imports nothing else of this project. All tools get the same
images and write symmetric INT8 weights with one scale per output channel, float layers in FP32:

msn-deploy              `calibrate`, as it is
msn-deploy-onnxruntime  `calibrate --runtime onnxruntime`
onnxruntime             `quantize_static` with Q/DQ nodes, INT8 activations and weights, one scale per channel
onnxruntime-symmetric   the same for TensorRT: zero points of 0, float biases
modelopt                `modelopt.onnx.quantization.quantize` by its own method, "entropy"; the rest stays FP32
modelopt-max            the same with the largest magnitudes as ranges
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

Feeds = dict[str, NDArray[np.float32]]
Call = Callable[[], object]


def msn_deploy(fp32: Path, feeds: Path, out: Path, runtime: Any = "tensorrt") -> Call:
    from msn_deploy.pipeline.calibrate import calibrate

    samples = len(next(iter(read(feeds).values())))
    return lambda: calibrate(fp32, out, data=str(feeds), samples=samples, runtime=runtime, use_cache=False)


def onnxruntime(fp32: Path, feeds: Path, out: Path, **extra: Any) -> Call:
    from onnxruntime import quantization as theirs

    loaded = read(feeds)

    class Reader(theirs.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            count = len(next(iter(loaded.values())))
            self.left = iter([{name: value[at : at + 1] for name, value in loaded.items()} for at in range(count)])

        def get_next(self) -> Feeds | None:
            return next(self.left, None)

    logging.getLogger().setLevel(logging.ERROR)  # it advises other settings, each time
    return lambda: theirs.quantize_static(
        fp32, out, Reader(), quant_format=theirs.QuantFormat.QDQ, activation_type=theirs.QuantType.QInt8,
        weight_type=theirs.QuantType.QInt8, per_channel=True, extra_options=extra,
    )  # fmt: skip


def modelopt(fp32: Path, feeds: Path, out: Path, method: str) -> Call:
    from modelopt.onnx.quantization import quantize

    loaded = read(feeds)
    return lambda: quantize(
        str(fp32), "int8", loaded, method, calibration_eps=["cpu"], output_path=str(out), high_precision_dtype="fp32",
        log_level="ERROR",
    )  # fmt: skip


TOOLS: dict[str, Callable[[Path, Path, Path], Call]] = {
    "msn-deploy": msn_deploy,
    "msn-deploy-onnxruntime": lambda *files: msn_deploy(*files, "onnxruntime"),
    "onnxruntime": onnxruntime,
    "onnxruntime-symmetric": lambda *files: onnxruntime(*files, ActivationSymmetric=True, QuantizeBias=False),
    "modelopt": lambda *files: modelopt(*files, "entropy"),
    "modelopt-max": lambda *files: modelopt(*files, "max"),
}


def read(feeds: Path) -> Feeds:
    with np.load(feeds, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def main() -> None:
    tool, *files = sys.argv[1:]
    call = TOOLS[tool](*map(Path, files))
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    took = {"seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    print(json.dumps(took))  # the last line: tools print as well


if __name__ == "__main__":
    main()
