"""How an operator takes a per-channel affine map into its weights. Arithmetic in the graph's own precision.

Each edit reads the node as it is when the edit is made: a plan may change a node more than once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from msn_deploy.graph.affine import Affine, Array, affine_of, constant, present, shape_of
from msn_deploy.model import graphs


def scale_conv_outputs(node: ir.Node, of: Affine) -> None:
    """Make it of(conv): W'[o] = s[o] * W[o], b' = s * b + t."""
    set_constant(node, 1, _by_output(node, _weight(node), of.scale))
    set_constant(node, 2, of.scale * _bias(node, len(of.scale)) + of.shift)


def scale_conv_inputs(node: ir.Node, of: Affine) -> None:
    """conv(of(x)) as a convolution of x: W'[:, c] = s[c] * W[:, c], b' = b + sum of W[:, c] * t[c]."""
    weight, groups = _weight(node), node.attributes.get_int("group", 1)
    if node.op_type == "ConvTranspose":  # (C_in, C_out / groups, ...), and only scales come here
        set_constant(node, 1, weight * of.scale.reshape(-1, *[1] * (weight.ndim - 1)))
        return
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    by_group = (groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    scaled = grouped * of.scale.reshape(by_group)
    offset = (grouped * of.shift.reshape(by_group)).sum(axis=tuple(range(2, grouped.ndim))).reshape(-1)
    bias = _bias(node, weight.shape[0])
    set_constant(node, 1, scaled.reshape(weight.shape))
    if len(node.inputs) > 2 or offset.any():
        set_constant(node, 2, bias + offset)


def scale_matmul_outputs(node: ir.Node, of: Affine) -> None:
    """Make x @ W + b of(x @ W + b), as a Gemm."""
    weight, bias = _as_gemm(node, len(of.scale))
    by_output = of.scale.reshape((-1, 1) if node.attributes.get_int("transB", 0) else (1, -1))
    set_constant(node, 1, weight * by_output)
    set_constant(node, 2, of.scale * bias + of.shift)


def scale_matmul_inputs(node: ir.Node, of: Affine) -> None:
    """of(x) @ W + b as a product of x."""
    transposed = bool(node.attributes.get_int("transB", 0))
    outputs = _weight(node).shape[0 if transposed else 1]
    weight, bias = _as_gemm(node, outputs)
    set_constant(node, 1, weight * of.scale.reshape((1, -1) if transposed else (-1, 1)))
    set_constant(node, 2, bias + (weight @ of.shift if transposed else of.shift @ weight))


def add_to_bound(node: ir.Node, of: Affine) -> None:
    """Make the bound c of max(x, c) `of(c)`; a ReLU, which is max(x, 0), becomes a Max where that is not zero."""
    is_relu, rank = node.op_type == "Relu", len(shape_of(node.inputs[0]))
    bound = np.zeros_like(of.scale) if is_relu else present(constant(node.inputs[1])).reshape(-1)
    bound = of.scale * bound + of.shift
    if is_relu:
        if not bound.any():
            return
        _replace(node, "Max", 2)
    set_constant(node, 1, bound.reshape(-1, *[1] * (rank - 2)))


def map_outputs(node: ir.Node, of: Affine) -> None:
    """Make an affine node what it was, and then `of`."""
    rewrite_affine(node, of.after(present(affine_of(node)).of))


def map_inputs(node: ir.Node, of: Affine) -> None:
    """Make an affine node `of`, and then what it was."""
    rewrite_affine(node, present(affine_of(node)).of.after(of))


def rewrite_affine(node: ir.Node, of: Affine) -> None:
    """Make an affine node compute `of`, in as few passes over its input as it takes."""
    value = present(affine_of(node)).value
    rank = len(shape_of(value))
    shape = (-1, *[1] * (rank - 2))
    node.replace_input_with(0, value)
    if rank and (of.only_shifts or of.only_scales):
        _replace(node, "Add" if of.only_shifts else "Mul", 2)
        set_constant(node, 1, (of.shift if of.only_shifts else of.scale).reshape(shape))
        return
    _replace(node, "BatchNormalization", 5)
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
    for index, vector in enumerate((of.scale, of.shift, np.zeros_like(of.scale), np.ones_like(of.scale)), start=1):
        set_constant(node, index, vector)


def spell_out(norm: ir.Node) -> None:
    """Make a BatchNormalization a product and a sum."""
    mapped, graph = present(affine_of(norm)), graph_of(norm)
    shape = (-1, *[1] * (len(shape_of(mapped.value)) - 2))
    product = ir.Node("", "Mul", [mapped.value, None], num_outputs=1)
    graph.insert_before(norm, product)
    scaled, made = product.outputs[0], norm.outputs[0]
    scaled.name, scaled.type, scaled.shape = free_name(graph, f"{made.name}.scaled"), made.type, made.shape
    product.name = scaled.name
    set_constant(product, 1, mapped.of.scale.reshape(shape))
    _replace(norm, "Add", 2)
    norm.replace_input_with(0, scaled)
    set_constant(norm, 1, mapped.of.shift.reshape(shape))


def free_name(graph: ir.Graph, stem: str) -> str:
    """Return a name that no tensor of the graph has: the stem, or the stem and a number."""
    taken = {str(value.name) for node in graph for value in node.outputs}
    return graphs.free_name(stem, taken | {str(value.name) for value in graph.inputs} | set(graph.initializers))


def graph_of(node: ir.Node) -> ir.Graph:
    """Return the graph of a node."""
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node.name} is not in a graph")
    return node.graph


def _replace(node: ir.Node, kind: str, inputs: int) -> None:
    node.op_type = kind
    node.attributes.clear()
    node.resize_inputs(inputs)


def _as_gemm(node: ir.Node, outputs: int) -> tuple[Array, Array]:
    """Turn a MatMul into a Gemm, and alpha and beta into the numbers that they multiply; return weight and bias."""
    weight = _weight(node) * node.attributes.get_float("alpha", 1.0)
    bias = _bias(node, outputs) * node.attributes.get_float("beta", 1.0)
    node.op_type = "Gemm"
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)
    return weight, bias


def _by_output(node: ir.Node, weight: Array, scale: Array) -> Array:
    """Scale a weight along its output channels; a transposed convolution keeps (C_in, C_out / groups, ...)."""
    if node.op_type == "Conv":
        return np.asarray(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
    groups = node.attributes.get_int("group", 1)
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    scaled = grouped * scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return np.asarray(scaled.reshape(weight.shape))


def _weight(node: ir.Node) -> Array:
    return present(constant(node.inputs[1]))


def _bias(node: ir.Node, size: int) -> Array:
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return np.zeros(size) if bias is None else bias


def set_constant(node: ir.Node, index: int, array: Array) -> None:
    """Give a node an array of its own as an input, under the name of the one before where nothing else reads that."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old, graph = node.inputs[index], graph_of(node)
    tensor, shape = ir.tensor(np.asarray(array, order="C")), ir.Shape(array.shape)
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_input():
        old.const_value, old.shape, old.dtype = tensor, shape, tensor.dtype
        return
    stem = f"{node.outputs[0].name}.{('', 'weight', 'bias')[index] if index < 3 else index}"
    value = ir.Value(name=free_name(graph, stem), shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    node.replace_input_with(index, value)
