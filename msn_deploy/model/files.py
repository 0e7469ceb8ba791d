"""ONNX files in and out: read whole and checked, written with the model's metadata, never with external data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
from onnx import ModelProto

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, info_from_json
from msn_deploy.model.external import Merged, read_merged
from msn_deploy.model.identity import structural_hash
from msn_deploy.model.onnx_file import read_onnx

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # ONNX's own, and what ONNX Runtime adds


def read_graph(path: Path) -> ModelProto:
    """Read and check an ONNX file whose weights are all inside it. Raises InputError that says what is wrong."""
    model = onnx.load_model_from_string(read_onnx(path, step="export").data)
    _check_plain(model, source=str(path))
    check(model, source=str(path))
    return model


def read_foreign(path: Path) -> Merged:
    """Read and check an ONNX file as read_graph does, and merge the weights that it keeps in files beside it."""
    merged = read_merged(path)
    _check_plain(merged.model, source=str(path))
    check(merged.model, source=str(path))
    return merged


def _check_plain(model: ModelProto, *, source: str) -> None:
    """Refuse what a graph of ONNX's own operators does not have: functions, operators of others, graphs inside."""
    if model.functions:
        names = sorted({function.name for function in model.functions})
        raise InputError(
            f"{source} has {len(model.functions)} functions of its own ({_some(names)}).\n"
            'Put them in first: python -c "import onnx, onnx.inliner as i; '
            f"onnx.save(i.inline_local_functions(onnx.load('{source}')), 'plain.onnx')\""
        )
    foreign = sorted({f"{node.domain}:{node.op_type}" for node in model.graph.node if node.domain not in _DOMAINS})
    if foreign:
        raise InputError(
            f"{source} has operators that are not ONNX's: {_some(foreign)}.\n"
            "Export the network without that extension, from operators of ONNX alone."
        )
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise InputError(
                f"{source}: {node.op_type} {node.name!r} holds a graph inside the graph; networks without branches "
                "are supported.\nExport the network again, with fixed sizes and in evaluation mode."
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check(model: ModelProto, *, source: str) -> None:
    """Run the ONNX checker with shape inference; InputError with its first line if it objects."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as cause:
        first = next((line for line in str(cause).splitlines() if line.strip()), "no reason given")
        raise InputError(f"{source} is not valid ONNX: {first.strip()[:200]}") from cause


def info_of(model: ModelProto, *, source: str) -> ModelInfo | None:
    """Return what the file says of itself, or None for a file that msn-deploy did not write."""
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    return None if text is None else info_from_json(text, source=source)


def with_info(model: ModelProto, info: ModelInfo) -> bytes:
    """Serialise a graph with the info, and the hash of this very graph, as its only metadata.

    Equal graphs and infos give equal bytes.
    """
    info = replace(info, graph=structural_hash(model))
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: info.to_json()})
    return bytes(model.SerializeToString(deterministic=True))


def input_of(model: ModelProto, *, source: str) -> tuple[str, tuple[int | None, ...]]:
    """Return name and shape (None = dynamic) of the only input. Raises InputError if there are several."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise InputError(f"{source} has {len(inputs)} inputs; networks with one image input are supported.")
    dims = inputs[0].type.tensor_type.shape.dim
    return inputs[0].name, tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
