"""What is in this ONNX file, and is it safe to hand to a parser?

Both ONNX Runtime and TensorRT read weights that a model keeps in other files, TensorRT without any limit on where
they lie; and TensorRT-RTX 1.7.1 takes an empty or a text file for a network of no layers. So a file is looked at here
first, and only its bytes go further.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import open_input
from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import require


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """An ONNX file that parses, holds a graph, and keeps all its weights inside.

    data: its bytes. precision: of the graph itself, "int8" (holds Q/DQ nodes), "fp16" (holds half-precision weights
    or casts) or "fp32". nodes: (name, operator) of every node, in graph order.
    """

    path: Path
    data: bytes = field(repr=False)
    sha256: str
    precision: str
    nodes: tuple[tuple[str, str], ...] = field(repr=False)


def read_onnx(path: Path, *, step: str) -> OnnxFile:
    """Read and look through an ONNX file; `step` is the command that needs it.

    Raises InputError if the file is missing, empty, cut off, no ONNX model, or keeps weights in another file;
    MissingDependency if the package onnx is not there.
    """
    with open_input(path) as stream:
        data = stream.read()
    if not data:
        raise InputError(f"{path} is empty (0 bytes): not an ONNX model.\nExport or copy it again.")
    onnx: Any = require("onnx", step=step)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as cause:  # protobuf's DecodeError; its class differs between protobuf implementations
        raise InputError(
            f"{path} is not an ONNX model, or was cut off: its {len(data)} bytes do not parse.\n"
            "Export it again, or copy it again and compare the sizes."
        ) from cause
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{path} holds no network: {len(model.graph.node)} nodes.\nExport or copy it again.")
    nodes = [node for nodes in _node_lists(model.graph, model.functions) for node in nodes]
    tensors = list(_tensors(model.graph, nodes))
    outside = sorted({_location(tensor) for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL})
    if outside:
        raise InputError(
            f"{path} keeps weights in another file ({outside[0]}); msn-deploy reads models that are one file.\n"
            f"""Merge them: python -c "import onnx; onnx.save(onnx.load('{path}'), 'merged.onnx')\""""
        )
    return OnnxFile(
        path=path,
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        precision=_precision(onnx, nodes, tensors),
        nodes=tuple((node.name, node.op_type) for node in model.graph.node),
    )


def _node_lists(graph: Any, functions: Iterable[Any] = ()) -> Iterator[Iterable[Any]]:
    """The nodes of a graph, of the model's functions, and of every graph inside their attributes."""
    for nodes in (graph.node, *(function.node for function in functions)):
        yield nodes
        for node in nodes:
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    if inner.node:
                        yield from _node_lists(inner)


def _tensors(graph: Any, nodes: Iterable[Any]) -> Iterator[Any]:
    """Every tensor that is stored in the model: initializers (dense and sparse) and those in attributes."""
    yield from _initializers(graph)
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _initializers(inner)


def _initializers(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _location(tensor: Any) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "unnamed")


def _precision(onnx: Any, nodes: Iterable[Any], tensors: Iterable[Any]) -> str:
    half = onnx.TensorProto.FLOAT16
    casts_to_half = False
    for node in nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return "int8"
        if node.op_type == "Cast":
            casts_to_half |= any(each.name == "to" and each.i == half for each in node.attribute)
    return "fp16" if casts_to_half or any(tensor.data_type == half for tensor in tensors) else "fp32"
