"""In which eight bits, and for which runtime, are the Q/DQ nodes of a file laid out?

INT8 is for TensorRT, or for ONNX Runtime on a CPU. Both represent the same ranges. TensorRT wants INT8 around zero,
float biases, and nothing said of what a layer makes; ONNX Runtime's kernels want UINT8 with a zero where the values
have it (all 8 bits go to what a ReLU leaves, and the ReLU is done by the rounding), biases in INT32, and the output
quantised as well.

FP8 (E4M3: a sign, 4 bits of exponent, 3 of mantissa) is for TensorRT alone. A step is a share of the value, 1/16 to
1/8, down to 3.5e-5 of the range. So one scale serves a whole weight, and TensorRT fuses its bias and its ReLU only
then: with a scale per channel every convolution writes FP32 for another kernel to finish (TensorRT-RTX 1.7.1).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Quantised, Runtime
from msn_deploy.quant.ort_placement import place_for_ort
from msn_deploy.quant.placement import Placement, place

LARGEST = 127  # of INT8, on both sides: -128 has no counterpart
LARGEST_FP8 = 448  # of E4M3
_STEPS = 255  # of UINT8
_DEAD = 1.0  # the range of a tensor that is 0 on all samples: exact at any scale, and not lost if it wakes up


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers that eight bits stand for: (q - zero) * scale."""

    scale: NDArray[np.float32]
    zero: NDArray[np.generic]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How Q/DQ nodes are laid out in a file.

    precision: what they are in; FP8 is for "tensorrt". runtime: what they are for. extremes: of each tensor its
    smallest and its largest value, for "onnxruntime" alone; of a tensor that is missing there, both signs are taken for
    possible.
    """

    precision: Quantised = "int8"
    runtime: Runtime = "tensorrt"
    extremes: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def quantises_biases(self) -> bool:
        """Whether a layer's bias is INT32, in steps of its input's scale times its weight's."""
        return self.runtime == "onnxruntime"

    @property
    def opset(self) -> int:
        """The first opset that has such Q/DQ nodes: with an axis of scales, or with FP8."""
        return 13 if self.precision == "int8" else 19

    @property
    def per_channel(self) -> bool:
        """Whether a weight has a scale for each of its outputs."""
        return self.precision == "int8"

    @property
    def largest(self) -> int:
        """The largest number of a symmetric grid."""
        return LARGEST if self.precision == "int8" else LARGEST_FP8

    def rounded(self, steps: NDArray[np.float32]) -> NDArray[np.generic]:
        """Round to the numbers of a symmetric grid, halves to even; what is beyond them becomes the largest."""
        steps = np.clip(steps, -self.largest, self.largest)
        if self.precision == "int8":
            return np.rint(steps).astype(np.int8)
        return steps.astype(helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN))

    def place(self, model: ModelProto, *, leave_out: Collection[str] = ()) -> Placement:
        """Decide where the pairs go; leave_out: names of layers that stay float. Raises InputError for an unknown."""
        if self.runtime == "onnxruntime":
            return place_for_ort(model, leave_out=leave_out)
        return place(model, leave_out=leave_out, precision=self.precision)

    def grids(self, placement: Placement, ranges: Mapping[str, float]) -> dict[str, Grid]:
        """Return the grid of each tensor; those of one group share it.

        ranges: largest magnitudes to represent. Raises InputError for one that is missing, negative or infinite.
        """
        largest = placement.shared(ranges)
        for name, size in largest.items():
            if not 0 <= size < math.inf:
                raise InputError(f"{name} has the range {size}: nothing to scale by.")
        if self.runtime == "tensorrt":
            return {
                name: Grid(
                    np.asarray((size or _DEAD) / self.largest, np.float32), self.rounded(np.zeros((), np.float32))
                )
                for name, size in largest.items()
            }
        spans: dict[str, tuple[float, float]] = {}
        for name, group in placement.scale_of.items():
            found = self.extremes.get(name, (-np.inf, np.inf))
            known = spans.get(group, (0.0, 0.0))
            spans[group] = min(known[0], found[0]), max(known[1], found[1])
        return {name: _unsigned(size, spans[placement.scale_of[name]]) for name, size in largest.items()}


TENSORRT = Layout()


def _unsigned(largest: float, span: tuple[float, float]) -> Grid:
    """Return the grid of UINT8 over that part of [-largest, largest] in which the values lie; 0 is exact."""
    size = largest or _DEAD
    low, high = max(-size, span[0]), min(size, span[1])
    if low == high:
        low, high = 0.0, size
    scale = np.float32((high - low) / _STEPS)
    # Not a hair wider than the span: else a Clip that ends there would have something left to do.
    if float(scale) * _STEPS > high - low:
        scale = np.nextafter(scale, np.float32(0))
    return Grid(np.asarray(scale), np.asarray(np.clip(np.rint(-low / float(scale)), 0, _STEPS), np.uint8))
