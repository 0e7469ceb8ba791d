"""From a torch network to ONNX, and from there to the precision that a device runs: every step a function on graphs."""

from msn_deploy.graph.calibrate import METHODS, calibrate_ranges
from msn_deploy.graph.export import to_onnx
from msn_deploy.graph.parity import Parity, compare_logits
from msn_deploy.graph.precision import to_fp16
from msn_deploy.graph.quantize import quantize
from msn_deploy.graph.simplify import simplify

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
