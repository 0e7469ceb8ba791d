"""Ranges as a calibration table that TensorRT 8 to 10 reads (`trtexec --int8 --calib=FILE`, a calibrator's cache).

The text: a header `TRT-VERSION-EntropyCalibration2`, then one line `tensor: hex` each, the big-endian float32 of
range / 127. TensorRT ignores it for a network with Q/DQ nodes: it belongs to the FP32 ONNX file, and is the way to INT8
on a DLA, which takes no Q/DQ there. TensorRT 11 and TensorRT-RTX have no calibrators.

The scales hold for every release; the header names the one that reads it, and is written anew for it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import read_input
from msn_deploy.machine.jetpacks import numbers_of

_LINE = re.compile(r"(.+): ([0-9a-f]{8})")
_HEADER = re.compile(r"TRT-\d+-EntropyCalibration2")
_LEVELS = 127


def parse_release(text: str) -> int:
    """Turn "trt-8.6" or "trt-10.3.0" into the number in the header, 8600 or 100300. Raises InputError."""
    found = re.fullmatch(r"trt-(\d{1,2})\.(\d{1,2})(?:\.(\d{1,2}))?", text)
    if found is None:
        raise InputError(f"`--table {text}` is not a TensorRT release.\nGive trt-8.6 (JetPack 6.0) or trt-10.3 (6.2).")
    major, minor, patch = (int(part or 0) for part in found.groups())
    if not 8 <= major <= 10:
        raise InputError(
            f"TensorRT {major} reads no calibration table; 8 to 10 do.\nUse the INT8 file with Q/DQ nodes there."
        )
    return number_of(f"{major}.{minor}.{patch}")


def number_of(version: str) -> int:
    """Write "8.5.2" as TensorRT does (NV_TENSORRT_VERSION), 8502, and "10.3.0" 100300: two digits per part since 10."""
    major, minor, patch = (*numbers_of(version), 0, 0)[:3]
    return major * 10_000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch


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


def read_table(path: Path) -> str:
    """Return the text of a table. Raises InputError for a file that cannot be read, or has no scales."""
    try:
        text = read_input(path, "text").decode()
    except UnicodeDecodeError as cause:
        raise InputError(f"{path} cannot be read as a calibration table: {cause}.") from cause
    try:
        scales = parse_table(text)
    except InputError as cause:
        raise InputError(f"{path}: {cause}\nMake one with `msn-deploy calibrate --table trt-8.5`.") from cause
    if not scales:
        raise InputError(f"{path} holds no scales.\nMake one with `msn-deploy calibrate --table trt-8.5`.")
    return text


def calibrator_of(trt: Any, table: str, *, batch: int) -> Any:
    """Return an IInt8EntropyCalibrator2, the one that a DLA takes, which knows the scales and has no images.

    Raises InputError where TensorRT has no calibrators. batch: of the profile.
    """
    if not hasattr(trt, "IInt8EntropyCalibrator2"):
        raise InputError(f"TensorRT {trt.__version__} reads no calibration table; 8 to 10 do.")
    cache = table.replace(table.partition("\n")[0], f"TRT-{number_of(trt.__version__)}-EntropyCalibration2", 1).encode()

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return batch

        def get_batch(self, names: Sequence[str]) -> None:
            """Have no images: TensorRT asks for some only if it does not take the table, and then fails."""

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: bytes) -> None:
            """Keep nothing."""

    return Calibrator()


def _float32(value: float) -> float:
    try:
        (rounded,) = struct.unpack(">f", struct.pack(">f", value))
    except OverflowError:
        return math.inf
    return float(rounded)
