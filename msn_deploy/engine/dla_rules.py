"""Which nodes of a network does a DLA take, by what NVIDIA documents? One table: a row per kind of layer.

DLA 1 is that of Xavier, DLA 2 that of Orin. A row may begin with a release of TensorRT. Sources, as the rows name them:

HEADER: comments of include/NvInfer.h, NVIDIA/TensorRT, tags 8.0.1, 8.2.1, 8.4.1, 8.5.2, v8.6.1, v10.3.0, v10.7.0
PAGE: "DLA Supported Layers and Restrictions", TensorRT documentation, and the pages of its operators ("DLA Support")
OPERATORS: operators/README.md, NVIDIA/Deep-Learning-Accelerator-SW: operators of ONNX on Orin, JetPack 5.1.1 and 6
PARSER: builtin_op_importers.cpp and onnxOpImporters.cpp, onnx/onnx-tensorrt, 8.2-GA to main: what a node becomes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
_MOST_BATCH, _MOST_SIZE, _MOST_MAPS = 4096, 8192, 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node, with what its row has to know.

    ins, outs: shapes, () where unknown. values: of the inputs that are constants, None for others and for large ones.
    fixed: which inputs are constants. precision: of the network. dla: 1 or 2. tensorrt: release, such as (10, 3, 0).
    """

    kind: str
    attributes: dict[str, Any]
    ins: Sequence[Shape]
    outs: Sequence[Shape]
    values: Sequence[Any]
    fixed: Sequence[bool]
    precision: str
    dla: int
    tensorrt: tuple[int, ...]

    def ints(self, name: str, default: int, count: int = 2) -> tuple[int, ...]:
        """Return an attribute with a number per axis."""
        return tuple(self.attributes.get(name) or (default,) * count)

    def value(self, at: int, attribute: str = "") -> Any:
        """Return what a constant input holds, flat, or the attribute that older opsets have in its place; or None."""
        if attribute and attribute in self.attributes:
            found = self.attributes[attribute]
            return list(found) if isinstance(found, (list, tuple)) else [found]
        given = self.values[at] if at < len(self.values) else None
        return None if given is None else given.flatten().tolist()


