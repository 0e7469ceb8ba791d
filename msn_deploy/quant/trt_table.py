"""Ranges as a calibration table that TensorRT 8 to 10 reads (`trtexec --int8 --calib=FILE`, a calibrator's cache).

The text: a header `TRT-VERSION-EntropyCalibration2`, then one line `tensor: hex` each, the big-endian float32 of
range / 127. TensorRT ignores it for a network with Q/DQ nodes: it belongs to the FP32 ONNX file, and is the way to INT8
on a DLA, which takes no Q/DQ there. TensorRT 11 and TensorRT-RTX have no calibrators.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping

from msn_deploy.core.errors import InputError

_LINE = re.compile(r"(.+): ([0-9a-f]{8})")
_HEADER = re.compile(r"TRT-\d+-EntropyCalibration2")
_LEVELS = 127


def parse_release(text: str) -> int:
    """Turn "trt-8.6" or "trt-10.3.0" into the number in the header, 8600 or 100300. Raises InputError."""
    found = re.fullmatch(r"trt-(\d{1,2})\.(\d{1,2})(?:\.(\d{1,2}))?", text)
    if found is None:
        raise InputError(f"`--table {text}` is no TensorRT release.\nGive trt-8.6 (JetPack 6.0) or trt-10.3 (6.2).")
    major, minor, patch = (int(part or 0) for part in found.groups())
    if not 8 <= major <= 10:
        raise InputError(
            f"TensorRT {major} reads no calibration table; 8 to 10 do.\nUse the INT8 file with Q/DQ nodes there."
        )
    # NV_TENSORRT_VERSION: two digits per part since 10
    return major * 10_000 + minor * 100 + patch if major == 10 else major * 1000 + minor * 100 + patch


def format_table(ranges: Mapping[str, float], release: int) -> str:
    """Write the table. ranges: largest magnitude per tensor. release: from `parse_release`.

    Raises InputError for names and ranges that its lines can't hold.
    """
    lines = []
    for name, largest in ranges.items():
        if not name or re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]|^\s|\s$", name):
            raise InputError(f"tensor {name!r} has a name that a calibration table can't hold.")
        scale = _float32(largest / _LEVELS)
        if not 0 < scale < math.inf:
            raise InputError(f"tensor {name!r} has the range {largest:g}, which gives no scale.")
        lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
    return "\n".join([f"TRT-{release}-EntropyCalibration2", *lines]) + "\n"


def parse_table(text: str) -> dict[str, float]:
    """Return the scale (range / 127) per tensor of a table. Raises InputError for anything else."""
    header, *lines = text.split("\n")
    if _HEADER.fullmatch(header) is None:
        raise InputError(f"not a calibration table of TensorRT: it starts with {header[:40]!r}.")
    scales = {}
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise InputError(f"line {number} of the calibration table is not `tensor: hex`: {line[:60]!r}.")
        (scales[found[1]],) = struct.unpack(">f", bytes.fromhex(found[2]))
    return scales


def _float32(value: float) -> float:
    try:
        (rounded,) = struct.unpack(">f", struct.pack(">f", value))
    except OverflowError:
        return math.inf
    return float(rounded)
