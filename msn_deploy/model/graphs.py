"""Walking an ONNX graph: its nodes and the graphs inside them, the tensors that it stores, its constants, its shapes.

A parser allocates what a tensor's dims say, so a file of 1 kB can ask for terabytes: `flaw_of` tells before anything
reads the values.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from msn_deploy.core.errors import size_text

MOST_BYTES = 2**31  # of one tensor, stored or made on the way: 2 GiB, which is also the most that protobuf takes
OPEN = (-1, 0)  # how some exporters write an open size
_LARGE = 1 << 16  # bytes: larger constants are no shapes, so that their values do not matter to shape inference
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_BITS_IN_NAMES = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8, "STRING": 8}


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Return the attributes that a node states, strings as bytes."""
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def attribute_of(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of one attribute, a string as bytes."""
    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def all_nodes(holder: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """The nodes of a graph or function and of the graphs inside it."""
    for node in holder.node:
        yield node
        for inner in inner_graphs(node):
            yield from all_nodes(inner)


def nodes_of_model(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of a model's graph and of its functions, those of graphs inside too."""
    for holder in (model.graph, *model.functions):
        yield from all_nodes(holder)


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor stored in a model: initializers and those in attributes; a sparse one as its two dense parts."""
    for graph in all_graphs(model):
        yield from graph.initializer
    for attribute in (attribute for node in nodes_of_model(model) for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for sparse in sparse_tensors(model):
        yield from (sparse.values, sparse.indices)


def sparse_tensors(model: ModelProto) -> Iterator[SparseTensorProto]:
    """Every sparse tensor stored in a model."""
    for graph in all_graphs(model):
        yield from graph.sparse_initializer
    for attribute in (attribute for node in nodes_of_model(model) for attribute in node.attribute):
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors


def all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    """A model's graph and the graphs inside it and inside its functions."""
    yield model.graph
    for node in nodes_of_model(model):
        yield from inner_graphs(node)


def constants_of(graph: GraphProto) -> dict[str, TensorProto]:
    """Return all constants by name: initializers, and what Constant nodes make."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], tensor) for tensor in map(_constant, node.attribute) if tensor is not None)
    return found


def _constant(attribute: AttributeProto) -> TensorProto | None:
    """Return what a Constant makes by that attribute as a tensor; None for a sparse one."""
    if attribute.name == "value":
        return attribute.t
    kinds = {"value_int": np.int64, "value_float": np.float32, "value_string": np.object_}
    kind = kinds.get(attribute.name.removesuffix("s"))
    if kind is None:
        return None
    return onnx.numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(attribute), kind))


def activations(model: ModelProto) -> list[str]:
    """Return the float tensors that depend on the input, itself included, in graph order."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    constant = {"", *(tensor.name for tensor in model.graph.initializer)}
    found = [value.name for value in model.graph.input if value.name not in constant]
    for node in model.graph.node:
        if all(name in constant for name in node.input):
            constant.update(node.output)
        else:
            found += node.output
    return [name for name in found if name in floats]


def with_outputs(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """Return a copy whose only outputs are the named tensors; nothing is said of shapes inside."""
    copied = ModelProto()
    copied.CopyFrom(model)
    del copied.graph.output[:]
    del copied.graph.value_info[:]
    copied.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copied


def names_of(model: ModelProto) -> set[str]:
    """Return what the tensors and nodes of a model are called, those of graphs inside too."""
    graphs = list(all_graphs(model))
    found = {name for graph in graphs for node in graph.node for name in (*node.input, *node.output, node.name)}
    return found | {each.name for graph in graphs for each in (*graph.input, *graph.output, *graph.initializer)}


def free_name(like: str, taken: set[str]) -> str:
    """Return the name, or one like it where a foreign file has it already; it is taken then."""
    name, count = like, 1
    while name in taken:
        name, count = f"{like}_{count}", count + 1
    taken.add(name)
    return name


def drop_unread_constants(graph: GraphProto) -> None:
    """Take out, in place, the constants that no node reads any more, nor a graph inside a node."""
    read = {name for node in all_nodes(graph) for name in node.input} | {value.name for value in graph.output}
    read |= {value.name for node in all_nodes(graph) for inner in inner_graphs(node) for value in inner.output}
    for at in reversed(range(len(graph.initializer))):
        if graph.initializer[at].name not in read:
            del graph.initializer[at]
    for at in reversed(range(len(graph.node))):
        if graph.node[at].op_type == "Constant" and graph.node[at].output[0] not in read:
            del graph.node[at]


def sized(model: ModelProto, *, batch: int, shapes: Mapping[str, Sequence[int]] | None = None) -> GraphProto:
    """Return the graph with all shapes that can be told, its large constants reduced to type and shape.

    batch: what an input's first size is taken for where the file leaves it open. shapes: of inputs, by name.
    """
    bare = without_weights(model)
    stored = {tensor.name for tensor in bare.graph.initializer}
    for value in bare.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, (shapes or {}).get(value.name, ()), strict=False):
            dim.dim_value = size
        if value.name not in stored and dims and not dims[0].dim_value:
            dims[0].dim_value = batch
    return onnx.shape_inference.infer_shapes(bare, data_prop=True).graph


def without_weights(model: ModelProto) -> ModelProto:
    """Copy a model with its large constants reduced to type and shape: shape inference copies what it gets."""
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)  # nothing else that the file says of sizes: it is not to be believed
    for dim in (dim for value in graph.input for dim in value.type.tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value in OPEN:
            dim.Clear()
    graph.initializer.extend(_bare(tensor) for tensor in model.graph.initializer)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    for node in model.graph.node:
        if not any(attribute.HasField("t") and attribute.t.ByteSize() > _LARGE for attribute in node.attribute):
            graph.node.append(node)
            continue
        copied = graph.node.add(
            name=node.name, op_type=node.op_type, domain=node.domain, input=node.input, output=node.output
        )
        for attribute in node.attribute:
            if attribute.HasField("t"):
                copied.attribute.add(name=attribute.name, type=attribute.type, t=_bare(attribute.t))
            else:
                copied.attribute.append(attribute)
    if model.functions:  # what they make on the way is told of the graph alone
        bare = importlib.import_module("onnx.inliner").inline_local_functions(bare)
    return bare


def _bare(tensor: TensorProto) -> TensorProto:
    if tensor.ByteSize() <= _LARGE:
        return tensor
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def bits_of(data_type: int) -> int | None:
    """Return the bits of one element (of a string: at least), None for a type that this onnx does not know."""
    if data_type not in TensorProto.DataType.values() or data_type == TensorProto.UNDEFINED:
        return None
    name = TensorProto.DataType.Name(data_type)
    if name in _BITS_IN_NAMES:
        return _BITS_IN_NAMES[name]
    digits = re.search(r"\d+", name)  # INT4, BFLOAT16, FLOAT8E4M3FN, COMPLEX64
    return int(digits.group()) if digits else None


def bytes_of(data_type: int, dims: Iterable[int]) -> int:
    """Return the bytes of a tensor of that type and shape."""
    return -(-math.prod(dims) * (bits_of(data_type) or 8) // 8)


def flaw_of(tensor: TensorProto, *, external: bool = False) -> str | None:
    """Say how a tensor fails to hold what its dims claim, None if it does; external: its bytes are in another file."""
    dims = list(tensor.dims)
    bits = bits_of(tensor.data_type)
    if bits is None:
        return f"has the element type {tensor.data_type}, which onnx {onnx.__version__} does not know"
    if any(size < 0 for size in dims):
        return f"claims the negative size {min(dims)} ({shape_text(dims)})"
    wanted = bytes_of(tensor.data_type, dims)
    if wanted > MOST_BYTES:
        return f"claims {shape_text(dims)} elements, {size_text(wanted)}; {size_text(MOST_BYTES)} are the most"
    if external:
        return None
    if tensor.HasField("raw_data"):
        held, unit = len(tensor.raw_data), "bytes"
    else:
        held, unit = sum(len(getattr(tensor, field)) for field in _FIELDS), "numbers"
        per_number = {4: 2, 2: 4}.get(bits, 1)
        parts = 2 if TensorProto.DataType.Name(tensor.data_type).startswith("COMPLEX") else 1
        wanted = -(-math.prod(dims) * parts // per_number)
    if held != wanted:
        return f"claims {shape_text(dims)} elements, that is {wanted} {unit}, and holds {held}"
    return None


def values_of(tensor: TensorProto) -> NDArray[Any] | None:
    """Return a tensor of a floating-point type as an array, None for any other type."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    return onnx.numpy_helper.to_array(tensor) if tensor.data_type in kinds else None


def shape_text(dims: Iterable[int]) -> str:
    """Write a shape, such as "1x3x32x32"; of many dims the first eight."""
    sizes = [str(size) for size in dims]
    return "x".join(sizes[:8]) + ("x..." if len(sizes) > 8 else "") or "a scalar's"
