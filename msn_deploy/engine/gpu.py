"""Which GPU do programs get here? Asked of the driver itself, so that no package is needed, and no context made."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU. name: such as "NVIDIA GeForce RTX 3090"; all Orins are "Orin"."""

    name: str
    compute_capability: str


def gpu_here() -> Gpu | None:
    """Return the driver's first GPU, None without a driver or a GPU. Never raises."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    if failed:
        return None
    return Gpu(name=name.value.decode("utf-8", "replace"), compute_capability=f"{major.value}.{minor.value}")
