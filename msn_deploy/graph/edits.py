"""How an operator takes a per-channel affine map into its weights. Arithmetic in the graph's own precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from msn_deploy.graph.affine import Affine, affine_of, attribute, channels_of, constant

Array = NDArray  # type: ignore[type-arg]


def scale_conv_outputs(node: ir.Node, of: Affine) -> None:
    """Make it of(conv): W'[o] = s[o] * W[o], b' = s * b + t."""
    weight = _weight(node)
    _set(node, 1, _by_output(node, weight, of.scale))
    _set(node, 2, of.scale * _bias(node, len(of.scale)) + of.shift)


def scale_conv_inputs(node: ir.Node, of: Affine) -> None:
    """conv(of(x)) as a convolution of x: W'[:, c] = s[c] * W[:, c], b' = b + sum of W[:, c] * t[c]."""
    weight, groups = _weight(node), _groups(node)
    if node.op_type == "ConvTranspose":  # (C_in, C_out / groups, ...), and only scales come here
        _set(node, 1, weight * of.scale.reshape(-1, *[1] * (weight.ndim - 1)))
        return
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    by_group = (groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    scaled = grouped * of.scale.reshape(by_group)
    offset = (grouped * of.shift.reshape(by_group)).sum(axis=tuple(range(2, grouped.ndim))).reshape(-1)
    bias = _bias(node, weight.shape[0])
    _set(node, 1, scaled.reshape(weight.shape))
    if len(node.inputs) > 2 or offset.any():
        _set(node, 2, bias + offset)


def scale_matmul_outputs(node: ir.Node, of: Affine) -> None:
    """Make x @ W + b of(x @ W + b), as a Gemm."""
    weight, bias = _as_gemm(node, len(of.scale))
    by_output = of.scale.reshape((-1, 1) if attribute(node, "transB", 0) else (1, -1))
    _set(node, 1, weight * by_output)
    _set(node, 2, of.scale * bias + of.shift)


def scale_matmul_inputs(node: ir.Node, of: Affine) -> None:
    """of(x) @ W + b as a product of x."""
    transposed = bool(attribute(node, "transB", 0))
    outputs = _weight(node).shape[0 if transposed else 1]
    weight, bias = _as_gemm(node, outputs)
    _set(node, 1, weight * of.scale.reshape((1, -1) if transposed else (-1, 1)))
    _set(node, 2, bias + (weight @ of.shift if transposed else of.shift @ weight))


def add_to_bound(node: ir.Node, of: Affine) -> None:
    """Make the bound c of max(x, c) `of(c)`; a ReLU, which is max(x, 0), becomes a Max where that is not zero."""
    value = node.inputs[0]
    assert value is not None
    assert value.shape is not None
    bound = np.zeros_like(of.scale) if node.op_type == "Relu" else np.asarray(constant(node.inputs[1])).reshape(-1)
    bound = of.scale * bound + of.shift
    if node.op_type == "Relu":
        if not bound.any():
            return
        _replace(node, "Max", 2)
    _set(node, 1, bound.reshape(-1, *[1] * (len(value.shape) - 2)))


def rewrite_affine(node: ir.Node, of: Affine) -> None:
    """Make an affine node compute `of`, in as few passes over its input as it takes."""
    own = affine_of(node)
    assert own is not None
    mapped, _ = own
    value = node.inputs[mapped]
    assert value is not None
    assert value.shape is not None
    assert channels_of(value) == len(of.scale)
    shape = (-1, *[1] * (len(value.shape) - 2))
    only_shifts = bool((of.scale == 1).all())
    node.replace_input_with(0, value)
    if only_shifts or of.only_scales:
        _replace(node, "Add" if only_shifts else "Mul", 2)
        _set(node, 1, (of.shift if only_shifts else of.scale).reshape(shape))
        return
    _replace(node, "BatchNormalization", 5)
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
    for index, vector in enumerate((of.scale, of.shift, np.zeros_like(of.scale), np.ones_like(of.scale)), start=1):
        _set(node, index, vector)


def free_name(graph: ir.Graph, stem: str) -> str:
    """Return a name that no tensor of the graph has: the stem, or the stem and a number."""
    taken = {value.name for node in graph for value in node.outputs}
    taken |= {value.name for value in graph.inputs} | set(graph.initializers)
    name, count = stem, 1
    while name in taken:
        name, count = f"{stem}.{count}", count + 1
    return name


def _replace(node: ir.Node, kind: str, inputs: int) -> None:
    node.op_type = kind
    node.attributes.clear()
    node.resize_inputs(inputs)


def _as_gemm(node: ir.Node, outputs: int) -> tuple[Array, Array]:
    """Turn a MatMul into a Gemm, and alpha and beta into the numbers that they multiply; return weight and bias."""
    weight = _weight(node) * np.float64(attribute(node, "alpha", 1.0))  # type: ignore[arg-type]
    bias = _bias(node, outputs) * np.float64(attribute(node, "beta", 1.0))  # type: ignore[arg-type]
    node.op_type = "Gemm"
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)
    return weight, bias


def _by_output(node: ir.Node, weight: Array, scale: Array) -> Array:
    """Scale a weight along its output channels; a transposed convolution keeps (C_in, C_out / groups, ...)."""
    if node.op_type == "Conv":
        return np.asarray(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
    groups = _groups(node)
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    scaled = grouped * scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return np.asarray(scaled.reshape(weight.shape))


def _groups(node: ir.Node) -> int:
    groups = attribute(node, "group", 1)
    assert isinstance(groups, int)
    return groups


def _weight(node: ir.Node) -> Array:
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight


def _bias(node: ir.Node, size: int) -> Array:
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return np.zeros(size) if bias is None else bias


def _set(node: ir.Node, index: int, array: Array) -> None:
    """Give a node an array of its own as an input, under the name of the one before where nothing else reads that."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old, graph = node.inputs[index], node.graph
    assert isinstance(graph, ir.Graph)
    tensor = ir.tensor(np.ascontiguousarray(array))
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_input():
        old.const_value, old.shape, old.dtype = tensor, tensor.shape, tensor.dtype
        return
    stem = f"{node.outputs[0].name}.{('', 'weight', 'bias')[index] if index < 3 else index}"
    value = ir.Value(
        name=free_name(graph, stem), shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    node.replace_input_with(index, value)
