"""Resize and Upsample in float64: each axis on its own, every output the weighted sum of the few inputs it is made of.

As ONNX defines it, opset 7 to 19: nearest, linear and cubic, every coordinate, antialias, exclude_outside, roi.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msn_deploy.graph.kernels import Array, Call, kernel, tensor


@kernel("Upsample", "Resize")
def _resize(call: Call, x: Array, *numbers: Array | None) -> Array:
    exact = x.dtype.kind == "f"
    made: Array = resize(call, tensor(x if exact else x.astype(np.float64)), *numbers).numpy()
    if exact:
        return made
    if call.get("mode", "nearest") != "nearest":  # as ONNX Runtime does it
        made = np.clip(np.round(made) if x.dtype.kind in "iu" else made, *_limits(x.dtype))
    return made.astype(x.dtype)


def resize(
    call: Call, x: Tensor, second: Array | None = None, third: Array | None = None, sizes: Array | None = None
) -> Tensor:
    """Resize a tensor of floats, through which gradients flow. The numbers are the node's other inputs."""
    if call.operator == "Upsample":
        factors = call.given["scales"] if second is None else second.tolist()
        return _resized(x, list(range(x.ndim)), list(factors), None, None, _Ways(call, "asymmetric", "simple"))
    roi, scales = (None, second) if call.version < 11 else (second, third)
    ways = _Ways(
        call,
        "asymmetric" if call.version < 11 else call.get("coordinate_transformation_mode", "half_pixel"),
        "simple" if call.version < 11 else call.get("nearest_mode", "round_prefer_floor"),
    )
    axes = [axis % x.ndim for axis in call.get("axes") or range(x.ndim)]
    given = None if scales is None or not scales.size else [float(each) for each in scales]
    wanted = None if sizes is None or not sizes.size else [int(each) for each in sizes]
    if wanted is not None:
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            choose = min if policy == "not_larger" else max
            factor = choose(size / x.shape[axis] for size, axis in zip(wanted, axes, strict=True))
            given = [factor] * len(axes)
            wanted = [math.floor(x.shape[axis] * factor + 0.5) for axis in axes]
        else:
            given = [size / x.shape[axis] for size, axis in zip(wanted, axes, strict=True)]
    if given is None:
        raise NotImplementedError("a Resize without scales and sizes")
    return _resized(x, axes, given, wanted, roi if ways.coordinates == "tf_crop_and_resize" else None, ways)


class _Ways:
    """How numbers are taken."""

    def __init__(self, call: Call, coordinates: str, nearest: str) -> None:
        self.mode, self.coordinates, self.nearest = call.get("mode", "nearest"), coordinates, nearest
        self.cubic = call.get("cubic_coeff_a", -0.75)
        self.excludes, self.antialias = bool(call.get("exclude_outside", 0)), bool(call.get("antialias", 0))
        self.outside = call.get("extrapolation_value", 0.0)


def _resized(
    y: Tensor, axes: Sequence[int], scales: Sequence[float], sizes: Sequence[int] | None, roi: Array | None, ways: _Ways
) -> Tensor:
    x, outside = y, []
    for at, (axis, scale) in enumerate(zip(axes, scales, strict=True)):
        old = x.shape[axis]
        new = math.floor(old * scale) if sizes is None else sizes[at]
        region = (0.0, 1.0) if roi is None else (float(roi[at]), float(roi[at + len(axes)]))
        if new == old and scale == 1 and roi is None:
            continue
        places = _places(new, old, scale, region, ways)
        taps, weights = _taps(places, old, scale, ways)
        y = _mixed(y, axis, taps, weights)
        if ways.coordinates == "tf_crop_and_resize":
            outside.append((axis, (places < 0) | (places > old - 1)))
    for axis, away in outside:
        y.movedim(axis, 0)[torch.from_numpy(away)] = ways.outside
    return y


