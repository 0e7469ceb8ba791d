"""For which runtime are the Q/DQ nodes of an INT8 file laid out: TensorRT, or ONNX Runtime on a CPU?

Both represent the same ranges. TensorRT wants INT8 around zero, float biases, and nothing said of what a layer makes;
ONNX Runtime's kernels want UINT8 with a zero where the values have it (all 8 bits go to what a ReLU leaves, and the
ReLU is done by the rounding), biases in INT32, and the output quantised as well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Runtime
from msn_deploy.quant.ort_placement import place_for_ort
from msn_deploy.quant.placement import Placement, place

LARGEST = 127  # of INT8, on both sides: -128 has no counterpart
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

    runtime: what they are for. extremes: of each tensor its smallest and its largest value, for "onnxruntime" alone; of
    a tensor that is missing there, both signs are taken for possible.
    """

    runtime: Runtime = "tensorrt"
    extremes: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def quantises_biases(self) -> bool:
        """Whether a layer's bias is INT32, in steps of its input's scale times its weight's."""
        return self.runtime == "onnxruntime"

    def place(self, model: ModelProto, *, leave_out: Collection[str] = ()) -> Placement:
        """Decide where the pairs go; leave_out: names of layers that stay float. Raises InputError for an unknown."""
        return (place if self.runtime == "tensorrt" else place_for_ort)(model, leave_out=leave_out)

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
                name: Grid(np.asarray((size or _DEAD) / LARGEST, np.float32), np.asarray(0, np.int8))
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
