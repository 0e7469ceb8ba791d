"""How large do the tensors of a graph get? Told by shape inference, before anything runs or folds constants.

ONNX Runtime allocates while it loads a file: whatever follows from constants alone is computed there and then.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from msn_deploy.core.errors import InputError
from msn_deploy.model.constants import compute_constants
from msn_deploy.model.tensors import MOST_BYTES, bytes_of, graphs_of, shape_text, size_text

_LARGE = 1 << 16  # bytes: larger constants are no shapes, so that their values do not matter here
# Operators whose result may be of any size, whatever the size of what they read.
_GROWING = {
    *("ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Pad", "Resize", "Upsample", "MaxUnpool"),
    *("RandomNormal", "RandomUniform", "CenterCropPad", "AffineGrid", "Col2Im"),
}
_OPEN = -1  # how some exporters write an open size


def check_sizes(onnx: Any, model: Any, *, source: str) -> None:
    """Refuse a model with a tensor beyond 2 GiB, or with more than that in what follows from constants alone.

    Open sizes (the batch) count as 1. Raises InputError that names the largest tensor.
    """
    bare = without_weights(onnx, model)
    made = [name for node in _constant_nodes(bare.graph, set()) for name in node.output if name]
    sizes: dict[str, int] = {}
    for value in (*_values(_inferred(onnx, bare, source=source)), *model.graph.output):
        tensor = value.type.tensor_type
        dims = [
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value != _OPEN else 1 for dim in tensor.shape.dim
        ]
        if any(size < 0 for size in dims):
            raise InputError(
                f"{source}: the tensor {value.name!r} has the negative size {min(dims)} ({shape_text(dims)}).\n"
                "Either a size was left out or it overflows. Export the network again, with fixed sizes."
            )
        sizes[value.name] = bytes_of(onnx, tensor.elem_type, dims)
        if sizes[value.name] > MOST_BYTES:
            raise InputError(
                f"{source}: the tensor {value.name!r} ({shape_text(dims)}) takes {size_text(sizes[value.name])}; "
                f"{size_text(MOST_BYTES)} are the most.\n"
                "The file is damaged, or made for much larger input. Export the network with a smaller input or batch."
            )
    folded = sum(sizes.get(name, 0) for name in made)
    if folded > MOST_BYTES:
        raise InputError(
            f"{source}: {size_text(folded)} follow from its constants alone; {size_text(MOST_BYTES)} are the most.\n"
            "They would be computed as soon as it is loaded. Export the network again, without such constants."
        )


def _inferred(onnx: Any, bare: Any, *, source: str) -> Any:
    """Return a graph that tells all sizes that can be told. May work out constants in `bare`."""
    before = onnx.ModelProto()
    before.CopyFrom(bare)
    try:
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
        if _open_growth(before.graph, graph) is not None:
            compute_constants(onnx, bare)
            graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception as cause:  # RuntimeError and InferenceError; a node that does not fit only stays without a size
        raise InputError(
            f"{source} does not fit together: {' '.join(str(cause).split())[:200]}.\nExport the network again."
        ) from cause
    node = _open_growth(before.graph, graph)
    if node is not None:
        raise InputError(
            f"{source}: how large {node.output[0]!r} gets, which {node.op_type} {node.name!r} makes of constants, "
            "cannot be told before it is made.\nExport the network again, with fixed sizes."
        )
    return graph


def _open_growth(graph: Any, inferred: Any) -> Any:
    """Return a node that makes a tensor of any size from constants alone, and which size is not known; or None."""
    told = {value.name for value in _values(inferred) if _is_told(value.type.tensor_type)}
    told |= {tensor.name for tensor in inferred.initializer}
    found = (node for node in _constant_nodes(graph, set()) if node.op_type in _GROWING)
    return next((node for node in found if not told.issuperset(node.output)), None)


def _is_told(tensor: Any) -> bool:
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def without_weights(onnx: Any, model: Any) -> Any:
    """Copy a model with its large constants reduced to type and shape: shape inference copies what it gets."""
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)  # nothing else that the file says of sizes: it is not to be believed
    for dim in (dim for value in graph.input for dim in value.type.tensor_type.shape.dim):
        if dim.dim_value == _OPEN:
            dim.Clear()
    graph.initializer.extend(_bare(onnx, tensor) for tensor in model.graph.initializer)
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
                copied.attribute.add(name=attribute.name, type=attribute.type, t=_bare(onnx, attribute.t))
            else:
                copied.attribute.append(attribute)
    if model.functions:  # what they make on the way is told of the graph alone
        bare = importlib.import_module("onnx.inliner").inline_local_functions(bare)
    return bare


def _bare(onnx: Any, tensor: Any) -> Any:
    if tensor.ByteSize() <= _LARGE:
        return tensor
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _values(graph: Any) -> Iterator[Any]:
    """Every value of a graph and of the graphs inside it that has a tensor type."""
    for values in (graph.input, graph.value_info, graph.output):
        for value in values:
            if value.type.HasField("tensor_type"):
                yield value
    for node in graph.node:
        for attribute in node.attribute:
            for inner in graphs_of(attribute):
                yield from _values(inner)


def _constant_nodes(graph: Any, outer: set[str]) -> Iterator[Any]:
    """The nodes, those of graphs inside too, that no input has a part in; an unsorted graph only gives fewer."""
    known = outer | {tensor.name for tensor in graph.initializer}
    known |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        for inner in (inner for attribute in node.attribute for inner in graphs_of(attribute)):
            yield from _constant_nodes(inner, known)
        if known.issuperset(name for name in node.input if name):
            known.update(node.output)
            yield node
