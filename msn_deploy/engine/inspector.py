"""What did the builder make of the network: which layers, in which precision, in how much memory?

Told by the engine inspector where the engine can be loaded, and by the layer listing in the builder's verbose log where
it cannot (ahead of time, without a GPU). Both name types in the words of their release.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from msn_deploy.core.errors import InputError
from msn_deploy.core.reader import parse_json

# The first that is found decides; "Half" stands in "Datatype: Half" and in "Row major linear FP16 format" as FP16.
_PRECISIONS = {
    "int8": r"int8",
    "fp8": r"fp8|float8",
    "fp4": r"fp4|float4",
    "int4": r"int4",
    "bf16": r"bf16|bfloat16",
    "fp16": r"fp16|half",
    "fp32": r"fp32|float",
    "int32": r"int32",
    "int64": r"int64",
    "bool": r"bool",
}
# TensorRT: "CaskConvolution", "CaskGemm", "CaskDeconvolution", "MatrixMultiply"; RTX: "correlation", "deconv", "gemm".
INSPECTED_BYTES = 64 << 20  # of what an inspector says of an engine
_HEAVY = "correlation|conv|gemm|matmul|matrix_?mul|fully_?connected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of an engine, which may be several of the network.

    kind: in TensorRT's words, such as "CaskConvolution" or "correlation". precision: of what it reads first ("int8",
    "fp16", "fp32", ...), hence of its arithmetic; None if TensorRT does not say.
    """

    name: str
    kind: str
    precision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes, None if TensorRT did not say. device_memory_bytes: what one execution context needs beside the weights."""

    weight_memory_bytes: int | None
    device_memory_bytes: int | None


def layers_from_log(texts: Iterable[str]) -> tuple[Layer, ...]:
    """Read the builder's last layer listing; () if there is none (verbosity not DETAILED)."""
    listings = [text for text in texts if re.search(r"^Layers:$", text, re.M)]
    found = []
    for row in listings[-1].splitlines() if listings else ():
        kind = re.search(r"LayerType: (\w+)", row)
        if kind is None:
            continue
        name = re.search(r"^Name: (.*?), LayerType: ", row)
        reads = re.search(r"Inputs: \[(.*?)\](?=, (?:Constants|Outputs): )", row)
        first = re.search(r"(?:Format/)?Datatype: ([^,}]+)", reads[1]) if reads else None
        what = "Convolution" if re.search(r"ParameterType: Convolution", row) else ""
        found.append(
            Layer(
                name=name[1] if name else "",
                kind=_kind(kind[1], what),
                precision=_precision(first[1]) if first else None,
            )
        )
    return tuple(found)


def layers_from_json(text: str) -> tuple[Layer, ...]:
    """Read what an engine inspector says in JSON; () if it does not record layers.

    Up to TensorRT 10 a tensor has "Format/Datatype", from 11 on "Datatype". A layer is a plain string where the engine
    was built without details.
    """
    try:
        rows = parse_json(text, source="the engine inspector's answer", most_bytes=INSPECTED_BYTES)["Layers"]
        return tuple(_from_row(row) for row in rows)
    except (InputError, KeyError, TypeError, AttributeError):
        return ()


def _from_row(row: Any) -> Layer:
    if isinstance(row, str):
        return Layer(name=row, kind="", precision=None)
    reads = row.get("Inputs") or [{}]
    named = reads[0].get("Datatype") or reads[0].get("Format/Datatype") or ""
    kind = _kind(str(row.get("LayerType", "")), str(row.get("ParameterType", "")))
    return Layer(name=str(row.get("Name", "")), kind=kind, precision=_precision(str(named)))


def _kind(layer_type: str, parameter_type: str) -> str:
    """Tell a convolution where only the parameters do, such as in "CaskGemm"."""
    return "Convolution" if "onvolution" in parameter_type and not re.search("conv", layer_type, re.I) else layer_type


def _precision(text: str) -> str | None:
    return next((name for name, words in _PRECISIONS.items() if re.search(rf"\b(?:{words})\b", text, re.I)), None)


def count_convs(layers: Sequence[Layer], precision: str) -> int:
    """Count the convolutions that read it: "correlation" in TensorRT-RTX, "...Convolution..." in TensorRT."""
    return sum(row.precision == precision and bool(re.search("correlation|conv", row.kind, re.I)) for row in layers)


def heavy(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the convolutions and matrix products."""
    return tuple(row for row in layers if re.search(_HEAVY, row.kind, re.I))


def not_quantised(layers: Sequence[Layer], precision: str) -> tuple[Layer, ...]:
    """Return the convolutions and matrix products of an INT8 or FP8 network whose arithmetic is another."""
    return tuple(row for row in heavy(layers) if row.precision != precision)


def memory_from_log(texts: Sequence[str]) -> Memory:
    """Read the builder's totals. The weights show what INT8 saves; the size of a small plan file does not."""
    return Memory(
        weight_memory_bytes=_last_total(texts, "Weights"), device_memory_bytes=_last_total(texts, "Activation")
    )


def _last_total(texts: Sequence[str], what: str) -> int | None:
    found = [int(match[1]) for text in texts if (match := re.search(rf"Total {what} Memory: (\d+) bytes", text))]
    return found[-1] if found else None


def inspect_plan(trt: Any, logger: Any, plan: Any) -> tuple[tuple[Layer, ...], int | None]:
    """Load a plan that was built here and ask it: (layers, device memory in bytes); ((), None) if it does not load."""
    try:
        runtime = trt.Runtime(logger)
    except TypeError:  # what pybind11 makes of a null one
        return (), None
    if hasattr(runtime, "engine_host_code_allowed"):  # needed by version-compatible plans, which carry code
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return (), None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    memory = getattr(engine, "device_memory_size_v2", None)
    return layers_from_json(text), getattr(engine, "device_memory_size", None) if memory is None else memory
