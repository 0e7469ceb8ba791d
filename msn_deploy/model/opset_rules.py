"""How an operator of one opset is written in the opset below, where its newer form is more than a wider choice.

A rule is called with a copy of a node of the opset in which its operator changed, and returns nodes of the opset below
that compute the same. An operator that has no rule is compared by its schemas alone (model/opset.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from msn_deploy.model.graphs import all_graphs, attribute_of, constants_of
from msn_deploy.model.opset_scope import Chain, NotSaid, Scope, set_attribute

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def _input(node: NodeProto, at: int) -> str:
    return node.input[at] if at < len(node.input) else ""


def _numbers(node: NodeProto, at: int, what: str, scope: Scope) -> list[int] | None:
    """Return the integers of an input, None where it is absent."""
    name = _input(node, at)
    if not name:
        return None
    values = scope.constant(name)
    if values is None:
        raise NotSaid(f"its {what} are computed")
    return [int(value) for value in values.ravel()]


def _axes_to_attribute(node: NodeProto, scope: Scope) -> list[NodeProto]:
    axes = _numbers(node, 1, "axes", scope)
    if not axes and attribute_of(node, "noop_with_empty_axes", 0):
        if node.op_type not in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"):
            raise NotSaid("it reduces no axis")
        return [helper.make_node("Identity", [node.input[0]], list(node.output), name=node.name)]
    del node.input[1:]
    set_attribute(node, "noop_with_empty_axes", None)
    set_attribute(node, "axes", axes or None)
    return [node]


def _squeeze(node: NodeProto, scope: Scope) -> list[NodeProto]:
    axes = _numbers(node, 1, "axes", scope)
    del node.input[1:]
    set_attribute(node, "axes", axes)
    return [node]


def _split_13(node: NodeProto, scope: Scope) -> list[NodeProto]:
    sizes = _numbers(node, 1, "sizes", scope)
    del node.input[1:]
    set_attribute(node, "split", sizes)
    return [node]


def _split_18(node: NodeProto, scope: Scope) -> list[NodeProto]:
    parts = attribute_of(node, "num_outputs")
    set_attribute(node, "num_outputs", None)
    if parts is None or _input(node, 1):
        return [node]
    size = scope.shape(node.input[0])[attribute_of(node, "axis", 0)]
    if size is None:
        raise NotSaid("the size that it splits is open")
    one = -(-size // parts)
    sizes = [min(one, max(0, size - one * at)) for at in range(parts)]
    node.input[:] = [node.input[0], scope.put(sizes, f"{node.output[0]}_sizes")]
    return [node]


def _pad(node: NodeProto, scope: Scope) -> list[NodeProto]:
    axes = _numbers(node, 3, "axes", scope)
    wraps = attribute_of(node, "mode") == b"wrap"
    if axes is None and not wraps:
        del node.input[3:]
        return [node]
    rank = len(scope.shape(node.input[0]))
    pads = _numbers(node, 1, "pads", scope) or []
    full = [0] * (2 * rank)
    for at, axis in enumerate(range(rank) if axes is None else axes):
        full[axis % rank], full[axis % rank + rank] = pads[at], pads[at + len(pads) // 2]
    if wraps:
        return _wrapped(node, full, scope)
    node.input[1] = scope.put(full, f"{node.output[0]}_pads")
    del node.input[3:]
    return [node]


def _wrapped(node: NodeProto, pads: list[int], scope: Scope) -> list[NodeProto]:
    """Circular padding: the end in front, the beginning behind, axis by axis."""
    chain, value = Chain(node, scope), node.input[0]
    sizes = scope.shape(node.input[0])
    for axis, size in enumerate(sizes):
        before, behind = pads[axis], pads[axis + len(sizes)]
        if not (before or behind):
            continue
        if size is None or not (0 <= before <= size and 0 <= behind <= size):
            raise NotSaid(f"it wraps by {before} and {behind} around a size of {size or 'unknown length'}")
        at = scope.put([axis], f"{node.output[0]}_axis")
        parts = [value]
        for pad, first, last in ((before, size - before, size), (behind, 0, behind)):
            if pad:
                ends = [scope.put([end], f"{node.output[0]}_end") for end in (first, last)]
                parts.insert(0 if first else len(parts), chain.add("Slice", value, *ends, at))
        value = chain.add("Concat", *parts, axis=axis)
    chain.add("Identity", value, out=node.output[0])
    return chain.nodes


def _resize_19(node: NodeProto, scope: Scope) -> list[NodeProto]:
    if attribute_of(node, "coordinate_transformation_mode") == b"half_pixel_symmetric":
        raise NotSaid("it has the mode half_pixel_symmetric")
    return [node]


def _resize_18(node: NodeProto, scope: Scope) -> list[NodeProto]:
    axes = attribute_of(node, "axes")
    set_attribute(node, "axes", None)
    if axes is None or attribute_of(node, "keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return [node]
    inputs = [_input(node, at) for at in range(4)]
    shape = scope.shape(node.input[0])
    axes = [axis % len(shape) for axis in axes]
    for at, other in ((1, None), (2, 1.0), (3, None)):
        if not inputs[at]:
            continue
        given = scope.constant(inputs[at])
        if given is None:
            raise NotSaid("its sizes are computed")
        if at == 1:
            full = np.repeat(np.asarray([0, 1], given.dtype), len(shape))
            full[axes], full[[axis + len(shape) for axis in axes]] = np.split(given, 2)
        elif given.size:
            sizes = [other if other is not None else size for size in shape]
            for axis, size in zip(axes, given.tolist(), strict=True):
                sizes[axis] = size
            if None in sizes:
                raise NotSaid("it has sizes and the tensor an open size")
            full = np.asarray(sizes, given.dtype)
        else:
            continue
        inputs[at] = scope.put(full, f"{node.output[0]}_{('', 'roi', 'scales', 'sizes')[at]}", dtype=full.dtype)
    node.input[:] = inputs
    return [node]


def _resize_13(node: NodeProto, scope: Scope) -> list[NodeProto]:
    inputs = [_input(node, at) for at in range(4)]
    for at in (1, 2):
        inputs[at] = inputs[at] or scope.put([], f"{node.output[0]}_none", dtype=np.float32)
    node.input[:] = inputs if inputs[3] else inputs[:3]
    return [node]


def drop_idle_ceil(model: ModelProto) -> None:
    """Take ceil_mode from pools, in place, where its last window would begin behind the last number.

    Runtimes and torch leave such a window out, as ONNX does since 22; before, its shape inference counts it.
    """
    scope = Scope(model)
    for node in (node for graph in all_graphs(model) for node in graph.node):
        if node.op_type in ("AveragePool", "MaxPool") and attribute_of(node, "ceil_mode", 0) and _is_idle(node, scope):
            set_attribute(node, "ceil_mode", None)


def _is_idle(pool: NodeProto, scope: Scope) -> bool:
    kernel = attribute_of(pool, "kernel_shape")
    rank = len(kernel)
    pads = attribute_of(pool, "pads", [0] * (2 * rank))
    try:
        sizes = scope.shape(pool.input[0])[2:]
    except NotSaid:
        return False
    if None in sizes or attribute_of(pool, "auto_pad", b"NOTSET") != b"NOTSET":
        return False
    for at, size in enumerate(sizes):
        stride = attribute_of(pool, "strides", [1] * rank)[at]
        reach = attribute_of(pool, "dilations", [1] * rank)[at] * (kernel[at] - 1) + 1
        steps, rest = divmod((size or 0) + pads[at] + pads[at + rank] - reach, stride)
        if rest and (steps + 1) * stride < (size or 0) + pads[at]:
            return False
    return True


def _mod_28(node: NodeProto, scope: Scope) -> list[NodeProto]:
    if not attribute_of(node, "fmod", 0) and scope.element_type(node.input[0]) in _FLOATS:
        raise NotSaid("its fmod is 0 and its numbers are floats")
    return [node]


def _scatter_18(node: NodeProto, scope: Scope) -> list[NodeProto]:
    reduction = attribute_of(node, "reduction", b"none")
    if reduction not in (b"none", b"add", b"mul"):
        raise NotSaid(f"its reduction is {reduction.decode()}")
    return [node]


def _grid_sample_20(node: NodeProto, scope: Scope) -> list[NodeProto]:
    if len(scope.shape(node.input[0])) != 4:
        raise NotSaid("its input has more than two spatial axes")
    mode = attribute_of(node, "mode", b"linear")
    set_attribute(node, "mode", {b"linear": "bilinear", b"cubic": "bicubic"}.get(mode, mode))
    return [node]


def _roi_align_16(node: NodeProto, scope: Scope) -> list[NodeProto]:
    if attribute_of(node, "coordinate_transformation_mode", b"half_pixel") != b"output_half_pixel":
        raise NotSaid("it has the mode half_pixel")
    set_attribute(node, "coordinate_transformation_mode", None)
    return [node]


def _dft_20(node: NodeProto, scope: Scope) -> list[NodeProto]:
    axis = _numbers(node, 2, "axes", scope) or [-2]
    del node.input[2:]
    set_attribute(node, "axis", axis[0])
    return [node]


def _layer_norm(node: NodeProto, scope: Scope) -> list[NodeProto]:
    """Also RMSNormalization, which leaves the mean in; the axes of a mean became an input in 18."""
    axis = attribute_of(node, "axis", -1)
    axes = list(range(axis if axis < 0 else axis - len(scope.shape(node.input[0])), 0))
    chain, (plain, kind) = Chain(node, scope), _stashed(node.input[0], scope)
    outputs = [*node.output, "", ""]
    x = node.input[0] if plain else chain.add("Cast", node.input[0], to=TensorProto.FLOAT)
    if node.op_type == "RMSNormalization":
        apart = x
        over = scope.put(axes, f"{node.output[0]}_axes")
        variance = chain.add("ReduceMean", chain.add("Mul", apart, apart), over)
    else:
        apart = chain.add("Sub", x, chain.add("ReduceMean", x, out=outputs[1], axes=axes))
        variance = chain.add("ReduceMean", chain.add("Mul", apart, apart), axes=axes)
    eps = scope.put(attribute_of(node, "epsilon", 1e-5), f"{node.output[0]}_epsilon", dtype=kind)
    spread = chain.add("Sqrt", chain.add("Add", variance, eps))
    if outputs[2]:
        chain.add("Reciprocal", spread, out=outputs[2])
    normal = chain.add("Div", apart, spread)
    if not plain:
        normal = chain.add("Cast", normal, to=scope.element_type(node.input[0]))
    shift = _input(node, 2)
    scaled = chain.add("Mul", normal, node.input[1], out="" if shift else node.output[0])
    if shift:
        chain.add("Add", scaled, shift, out=node.output[0])
    return chain.nodes


def _stashed(name: str, scope: Scope) -> tuple[bool, type]:
    """Return whether a norm of that tensor is computed in its own type, and in which."""
    kind = scope.element_type(name)
    if kind == TensorProto.DOUBLE:
        return True, np.float64
    return kind == TensorProto.FLOAT, np.float32


def _group_norm(node: NodeProto, scope: Scope) -> list[NodeProto]:
    """Of 21 scale and shift are per channel, of 18 per group; a group is an instance of a norm without either."""
    data, scale, shift = node.input
    groups, shape = attribute_of(node, "num_groups"), scope.shape(data)
    channels = scope.shape(scale)[0]
    chain, (plain, kind) = Chain(node, scope), _stashed(data, scope)
    x = data if plain else chain.add("Cast", data, to=TensorProto.FLOAT)
    split = chain.add("Reshape", x, scope.put([0, groups, -1], f"{node.output[0]}_split"))
    one, zero = (scope.put(np.full(groups, value), f"{node.output[0]}_plain", dtype=kind) for value in (1, 0))
    epsilon = attribute_of(node, "epsilon", 1e-5)
    normal = chain.add("InstanceNormalization", split, one, zero, epsilon=epsilon)
    if not plain:
        normal = chain.add("Cast", normal, to=scope.element_type(data))
    if channels == groups and shape[1] != groups:  # of 18: one for each group
        flat = scope.put([-1, 1], f"{node.output[0]}_flat")
        scaled = chain.add("Mul", normal, chain.add("Reshape", scale, flat))
        moved = chain.add("Add", scaled, chain.add("Reshape", shift, flat))
        chain.add("Reshape", moved, _whole(chain, data, shape), out=node.output[0])
        return chain.nodes
    back = chain.add("Reshape", normal, _whole(chain, data, shape))
    flat = scope.put([-1, *[1] * (len(shape) - 2)], f"{node.output[0]}_flat")
    scaled = chain.add("Mul", back, chain.add("Reshape", scale, flat))
    chain.add("Add", scaled, chain.add("Reshape", shift, flat), out=node.output[0])
    return chain.nodes


def _whole(chain: Chain, data: str, shape: list[int | None]) -> str:
    """Return the shape that a tensor had before its axes were put together."""
    if None in shape[1:]:
        return chain.add("Shape", data)
    return chain.scope.put([0, *shape[1:]], f"{chain.of.output[0]}_shape")


def _shape_15(node: NodeProto, scope: Scope) -> list[NodeProto]:
    first, last = attribute_of(node, "start", 0), attribute_of(node, "end")
    if not first and last is None:
        set_attribute(node, "start", None)
        return [node]
    chain = Chain(node, scope)
    ends = [scope.put([each], f"{node.output[0]}_end") for each in (first, 2**31 - 1 if last is None else last)]
    zero = scope.put([0], f"{node.output[0]}_axis")
    chain.add("Slice", chain.add("Shape", node.input[0]), *ends, zero, out=node.output[0])
    return chain.nodes


def _reshape_14(node: NodeProto, scope: Scope) -> list[NodeProto]:
    """With allowzero a 0 is a size. Only a tensor without elements has one, and no network computes on that."""
    if attribute_of(node, "allowzero", 0):
        shape = scope.constant(node.input[1])
        if 0 in (scope.shape(node.input[0]) + scope.shape(node.output[0]) if shape is None else shape):
            raise NotSaid("it makes a size of 0")
    set_attribute(node, "allowzero", None)
    return [node]


def _softmax_13(node: NodeProto, scope: Scope) -> list[NodeProto]:
    """Before 13 all axes from the given one on are put together: it has to be the last."""
    axis = attribute_of(node, "axis", -1)
    rank = 0 if axis == -1 else len(scope.shape(node.input[0]))
    set_attribute(node, "axis", -1)
    if axis in (-1, rank - 1):
        return [node]
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    chain = Chain(node, scope)
    turned = chain.add("Transpose", node.input[0], perm=order)
    made = chain.add(node.op_type, turned, axis=-1)
    chain.add("Transpose", made, perm=order, out=node.output[0])
    return chain.nodes


def _one_scale_13(node: NodeProto, scope: Scope) -> list[NodeProto]:
    if math.prod(size or 0 for size in scope.shape(node.input[1])) != 1:
        raise NotSaid("it has a scale for each channel")
    set_attribute(node, "axis", None)
    return [node]


def _dropout_12(node: NodeProto, scope: Scope) -> list[NodeProto]:
    trains = _numbers(node, 2, "training mode", scope)
    if (trains and any(trains)) or any(node.output[1:]):
        raise NotSaid("it is in training mode or has a mask")
    del node.input[1:]
    set_attribute(node, "seed", None)
    return [node]


def _constant_12(node: NodeProto, scope: Scope) -> list[NodeProto]:
    (tensor,) = constants_of(helper.make_graph([node], "one", [], [])).values()
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", tensor))
    return [node]


Rule = Callable[[NodeProto, Scope], list[NodeProto]]
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
RULES: dict[tuple[str, int], Rule] = {
    **{(f"Reduce{each}", 18): _axes_to_attribute for each in _REDUCTIONS},
    ("ReduceSum", 13): _axes_to_attribute,
    ("Squeeze", 13): _squeeze,
    ("Unsqueeze", 13): _squeeze,
    ("Split", 18): _split_18,
    ("Split", 13): _split_13,
    ("Pad", 19): _pad,
    ("Pad", 18): _pad,
    ("Resize", 19): _resize_19,
    ("Resize", 18): _resize_18,
    ("Resize", 13): _resize_13,
    ("Mod", 28): _mod_28,
    ("ScatterElements", 18): _scatter_18,
    ("ScatterND", 18): _scatter_18,
    ("GridSample", 20): _grid_sample_20,
    ("RoiAlign", 16): _roi_align_16,
    ("DFT", 20): _dft_20,
    ("LayerNormalization", 17): _layer_norm,
    ("RMSNormalization", 23): _layer_norm,
    ("GroupNormalization", 21): _group_norm,
    ("GroupNormalization", 18): _group_norm,
    ("Shape", 15): _shape_15,
    ("Reshape", 14): _reshape_14,
    ("Softmax", 13): _softmax_13,
    ("LogSoftmax", 13): _softmax_13,
    ("Hardmax", 13): _softmax_13,
    ("QuantizeLinear", 13): _one_scale_13,
    ("DequantizeLinear", 13): _one_scale_13,
    ("Dropout", 12): _dropout_12,
    ("Constant", 12): _constant_12,
}
"""By operator and the opset in which it changed."""
