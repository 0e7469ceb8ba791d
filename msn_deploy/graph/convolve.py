"""Convolutions in float64, without what torch unfolds of a whole picture: many times the picture itself.

One of two dimensions is the sum over the places of its kernel of a matrix product each: of the weights there, and of
the picture shifted by that much, which is a matrix already. One channel by itself is
multiplied place by place. All others are torch's, in pieces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from msn_deploy.graph.kernels import Array, Call, Window, floats, kernel

_MOST_UNFOLDED = 1 << 25  # bytes that torch may unfold at a time
_FEWEST_CHANNELS = 8  # below, the products are too thin to be fast
_IN_CACHE = 1 << 17  # numbers of the output that are summed up at a time


@kernel("Conv")
def _conv(call: Call, x: Array, w: Array, b: Array | None = None) -> Array:
    at, groups = Window(call, x.shape[2:], w.shape[2:]), call.get("group", 1)
    image, weight, *bias = floats(x, w, b)
    if at.sides == 2 and math.prod(at.kernel) > 1 and w.shape[1] >= _FEWEST_CHANNELS:
        y = _by_products(at, image, weight, groups)
        return (y if b is None else y.add_(bias[0].reshape(-1, 1, 1))).numpy()
    added = bias[0] if bias else None
    if w.shape[1] == 1 and groups == x.shape[1]:
        return _depthwise(at, at.counts(ceil=False), image, weight, added)
    convolve: Any = (torch.conv1d, torch.conv2d, torch.conv3d)[at.sides - 1]
    sizes = at.counts(ceil=False)
    rows = max(1, _MOST_UNFOLDED // max(1, x.itemsize * math.prod(w.shape[1:]) * groups * math.prod(sizes[1:])))
    whole = len(x) == 1 and rows >= sizes[0]
    if at.before == at.behind and (whole or math.prod(at.kernel) == 1):
        made: Array = convolve(image, weight, added, at.strides, at.before, at.dilations, groups).numpy()
        return made
    y = torch.empty((len(x), len(w), *sizes), dtype=image.dtype)
    sides = at.before[1:]
    if sides != at.behind[1:]:
        ends = zip(reversed(sides), reversed(at.behind[1:]), strict=True)
        image, sides = F.pad(image, [each for pair in ends for each in pair]), [0] * (at.sides - 1)
    for n in range(len(x)):
        for first in range(0, sizes[0], rows):
            last = min(first + rows, sizes[0])
            start = first * at.strides[0] - at.before[0]
            stop = (last - 1) * at.strides[0] - at.before[0] + at.spans[0]
            piece = image[n : n + 1, :, max(0, start) : max(0, min(stop, at.sizes[0]))]
            above, below = max(0, min(-start, stop - start)), max(0, stop - max(start, at.sizes[0]))
            if above or below:
                piece = F.pad(piece, [0, 0] * (at.sides - 1) + [above, below])
            y[n, :, first:last] = convolve(piece, weight, added, at.strides, [0, *sides], at.dilations, groups)[0]
    return y.numpy()


def _depthwise(at: Window, sizes: Sequence[int], x: Tensor, w: Tensor, b: Tensor | None) -> Array:
    """Add up a picture per place in the window: torch convolves doubles channel by channel, 10 to 50 times slower."""
    x, each = at.padded(x, sizes, 0.0), (1, -1, *[1] * at.sides)
    x = x.repeat_interleave(len(w) // x.shape[1], dim=1) if len(w) > x.shape[1] else x
    y = torch.zeros((len(x), len(w), *sizes), dtype=x.dtype)
    for number, place in enumerate(itertools.product(*(range(size) for size in at.kernel))):
        part = x
        for axis, step in enumerate(place):
            part = at.taps(part, axis, sizes[axis])[step]
        y.addcmul_(part, w[:, 0].flatten(1)[:, number].reshape(each))
    return (y if b is None else y.add_(b.reshape(each))).numpy()


def _each_on_one_thread(work: Callable[[int], None], items: Sequence[int]) -> None:
    """Share work out among threads. Those of torch, in each product, wait for each other more than they multiply."""
    threads = torch.get_num_threads()
    if threads == 1:
        for item in items:
            work(item)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)


def _by_products(at: Window, image: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Convolve pictures (N, C, H, W) with weights (O, C / groups, kH, kW)."""
    outputs, channels, *kernel_sizes = weight.shape
    (high, wide), (down, right) = at.counts(ceil=False), at.strides
    # Each stride apart is a picture of its own, of these sizes; a row more, as the last product reads past its end.
    tall, width = -(-at.spans[0] // down) + high + 1, -(-at.spans[1] // right) + wide
    pads = [at.before[1], width * right - at.sizes[1] - at.before[1]]
    pads += [at.before[0], tall * down - at.sizes[0] - at.before[0]]
    parts = weight.reshape(groups, outputs // groups, channels, *kernel_sizes).permute(3, 4, 0, 1, 2).contiguous()
    y = torch.empty((len(image), outputs, high, wide), dtype=image.dtype)
    rows = max(1, min(_IN_CACHE // (outputs * width), -(-high // torch.get_num_threads())))
    for n, picture in enumerate(image):
        padded = F.pad(picture, pads)
        apart = {
            (i, j): padded[:, i::down, j::right].reshape(groups, channels, -1)
            for i in {each * at.dilations[0] % down for each in range(kernel_sizes[0])}
            for j in {each * at.dilations[1] % right for each in range(kernel_sizes[1])}
        }

        def strip(first: int, n: int = n, apart: dict[tuple[int, int], Tensor] = apart) -> None:
            last = min(first + rows, high)
            total = torch.zeros((groups, outputs // groups, (last - first) * width), dtype=image.dtype)
            for place in range(math.prod(kernel_sizes)):
                row, column = divmod(place, kernel_sizes[1])
                i, j = row * at.dilations[0], column * at.dilations[1]
                start = (i // down + first) * width + j // right
                read = apart[i % down, j % right][:, :, start : start + total.shape[2]]
                if groups == 1:
                    total[0].addmm_(parts[row, column, 0], read[0])
                else:
                    total.baddbmm_(parts[row, column], read)
            y[n, :, first:last] = total.reshape(outputs, last - first, width)[:, :, :wide]

        _each_on_one_thread(strip, range(0, high, rows))
    return y


@kernel("ConvTranspose")
def _conv_transpose(call: Call, x: Array, w: Array, b: Array | None = None) -> Array:
    """Padding here is cutting off; the picture is computed with all that the kernel reaches."""
    at, auto = Window(call, x.shape[2:], w.shape[2:]), call.get("auto_pad", "NOTSET")
    image, weight, *bias = floats(x, w, b)
    extra = list(call.get("output_padding") or [0] * at.sides)
    full = [(size - 1) * stride + span for size, stride, span in zip(at.sizes, at.strides, at.spans, strict=True)]
    shape = list(call.get("output_shape") or [])[-at.sides :]
    if not shape and auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = [size * stride for size, stride in zip(at.sizes, at.strides, strict=True)]
    before, behind = at.before, at.behind
    if shape:
        cut = [max(0, each + more - size) for each, more, size in zip(full, extra, shape, strict=True)]
        less = [each // 2 for each in cut]
        more = [each - each // 2 for each in cut]
        before, behind = (less, more) if auto == "SAME_UPPER" else (more, less)
        extra = [size + each - have for size, each, have in zip(shape, cut, full, strict=True)]
    convolve: Any = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[at.sides - 1]
    y = convolve(image, weight, None, at.strides, 0, 0, call.get("group", 1), at.dilations)
    pads: list[int] = []
    for i in reversed(range(at.sides)):
        pads += [-before[i], extra[i] - behind[i]]
    y = F.pad(y, pads) if any(pads) else y
    return (y + bias[0].reshape(-1, *[1] * at.sides) if bias else y).numpy()
