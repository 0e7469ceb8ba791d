"""Keeping freed memory for the next step, instead of handing it back to the kernel and taking it again page by page."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h
_NEVER = -1


def keep_freed_memory() -> None:
    """Tell glibc never to give memory back while this process lives; nothing happens where there is no glibc.

    A training step frees activations of many MiB and allocates the like again. By default glibc unmaps them, and every
    page of the next step costs a fault; benchmarks/results/*/train-step-default-malloc.json is a run without this.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
        mallopt(_M_MMAP_MAX, 0)
