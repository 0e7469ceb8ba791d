"""From a torch network to ONNX, and from there to the precision that a device runs: every step a function on graphs.

Only `to_onnx` needs torch; it is imported on first use, so that a device calibrates without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msn_deploy.graph.calibrate import METHODS, calibrate_ranges
from msn_deploy.graph.parity import Parity, compare_logits
from msn_deploy.graph.precision import to_fp16
from msn_deploy.graph.quantize import quantize
from msn_deploy.graph.simplify import simplify

if TYPE_CHECKING:
    from msn_deploy.graph.export import to_onnx

__all__ = [
    "METHODS",
    "Parity",
    "calibrate_ranges",
    "compare_logits",
    "quantize",
    "simplify",
    "to_fp16",
    "to_onnx",
]


def __getattr__(name: str) -> Any:
    if name != "to_onnx":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from msn_deploy.graph.export import to_onnx

    return to_onnx
