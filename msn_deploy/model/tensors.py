"""The tensors that an ONNX file stores: does each hold what its dims claim, and what are its values?

A parser allocates what the dims say, so a file of 1 kB can ask for terabytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

MOST_BYTES = 2**31  # of one tensor, stored or made on the way: 2 GiB, which is also the most that protobuf takes
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_BITS_IN_NAMES = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8, "STRING": 8}


def tensors_of(graph: Any) -> Iterator[Any]:
    """Every tensor stored in a graph and in the graphs inside it: initializers and those in attributes, any sparse too.

    A sparse tensor counts as its two dense parts.
    """
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from tensors_of_node(node)


def all_tensors(model: Any) -> list[Any]:
    """Every tensor stored in a model: in its graph, and in its functions."""
    of_functions = (tensor for each in model.functions for node in each.node for tensor in tensors_of_node(node))
    return [*tensors_of(model.graph), *of_functions]


def tensors_of_node(node: Any) -> Iterator[Any]:
    """Every tensor in the attributes of a node, those of graphs inside it too."""
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in sparse_of(attribute):
            yield from (sparse.values, sparse.indices)
        for inner in graphs_of(attribute):
            yield from tensors_of(inner)


def graphs_of(attribute: Any) -> Iterator[Any]:
    """The graphs in an attribute."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def sparse_of(attribute: Any) -> Iterator[Any]:
    """The sparse tensors in an attribute."""
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor
    yield from attribute.sparse_tensors


def bits_of(onnx: Any, data_type: int) -> int | None:
    """Return the bits of one element (of a string: at least), None for a type that this onnx does not know."""
    if data_type not in onnx.TensorProto.DataType.values() or data_type == onnx.TensorProto.UNDEFINED:
        return None
    name = onnx.TensorProto.DataType.Name(data_type)
    if name in _BITS_IN_NAMES:
        return _BITS_IN_NAMES[name]
    digits = re.search(r"\d+", name)  # INT4, BFLOAT16, FLOAT8E4M3FN, COMPLEX64
    return int(digits.group()) if digits else None


def bytes_of(onnx: Any, data_type: int, dims: Iterable[int]) -> int:
    """Return the bytes of a tensor of that type and shape."""
    return -(-math.prod(dims) * (bits_of(onnx, data_type) or 8) // 8)


def flaw_of(onnx: Any, tensor: Any, *, external: bool = False) -> str | None:
    """Say how a tensor fails to hold what its dims claim, None if it does; external: its bytes lie elsewhere."""
    dims = list(tensor.dims)
    bits = bits_of(onnx, tensor.data_type)
    if bits is None:
        return f"has the element type {tensor.data_type}, which onnx {onnx.__version__} does not know"
    if any(size < 0 for size in dims):
        return f"claims the negative size {min(dims)} ({shape_text(dims)})"
    wanted = bytes_of(onnx, tensor.data_type, dims)
    if wanted > MOST_BYTES:
        return f"claims {shape_text(dims)} elements, {size_text(wanted)}; {size_text(MOST_BYTES)} are the most"
    if external:
        return None
    if tensor.HasField("raw_data"):
        held, unit = len(tensor.raw_data), "bytes"
    else:
        held, unit = sum(len(getattr(tensor, field)) for field in _FIELDS), "numbers"
        per_number = {4: 2, 2: 4}.get(bits, 1)
        parts = 2 if onnx.TensorProto.DataType.Name(tensor.data_type).startswith("COMPLEX") else 1
        wanted = -(-math.prod(dims) * parts // per_number)
    if held != wanted:
        return f"claims {shape_text(dims)} elements, that is {wanted} {unit}, and holds {held}"
    return None


def values_of(onnx: Any, tensor: Any) -> Any:
    """Return a tensor of a floating-point type as an array, None for any other type."""
    kinds = (tensor.FLOAT, tensor.FLOAT16, tensor.DOUBLE, tensor.BFLOAT16)
    return onnx.numpy_helper.to_array(tensor) if tensor.data_type in kinds else None


def size_text(count: int) -> str:
    """Write a number of bytes, such as "28 GiB"."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.3g} {unit}"
    return f"{count} bytes"


def shape_text(dims: Iterable[int]) -> str:
    """Write a shape, such as "1x3x32x32"; of many dims the first eight."""
    sizes = [str(size) for size in dims]
    return "x".join(sizes[:8]) + ("x..." if len(sizes) > 8 else "") or "a scalar's"
