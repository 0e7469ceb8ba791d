"""Convolutions and poolings for onnx's reference implementation, by torch.

Its own transposed convolution is wrong for groups, its max pooling for rounded-up sizes with padding (onnx 1.23), and
its convolution is slow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array = NDArray[Any]


class Conv(OpRun):  # type: ignore[misc]  # onnx is not typed
    """Convolution of one to three dimensions by torch; its name is how the evaluator knows it."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        import torch

        sides = x.ndim - 2
        strides, dilations, group = strides or [1] * sides, dilations or [1] * sides, group or 1
        pads = _explicit_pads(auto_pad, pads, x.shape[2:], w.shape[2:], strides, dilations)
        x, pads = _even(x, pads, 0.0, ceil=False)
        convolve: Any = (torch.conv1d, torch.conv2d, torch.conv3d)[sides - 1]
        tensors = [None if each is None else _tensor(each) for each in (x, w, b)]
        y = convolve(*tensors, strides, pads, dilations, group)
        return (y.numpy(),)


class ConvTranspose(OpRun):  # type: ignore[misc]  # onnx is not typed
    """Transposed convolution of one to three dimensions by torch; padding here is cutting off."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        output_padding: list[int] | None = None,
        output_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        import torch

        if output_shape or auto_pad not in (None, "NOTSET", "VALID"):
            raise NotImplementedError("a transposed convolution with auto_pad or output_shape")
        sides = x.ndim - 2
        strides, dilations, pads = strides or [1] * sides, dilations or [1] * sides, pads or [0] * 2 * sides
        more = output_padding or [0] * sides
        convolve: Any = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[sides - 1]
        y = convolve(_tensor(x), _tensor(w), None, strides, 0, 0, group or 1, dilations).numpy()
        y = np.pad(y, [(0, 0), (0, 0), *((0, each) for each in more)])
        y = y[(..., *(slice(pads[i], y.shape[2 + i] - pads[sides + i]) for i in range(sides)))]
        return (y if b is None else y + b.reshape(-1, *[1] * sides),)


def _explicit_pads(
    auto: str | None, pads: list[int] | None, sizes: Any, kernel: Any, strides: list[int], dilations: list[int]
) -> list[int]:
    if auto in (None, "NOTSET", "VALID"):
        return pads or [0] * 2 * len(sizes)
    missing = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        missing.append(max(0, (-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size))
    before = [each // 2 if auto == "SAME_UPPER" else each - each // 2 for each in missing]
    return before + [each - first for each, first in zip(missing, before, strict=True)]


class MaxPool(OpRun):  # type: ignore[misc]  # onnx is not typed
    """Largest value of each window; its second output, the indices, is not computed."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        storage_order: int | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        import torch

        sides, kernel = x.ndim - 2, kernel_shape or []
        strides, dilations = strides or [1] * sides, dilations or [1] * sides
        pads = _explicit_pads(auto_pad, pads, x.shape[2:], kernel, strides, dilations)
        x, pads = _even(x, pads, -np.inf, ceil=bool(ceil_mode))
        pool: Any = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)[sides - 1]
        return (pool(_tensor(x), kernel, strides, pads, dilations, bool(ceil_mode)).numpy(),)


class AveragePool(OpRun):  # type: ignore[misc]  # onnx is not typed
    """Mean of each window."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        count_include_pad: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        from torch.nn import functional as F

        sides, kernel = x.ndim - 2, kernel_shape or []
        strides = strides or [1] * sides
        pads = _explicit_pads(auto_pad, pads, x.shape[2:], kernel, strides, [1] * sides)
        if any(each != 1 for each in dilations or []) or (pads[:sides] != pads[sides:] and not count_include_pad):
            raise NotImplementedError("an average pooling with dilation or uneven padding")
        x, pads = _even(x, pads, 0.0, ceil=bool(ceil_mode))
        pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[sides - 1]
        return (pool(_tensor(x), kernel, strides, pads, bool(ceil_mode), bool(count_include_pad)).numpy(),)


def _even(x: Array, pads: list[int], value: float, *, ceil: bool) -> tuple[Array, list[int]]:
    """Return the input and the padding per axis that torch takes, which is the same on both sides."""
    sides = x.ndim - 2
    if pads[:sides] == pads[sides:]:
        return x, pads[:sides]
    if ceil:
        raise NotImplementedError("a pooling with rounded-up sizes and uneven padding")
    widths = [(0, 0), (0, 0), *zip(pads[:sides], pads[sides:], strict=True)]
    return np.pad(x, widths, constant_values=value), [0] * sides


def _tensor(array: Array) -> Any:
    import torch

    return torch.from_numpy(np.require(array, requirements="CW"))  # a copy only of what torch would warn of


OPERATORS = [Conv, ConvTranspose, MaxPool, AveragePool]
