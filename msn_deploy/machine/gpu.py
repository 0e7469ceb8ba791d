"""Which GPU is in this machine? Asked of the CUDA driver itself, which is there wherever a GPU can be used."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as CUDA names it, such as "Orin", and its compute capability, such as "8.7"."""

    name: str
    compute_capability: str


def first_gpu(load: Callable[[str], Any] = ctypes.CDLL) -> Gpu | None:
    """Return the first GPU that CUDA shows this process; None without a driver or a GPU. Never raises."""
    try:
        cuda = load("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    calls = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDeviceGetName(name, len(name), device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
    )
    if any(call() != 0 for call in calls):
        return None
    return Gpu(name=name.value.decode(errors="replace"), compute_capability=f"{major.value}.{minor.value}")
