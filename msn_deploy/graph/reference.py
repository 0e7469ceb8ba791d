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


class Conv(OpRun):  # type: ignore[misc]  # onnx is not typed; the name of a class is that of its operator
    """Convolution of one to three dimensions."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:
        import torch

        at = _Window(given, x, w.shape[2:])
        x, pads = at.padded(x, 0.0, ceil=False)
        convolve: Any = (torch.conv1d, torch.conv2d, torch.conv3d)[at.sides - 1]
        tensors = [None if each is None else _tensor(each) for each in (x, w, b)]
        y = convolve(*tensors, at.strides, pads, at.dilations, given.get("group") or 1)
        return (y.numpy(),)


class ConvTranspose(OpRun):  # type: ignore[misc]
    """Transposed convolution of one to three dimensions; padding here is cutting off."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:
        import torch

        if given.get("output_shape") or given.get("auto_pad") not in (None, "NOTSET", "VALID"):
            raise NotImplementedError("a transposed convolution with auto_pad or output_shape")
        at = _Window(given, x, w.shape[2:])
        convolve: Any = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[at.sides - 1]
        group = given.get("group") or 1
        y = convolve(_tensor(x), _tensor(w), None, at.strides, 0, 0, group, at.dilations).numpy()
        y = np.pad(y, [(0, 0), (0, 0), *((0, each) for each in given.get("output_padding") or [0] * at.sides)])
        before, behind = at.pads[: at.sides], at.pads[at.sides :]
        y = y[(..., *(slice(before[i], y.shape[2 + i] - behind[i]) for i in range(at.sides)))]
        return (y if b is None else y + b.reshape(-1, *[1] * at.sides),)


class MaxPool(OpRun):  # type: ignore[misc]
    """Largest value of each window; its second output, the indices, is not computed."""

    op_domain = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array]:
        import torch

        at, ceil = _Window(given, x, given["kernel_shape"]), bool(given.get("ceil_mode"))
        x, pads = at.padded(x, -np.inf, ceil=ceil)
        pool: Any = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)[at.sides - 1]
        return (pool(_tensor(x), at.kernel, at.strides, pads, at.dilations, ceil).numpy(),)


class AveragePool(OpRun):  # type: ignore[misc]
    """Mean of each window."""

    op_domain = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array]:
        from torch.nn import functional as F

        at, ceil = _Window(given, x, given["kernel_shape"]), bool(given.get("ceil_mode"))
        counted = bool(given.get("count_include_pad"))
        if set(at.dilations) != {1} or (at.pads[: at.sides] != at.pads[at.sides :] and not counted):
            raise NotImplementedError("an average pooling with dilation or uneven padding")
        x, pads = at.padded(x, 0.0, ceil=ceil)
        pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[at.sides - 1]
        return (pool(_tensor(x), at.kernel, at.strides, pads, ceil, counted).numpy(),)


class _Window:
    """Where the windows of a convolution or pooling lie, every attribute spelled out."""

    def __init__(self, given: dict[str, Any], x: Array, kernel: Any) -> None:
        self.sides, self.kernel = x.ndim - 2, list(kernel)
        self.strides = list(given.get("strides") or [1] * self.sides)
        self.dilations = list(given.get("dilations") or [1] * self.sides)
        self.pads = self._pads(given.get("auto_pad"), given.get("pads"), x.shape[2:])

    def _pads(self, auto: str | None, pads: Any, sizes: tuple[int, ...]) -> list[int]:
        if auto in (None, "NOTSET", "VALID"):
            return list(pads or [0] * 2 * self.sides)
        missing = []
        for size, width, stride, dilation in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
            missing.append(max(0, (-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size))
        before = [each // 2 if auto == "SAME_UPPER" else each - each // 2 for each in missing]
        return before + [each - first for each, first in zip(missing, before, strict=True)]

    def padded(self, x: Array, value: float, *, ceil: bool) -> tuple[Array, list[int]]:
        """Return the input and the padding per axis that torch takes, which is the same on both sides."""
        before, behind = self.pads[: self.sides], self.pads[self.sides :]
        if before == behind:
            return x, before
        if ceil:
            raise NotImplementedError("a pooling with rounded-up sizes and uneven padding")
        return np.pad(x, [(0, 0), (0, 0), *zip(before, behind, strict=True)], constant_values=value), [0] * self.sides


def _tensor(array: Array) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


OPERATORS = [Conv, ConvTranspose, MaxPool, AveragePool]
