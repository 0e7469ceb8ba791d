"""Which range do the activations of a graph take on real images? Collected by onnxruntime, in chunks."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import require
from msn_deploy.core.progress import Progress, silent
from msn_deploy.graph.files import input_of

METHODS = {"entropy": "Entropy", "minmax": "MinMax"}
QUANTISED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")
MINIMUM_SAMPLES = 16
_CHUNK = 32  # images per collecting step: histogram methods keep every activation of one step in memory


def calibrate_ranges(
    model: ModelProto,
    images: NDArray[np.float32],
    *,
    method: str = "entropy",
    progress: Progress = silent,
) -> dict[str, float]:
    """Return the largest magnitude to represent, per tensor that will be quantised, on the given images.

    model: FP32. images: (N, C, H, W), preprocessed, at least MINIMUM_SAMPLES. method: one of METHODS.
    Raises InputError for too few, constant or non-finite images and for tensors that are zero on all of them.
    """
    if method not in METHODS:
        raise InputError(f"unknown calibration method {method!r}; known are {', '.join(METHODS)}.")
    if len(images) < MINIMUM_SAMPLES:
        raise InputError(f"{len(images)} images are too few to calibrate on; at least {MINIMUM_SAMPLES} are needed.")
    if not np.isfinite(images).all() or float(np.ptp(images)) == 0.0:
        raise InputError("the calibration images are constant or not finite.\nCheck the folder given as `--data`.")
    quantization = require("onnxruntime.quantization", step="calibrate")
    calibration = require("onnxruntime.quantization.calibrate", step="calibrate")
    name, shape = input_of(model, source="the model")
    batch = shape[0] or _CHUNK

    with tempfile.TemporaryDirectory(prefix="msn-deploy-") as folder:
        source = Path(folder) / "model.onnx"
        source.write_bytes(model.SerializeToString())
        with contextlib.redirect_stdout(io.StringIO()):  # onnxruntime prints its progress
            calibrator = calibration.create_calibrator(
                source,
                list(QUANTISED_OPS),
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=getattr(quantization.CalibrationMethod, METHODS[method]),
                extra_options={"symmetric": True},
            )
            for start in range(0, len(images), _CHUNK):
                calibrator.collect_data(_Reader(name, images[start : start + _CHUNK], batch))
                progress(min(start + _CHUNK, len(images)), len(images), f"calibrating ({method})")
            ranges = calibrator.compute_data()
    wanted = {tensor for node in model.graph.node if node.op_type in QUANTISED_OPS for tensor in node.input}
    found = {
        tensor: float(max(np.abs(bound).max() for bound in data.range_value))
        for tensor, data in sorted(ranges.items())
        if tensor in wanted
    }
    for tensor, largest in found.items():
        if not 0 < largest < float("inf"):
            raise InputError(f"{tensor} is {largest} on all {len(images)} calibration images: nothing to scale by.")
    return found


class _Reader:
    """Feeds one chunk to a calibrator, in the batch size of the graph; a last incomplete batch repeats its images."""

    def __init__(self, name: str, images: NDArray[np.float32], batch: int) -> None:
        self._batches = self._split(name, images, batch)

    @staticmethod
    def _split(name: str, images: NDArray[np.float32], batch: int) -> Iterator[dict[str, Any]]:
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            yield {name: np.resize(part, (batch, *part.shape[1:])) if len(part) < batch else part}

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)