Check = Callable[[Node], str]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of layer. check: returns the limit that a node breaks, "" if none. since: TensorRT; dla: versions."""

    operators: tuple[str, ...]
    check: Check
    source: str
    since: tuple[int, ...] = (8,)
    dla: tuple[int, ...] = (1, 2)


def reason(node: Node) -> str:
    """Return why a node falls back to the GPU by what is documented, "" if it runs on the DLA."""
    if node.precision == "fp32":
        return "a DLA computes in FP16 and INT8 only"
    row = ROWS.get(node.kind)
    if row is None:
        return f"{node.kind} is not one of its layers"
    if node.dla not in row.dla:
        return f"{node.kind} is a layer of DLA 2 (Orin) alone"
    if node.tensorrt < row.since:
        return f"{node.kind} is one of its layers from TensorRT {'.'.join(map(str, row.since))} on"
    if not all(node.ins[:1]) or not all(node.outs):
        return ""  # its sizes are not known: the builder decides
    return _sizes(node) or row.check(node)


def _sizes(node: Node) -> str:
    """Check what holds for every layer: HEADER, PAGE. The batch is the product of all axes but the last three."""
    moving = [shape for shape, fixed in zip(node.ins, node.fixed, strict=True) if shape and not fixed]
    for shape in (*moving, *(shape for shape in node.outs if shape)):
        split = max(len(shape) - 3, 1)
        batch = math.prod(shape[:split])
        if batch > _MOST_BATCH:
            return f"a batch of {batch}; at most {_MOST_BATCH} run there"
        if max(shape[split:], default=1) > _MOST_SIZE:
            return f"a size of {max(shape[split:])}; at most {_MOST_SIZE} run there"
        if len(shape) != 4 and node.kind not in ("Gemm", "MatMul"):
            return f"{len(shape)} axes; a DLA takes 4, NCHW"
    return ""


def _beyond(what: str, values: Sequence[int], least: int, most: int) -> str:
    """Name values that are out of a range."""
    if all(least <= value <= most for value in values):
        return ""
    return f"{what} of {'x'.join(map(str, values))}; {least} to {most} run there"


def _any(_: Node) -> str:
    return ""


def _clip(node: Node) -> str:
    low, high = node.value(1, "min"), node.value(2, "max")
    if low is None or high is None or low[0] != 0 or not 1 <= high[0] <= 127:
        told = f"{'any' if low is None else format(low[0], 'g')} to {'any' if high is None else format(high[0], 'g')}"
        return f"a clip of {told}; 0 to a constant in 1 to 127 runs there"
    return ""


def _elementwise(node: Node) -> str:
    """Broadcast as NCHW, NC11 or N111 alone; a constant is a scale of its own. Comparisons are in INT8."""
    if node.kind in ("Equal", "Greater", "Less") and node.precision != "int8":
        return f"{node.kind} runs there in INT8 only"
    moving = [shape for shape, fixed in zip(node.ins, node.fixed, strict=True) if not fixed]
    whole = max(moving, key=math.prod, default=())
    for shape in moving:
        if shape != whole and (shape[:1] != whole[:1] or shape[2:] != (1, 1) or shape[1] not in (1, whole[1])):
            return f"{'x'.join(map(str, shape))} is spread over {'x'.join(map(str, whole))}; NC11 and N111 run there"
    return ""


def _concat(node: Node) -> str:
    if node.attributes.get("axis", 1) % 4 != 1:
        return f"it joins along axis {node.attributes['axis']}; along the channels, 1, runs there"
    return "one input; two and more run there" if len(node.ins) < 2 else ""


def _convolution(node: Node) -> str:
    """HEADER: padding of 0 to 31 that is less than the kernel, in its whole extent where it is dilated."""
    if not all(node.fixed[1:]):
        return "its weights are not constants"
    kernel, dilation, group = node.ins[1][2:], node.ints("dilations", 1), node.attributes.get("group", 1)
    pads = node.ints("pads", 0, 4)
    extent = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)] * 2
    return (
        _beyond("a kernel", kernel, 1, 32)
        or _beyond("a stride", node.ints("strides", 1), 1, 8)
        or _beyond("padding", pads, 0, 31)
        or _beyond("a dilation", dilation, 1, 32)
        or _beyond("groups", [group], 1, _MOST_MAPS)
        or _beyond("output channels", [node.ins[1][0]], 1, _MOST_MAPS)
        or ("padding as large as the kernel" if any(pad > most for pad, most in zip(pads, extent, strict=True)) else "")
    )


def _transposed(node: Node) -> str:
    """HEADER: kernel and stride of 1 to 32, or of 64, 96 or 128 along one axis and 1 along the other."""
    if not all(node.fixed[1:]):
        return "its weights are not constants"
    kernel = node.ins[1][2:]
    for what, values in (("a kernel", kernel), ("a stride", node.ints("strides", 1))):
        if sorted(values) not in ([1, 64], [1, 96], [1, 128]) and (told := _beyond(what, values, 1, 32)):
            return told
    if any(node.ints("pads", 0, 4)) or str(node.attributes.get("auto_pad", b"NOTSET"), "ascii").startswith("SAME"):
        return "a transposed convolution with padding"
    if node.attributes.get("group", 1) > 1 or max(node.ints("dilations", 1)) > 1:
        return "a transposed convolution with groups or dilation"
    return _beyond("output channels", [node.ins[1][1]], 1, _MOST_MAPS)


def _pooling(node: Node) -> str:
    pads = node.ints("pads", 0, 4)
    told = (
        _beyond("a window", node.ints("kernel_shape", 1), 1, 8)
        or _beyond("a stride", node.ints("strides", 1), 1, 16)
        or _beyond("padding", pads, 0, 7)
    )
    if told:
        return told
    inclusive = node.attributes.get("count_include_pad", 0)
    if node.dla == 1 and node.kind == "AveragePool" and any(pads) and not inclusive:
        return "an average without the padding (count_include_pad=0); DLA 1 counts it"
    return ""


def _reduced(node: Node) -> str:
    """PARSER: global pooling is a Reduce in all releases. PAGE: of MAX alone, over any of C, H and W that stay as 1."""
    if node.kind not in ("GlobalMaxPool", "ReduceMax"):
        return f"{node.kind} becomes a Reduce of TensorRT; that of MAX alone runs there"
    axes = node.value(1, "axes") or ([2, 3] if node.kind == "GlobalMaxPool" else [0])
    if any(axis % 4 == 0 for axis in axes) or not node.attributes.get("keepdims", 1):
        return "it reduces the batch, or drops axes"
    return ""


def _lrn(node: Node) -> str:
    size = node.attributes.get("size", 0)
    return "" if size in (3, 5, 7, 9) else f"a window of {size}; 3, 5, 7 and 9 run there"


def _prelu(node: Node) -> str:
    return "" if node.fixed[1] else "its slope is not a constant"


def _resize(node: Node) -> str:
    """HEADER: whole scales of 1 to 32 (nearest) or 1 to 4 (linear, from 8.4 on) along H and W, and some modes."""
    scales = node.value(1 if len(node.ins) == 2 else 2, "scales")
    if not scales:
        return "it has a size, or a scale that is not a constant; constant scales run there"
    mode = str(node.attributes.get("mode", b"nearest"), "ascii")
    linear, old = mode == "linear", node.tensorrt < (8, 4)
    if mode not in ("nearest", "linear") or (linear and old):
        return f"mode {mode}; {'nearest' if old else 'nearest and linear'} run there"
    most = 4 if linear else 32
    if scales[:2] != [1, 1] or any(scale != int(scale) or not 1 <= scale <= most for scale in scales[2:]):
        return f"scales of {'x'.join(f'{scale:g}' for scale in scales)}; 1x1 and whole ones of 1 to {most} run there"
    upsample = node.kind == "Upsample" or len(node.ins) == 2  # before opset 11: without a choice
    where = str(
        node.attributes.get("coordinate_transformation_mode", b"asymmetric" if upsample else b"half_pixel"), "ascii"
    )
    rounded = str(node.attributes.get("nearest_mode", b"floor" if upsample else b"round_prefer_floor"), "ascii")
    if linear:
        fits = where in ("half_pixel", "pytorch_half_pixel")
    else:
        halves = where == "half_pixel" and rounded.startswith("round_prefer") and not old
        fits = (where == "asymmetric" and rounded == "floor") or halves
    return "" if fits else f"{where} with {mode if linear else rounded} does not run there"


def _slice(node: Node) -> str:
    """HEADER: constants, steps of 1, not along the batch. PARSER: a Split is a Slice for each output."""
    if node.kind == "Split":
        return "it splits the batch" if node.attributes.get("axis", 0) % 4 == 0 else ""
    starts, axes, steps = node.value(1, "starts"), node.value(3, "axes"), node.value(4, "steps")
    if starts is None or node.value(2, "ends") is None:
        return "its bounds are not constants"
    if any(step != 1 for step in steps or ()):
        return f"steps of {'x'.join(map(str, steps))}; 1 runs there"
    cut = [axis % 4 for axis in axes] if axes is not None else list(range(len(starts)))
    return "it cuts the batch" if 0 in cut and node.ins[0][:1] != node.outs[0][:1] else ""


def _shuffle(node: Node) -> str:
    if node.kind == "Transpose":
        order = list(node.attributes.get("perm", (3, 2, 1, 0)))
        return "it moves the batch" if order[:1] != [0] else ""
    return "it changes the batch" if node.ins[0][:1] != node.outs[0][:1] else ""


def _softmax(node: Node) -> str:
    axis, shape = node.attributes.get("axis", -1) % 4, node.ins[0]
    if axis == 0:
        return "it is along the batch"
    others = math.prod(size for at, size in enumerate(shape) if at not in (0, axis))
    return _beyond("an axis", [shape[axis]], 1, _MOST_SIZE if others == 1 else 1024)


def _product(node: Node) -> str:
    """PARSER: FullyConnected up to 8.3, a matrix product since. OPERATORS: a 1x1 convolution on Orin, from 8.5 on."""
    if len(node.fixed) < 2 or not node.fixed[1] or node.fixed[0]:
        return "a product of two tensors; of one and a constant runs there"
    if node.tensorrt < (8, 4):
        return _beyond("outputs", [node.outs[0][-1]], 1, _MOST_MAPS)
    if node.dla == 1 or node.tensorrt < (8, 5):
        return "a matrix product in TensorRT 8.4 and later; DLA 2 takes it as a convolution from 8.5 on"
    return ""


_OPERATORS = (
    Row(("Relu", "Sigmoid", "Tanh", "LeakyRelu"), _any, "HEADER IActivationLayer; PAGE; OPERATORS"),
    Row(("Clip",), _clip, "HEADER IActivationLayer (kCLIP); PAGE: clipped ReLU"),
    Row(("BatchNormalization",), _any, "OPERATORS (Scale); PAGE"),
    Row(("Add", "Sub", "Mul", "Max", "Min", "Sum", "Equal"), _elementwise, "HEADER IElementWiseLayer; PAGE; OPERATORS"),
    Row(("Div", "Pow", "Greater", "Less"), _elementwise, "PAGE; OPERATORS, after 8.6.2", since=(10,), dla=(2,)),
    Row(("Concat",), _concat, "HEADER IConcatenationLayer; PAGE"),
    Row(("Conv",), _convolution, "HEADER IConvolutionLayer; PAGE"),
    Row(("ConvTranspose",), _transposed, "HEADER IDeconvolutionLayer; PAGE"),
    Row(("MaxPool", "AveragePool"), _pooling, "HEADER IPoolingLayer; PAGE"),
    Row(("GlobalAveragePool", "ReduceMean", "ReduceSum", "ReduceMin"), _reduced, "PARSER; PAGE; OPERATORS"),
    Row(("GlobalMaxPool", "ReduceMax"), _reduced, "PARSER; PAGE; OPERATORS, after 8.6.2", since=(10,), dla=(2,)),
    Row(("LRN",), _lrn, "HEADER ILRNLayer; PAGE"),
    Row(("PRelu",), _prelu, "HEADER IParametricReLULayer; PAGE", since=(8, 4)),
    Row(("Resize", "Upsample"), _resize, "HEADER IResizeLayer; PAGE", since=(8, 2)),
    Row(("Slice", "Split"), _slice, "HEADER ISliceLayer; PARSER (Split); OPERATORS", since=(8, 4)),
    Row(("Reshape", "Transpose"), _shuffle, "OPERATORS (Shuffle); PAGE", since=(8, 5)),
    Row(("Softmax",), _softmax, "HEADER ISoftMaxLayer: not on Xavier", since=(8, 4), dla=(2,)),
    Row(("Abs",), _any, "HEADER IUnaryLayer", since=(8, 4)),
    Row(("Sin", "Cos"), _any, "OPERATORS, after 8.6.2", since=(10,), dla=(2,)),
    Row(("Gemm", "MatMul"), _product, "PARSER; OPERATORS"),
)
ROWS = {operator: row for row in _OPERATORS for operator in row.operators}
