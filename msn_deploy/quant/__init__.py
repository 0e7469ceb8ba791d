"""From FP32 to FP16 and INT8: ranges, scales, placement, Q/DQ. No torch, so that a device calibrates."""

from msn_deploy.quant.calibrate import calibrate_ranges
from msn_deploy.quant.precision import to_fp16
from msn_deploy.quant.quantize import quantize
from msn_deploy.quant.scales import METHODS

__all__ = ["METHODS", "calibrate_ranges", "quantize", "to_fp16"]
