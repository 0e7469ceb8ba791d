"""What is in this ONNX file, and is it safe to hand to a parser?

Both ONNX Runtime and TensorRT read weights that a model keeps in other files, TensorRT without any limit on where
they lie; and TensorRT-RTX 1.7.1 takes an empty or a text file for a network of no layers. So a file is looked at here
first, and only its bytes go further.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import open_input
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import METADATA_KEY
from msn_deploy.core.optional import require
from msn_deploy.model.checks import check_model
from msn_deploy.model.tensors import MOST_BYTES, all_tensors, size_text

_OWN = "; export a network of your own with `msn-deploy export FILE.py:FACTORY --weights FILE`"
_KINDS = {
    b"PK\x03\x04": f"a zip archive, as torch's .pt files are{_OWN}",
    **{bytes([0x80, protocol]): f"a pickle, which is never opened here{_OWN}" for protocol in (2, 3, 4, 5)},
    b"version https://git-lfs": "a pointer of git-lfs; fetch the file itself with `git lfs pull`",
    b"\x1f\x8b": "a gzip archive; unpack it with gunzip",
    b"\x89HDF": "an HDF5 file; convert it to ONNX with the tool that made it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """An ONNX file that parses, holds a graph, and keeps all its weights inside.

    data: its bytes. precision: of the graph itself, "int8" (holds Q/DQ nodes), "fp16" (holds half-precision weights
    or casts) or "fp32". nodes: (name, operator) of every node, in graph order. info: what the file says of itself, as
    ModelInfo writes it, None if it says nothing.
    """

    path: Path
    data: bytes = field(repr=False)
    proto: Any = field(repr=False, compare=False)
    sha256: str
    precision: str
    nodes: tuple[tuple[str, str], ...] = field(repr=False)
    info: str | None = field(default=None, repr=False)


def read_onnx(path: Path, *, step: str) -> OnnxFile:
    """Read and look through an ONNX file; `step` is the command that needs it.

    Raises InputError if the file is missing, empty, cut off, no ONNX model, keeps weights in another file, or does not
    pass check_model; MissingDependency if the package onnx is not there.
    """
    data, model = parse_onnx(path, step=step)
    outside = external_tensors(model)
    if outside:
        raise InputError(
            f"{path} keeps weights in another file ({location_of(outside[0])}); models that are one file are read.\n"
            f"Merge them: msn-deploy export {shlex.quote(str(path))} --out merged.onnx"
        )
    return look_through(path, data, model)


def parse_onnx(path: Path, *, step: str) -> tuple[bytes, Any]:
    """Return the bytes of a file and the model that they parse to, not looked through yet. Raises as read_onnx does."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(f"{path} is not a plain file; it may never end.\nGive the name of an .onnx file.")
    with open_input(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size >= MOST_BYTES:
            raise InputError(
                f"{path} has {size_text(size)}; one ONNX file holds less than {size_text(MOST_BYTES)}.\n"
                "It is damaged, or no ONNX model. Export it again."
            )
        data = stream.read()
    if not data:
        raise InputError(f"{path} is empty (0 bytes): not an ONNX model.\nExport or copy it again.")
    onnx: Any = require("onnx", step=step)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as cause:  # protobuf's DecodeError; its class differs between protobuf implementations
        raise InputError(
            f"{path} is not an ONNX model, or was cut off: its {len(data)} bytes do not parse.\n{_looks_like(data)}"
        ) from cause
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{path} holds no network: {len(model.graph.node)} nodes.\n{_looks_like(data)}")
    return data, model


def look_through(path: Path, data: bytes, model: Any) -> OnnxFile:
    """Check a parsed model that keeps all its weights inside, and describe it; `data` are its bytes."""
    onnx: Any = require("onnx", step="reading an ONNX file")
    check_model(onnx, model, source=str(path))
    return OnnxFile(
        path=path,
        data=data,
        proto=model,
        sha256=hashlib.sha256(data).hexdigest(),
        precision=precision_of(model),
        nodes=tuple((node.name, node.op_type) for node in model.graph.node),
        info=next((each.value for each in model.metadata_props if each.key == METADATA_KEY), None),
    )


def external_tensors(model: Any) -> list[Any]:
    """Return the tensors whose values lie in other files, in the order of those files' names."""
    return sorted((each for each in all_tensors(model) if each.data_location == each.EXTERNAL), key=location_of)


def location_of(tensor: Any) -> str:
    """Return the file that an external tensor names."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "unnamed")


def _looks_like(data: bytes) -> str:
    """Say what a file is instead, by its first bytes, and what to do about it."""
    for start, what in _KINDS.items():
        if data.startswith(start):
            return f"It begins like {what}."
    head = data[:512]
    if len(head) > 3 and all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        return "It looks like text. Check that it is the file that you meant, and download it again if it came so."
    return "Export it again, or copy it again and compare the sizes."


def _node_lists(graph: Any, functions: Iterable[Any] = ()) -> Iterator[Iterable[Any]]:
    """The nodes of a graph, of the model's functions, and of every graph inside their attributes."""
    for nodes in (graph.node, *(function.node for function in functions)):
        yield nodes
        for node in nodes:
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    if inner.node:
                        yield from _node_lists(inner)


def precision_of(model: Any) -> str:
    """Return "int8" for a graph with Q/DQ nodes, "fp16" for one with half-precision weights or casts, else "fp32"."""
    import onnx  # late: importing this module must stay light

    half = onnx.TensorProto.FLOAT16
    casts_to_half = False
    for node in (node for nodes in _node_lists(model.graph, model.functions) for node in nodes):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return "int8"
        if node.op_type == "Cast":
            casts_to_half |= any(each.name == "to" and each.i == half for each in node.attribute)
    return "fp16" if casts_to_half or any(tensor.data_type == half for tensor in all_tensors(model)) else "fp32"
