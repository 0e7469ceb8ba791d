"""From FP32 to FP16 and INT8: ranges, scales, placement, Q/DQ. No torch, so that a device calibrates."""