def _limits(dtype: Any) -> tuple[int, int]:
    return (np.iinfo(dtype).min, np.iinfo(dtype).max)


def _places(new: int, old: int, scale: Any, region: Any, ways: _Ways) -> Any:
    """Return where in the input each output lies.

    For the nearest input in float32, as everybody computes it: in float64 a scale of 0.4 points elsewhere.
    """
    x, kind = np.arange(new, dtype=np.float64), ways.coordinates
    length = scale * old
    if ways.mode == "nearest":
        x, scale, length, region = x.astype(np.float32), np.float32(scale), np.float32(length), np.float32(region)
    if kind == "asymmetric":
        return x / scale
    if kind == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if kind == "half_pixel_symmetric":
        middle = old / 2 * (1 - new / length)
        return middle + (x + 0.5) / scale - 0.5
    if kind == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if length > 1 else np.zeros(new)
    if kind == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if kind == "align_corners":
        return np.zeros(new) if length == 1 or new == 1 else x * (old - 1) / (length - 1)
    if kind == "tf_crop_and_resize":
        start, end = region
        if new == 1:
            return np.full(1, 0.5 * (start + end) * (old - 1))
        return start * (old - 1) + x * (end - start) * (old - 1) / (new - 1)
    raise NotImplementedError(f"a Resize with the coordinates {kind}")


def _taps(places: Array, old: int, scale: float, ways: _Ways) -> tuple[Array, Array]:
    """Return which inputs each output is made of, and with which weights; both (new, taps)."""
    if ways.mode == "nearest":
        rounded = {
            "simple": np.ceil if scale < 1 else np.floor,  # not said before opset 11, and what ONNX Runtime does
            "floor": np.floor,
            "ceil": np.ceil,
            "round_prefer_floor": lambda each: np.ceil(each - 0.5),
            "round_prefer_ceil": lambda each: np.floor(each + 0.5),
        }[ways.nearest](places)
        return np.clip(rounded, 0, old - 1).astype(np.int64)[:, None], np.ones((len(places), 1))
    stretch = min(1.0, scale) if ways.antialias else 1.0
    reach = (1 if ways.mode == "linear" else 2) / stretch
    first = np.floor(places - reach).astype(np.int64) + 1
    taps = first[:, None] + np.arange(math.ceil(2 * reach) + (1 if ways.antialias else 0))
    apart = np.abs(taps - places[:, None]) * stretch
    if ways.mode == "linear":
        weights = np.maximum(0.0, 1 - apart)
    else:
        a = ways.cubic
        near = (a + 2) * apart**3 - (a + 3) * apart**2 + 1
        far = a * apart**3 - 5 * a * apart**2 + 8 * a * apart - 4 * a
        weights = np.where(apart <= 1, near, np.where(apart < 2, far, 0.0))
    if ways.excludes:
        weights = np.where((taps < 0) | (taps > old - 1), 0.0, weights)
    if ways.excludes or ways.antialias:
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(taps, 0, old - 1), weights


def _mixed(x: Any, axis: int, taps: Array, weights: Array) -> Any:
    new, old = len(taps), x.shape[axis]
    if taps.shape[1] == 1 and new % old == 0 and (taps[:, 0] == np.arange(new) // (new // old)).all():
        repeated = x.unsqueeze(axis + 1).expand(*x.shape[: axis + 1], new // old, *x.shape[axis + 1 :])
        return repeated.reshape(*x.shape[:axis], new, *x.shape[axis + 1 :])
    shape = (-1, *[1] * (x.ndim - 1 - axis))
    total: Any = None
    for at in range(taps.shape[1]):
        part = x.index_select(axis, torch.from_numpy(np.ascontiguousarray(taps[:, at])).to(x.device))
        if taps.shape[1] > 1:
            part = part.mul_(torch.from_numpy(np.ascontiguousarray(weights[:, at])).to(x).reshape(shape))
        total = part if total is None else total.add_(part)
    return total
