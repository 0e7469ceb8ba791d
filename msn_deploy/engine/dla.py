"""What of a network runs on the DLA, what falls back to the GPU, and why?

The builder decides (`can_run_on_DLA`); why it decides so follows from the limits that NVIDIA documents for DLA layers
(TensorRT documentation, "DLA Supported Layers and Restrictions"), which are looked up here node by node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from msn_deploy.core.errors import GateError, InputError, MissingDevice
from msn_deploy.engine.backends import Backend
from msn_deploy.engine.tensors import Range
from msn_deploy.machine.jetpacks import numbers_of
from msn_deploy.model.opened import OpenModel

_MOST_BATCH, _MOST_SIZE = 4096, 8192
_FREE = {"Constant", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear"}  # no layer of its own on either side
_ALWAYS = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu"}
_ALWAYS |= {"BatchNormalization"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DlaLayer:
    """One layer: its ONNX operator, multiply-accumulates, and why it falls back to the GPU ("": it runs on DLA)."""

    name: str
    kind: str
    macs: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DlaPlan:
    """Where each layer runs. fallback_percent: of the multiply-accumulates, on the GPU. transitions: changes of device.

    Every change costs a copy and a reformat; they are counted in the order of the graph.
    """

    core: int
    layers: tuple[DlaLayer, ...]
    fallback_percent: float
    transitions: int


def plan_of(core: int, layers: Sequence[DlaLayer]) -> DlaPlan:
    """Sum up a table of layers, in the order of the graph."""
    total = sum(row.macs for row in layers)
    on_gpu = [bool(row.reason) for row in layers]
    fallen = sum(row.macs for row in layers if row.reason)
    return DlaPlan(
        core=core,
        layers=tuple(layers),
        fallback_percent=100.0 * fallen / total if total else 0.0,
        transitions=sum(one != other for one, other in pairwise(on_gpu)),
    )


def check_fallback(plan: DlaPlan, most_percent: float | None) -> None:
    """Raise GateError if a larger share of the multiply-accumulates falls back than is allowed."""
    if most_percent is None or plan.fallback_percent <= most_percent:
        return
    worst = max((row for row in plan.layers if row.reason), key=lambda row: row.macs)
    raise GateError(
        f"{plan.fallback_percent:.1f} % of the multiply-accumulates fall back from DLA to the GPU, at most "
        f"{most_percent:g} % are allowed ({plan.transitions} changes of device).\n"
        f"The largest is {worst.name} ({worst.kind}): {worst.reason}.\n"
        "Change that layer, allow more with `--max-dla-fallback`, or leave `--dla` away."
    )


def has_dla(version: str) -> bool:
    """Whether a release of TensorRT for Jetson has DLA: 8 to 10.7 do, and 11.4.1 and later, on AGX Orin.

    Source: TensorRT documentation 11.4.1, "Working with DLA"; 11.4.0 has it on Windows on ARM alone.
    """
    return numbers_of(version) < (10, 8) or numbers_of(version) >= (11, 4, 1)


def check_quantised(backend: Backend, precision: str) -> None:
    """Raise InputError for a Q/DQ network on the DLA of a TensorRT that takes none there (through 10.7)."""
    if precision == "int8" and numbers_of(backend.version) < (10, 8):
        raise no_quantised_dla(f"{backend.title} runs none")


def no_quantised_dla(which: str) -> InputError:
    """Return the error for INT8 on DLA; which: "TensorRT 10.3.0 runs none"."""
    return InputError(
        f"INT8 is a network with Q/DQ nodes, and {which} on DLA: through 10.7 it takes ranges from a calibration "
        "table there.\nTake `--precision fp16`; or calibrate, and give trtexec the FP32 file and the table: "
        "--int8 --fp16 --calib=TABLE.cache --useDLACore=0 --allowGPUFallback"
    )


def use_dla(trt: Any, backend: Backend, builder: Any, config: Any, core: int) -> None:
    """Build for a DLA core, with the GPU for what it can't do. Raises MissingDevice if there is no such core."""
    if builder.num_DLA_cores <= core:
        raise MissingDevice(
            f"{backend.title} finds {builder.num_DLA_cores} DLA cores here; core {core} was asked for.\n"
            "TensorRT 10.8 to 11.4.0 and TensorRT-RTX have no DLA; Orin Nano and Thor have none at all.\n"
            "Leave `--dla` away, or build with the TensorRT of JetPack 5 or 6."
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def ask_builder(
    model: OpenModel, network: Any, config: Any, *, core: int, precision: str, ranges: Mapping[str, Range]
) -> DlaPlan:
    """Ask the builder about every layer of a parsed network, and give each "no" its reason.

    The parser names a layer after its node; layers that it adds of its own have no multiply-accumulates.
    """
    known = {row.name: row for row in documented(model, precision=precision, ranges=ranges)}
    found = []
    for at in range(network.num_layers):
        layer = network.get_layer(at)
        kind = layer.type.name
        if kind in ("CONSTANT", "QUANTIZE", "DEQUANTIZE", "CAST", "IDENTITY"):
            continue
        row = known.get(layer.name) or DlaLayer(name=layer.name, kind=kind, macs=0)
        runs = config.can_run_on_DLA(layer)
        found.append(replace(row, reason="" if runs else row.reason or "the builder keeps it on the GPU"))
    return plan_of(core, found)


def documented(model: OpenModel, *, precision: str, ranges: Mapping[str, Range]) -> list[DlaLayer]:
    """Judge every node by the documented limits alone; no TensorRT needed. ranges: of inputs with open sizes."""
    from onnx.helper import get_attribute_value  # late, as is the next: importing engine/ must stay light

    from msn_deploy.model.cost import macs_of
    from msn_deploy.model.graphs import sized

    graph = sized(model.proto, batch=1, shapes={name: most for name, (_, _, most) in ranges.items()})
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    rows = []
    for node in graph.node:
        if node.op_type in _FREE:
            continue
        attributes = {each.name: get_attribute_value(each) for each in node.attribute}
        ins = [shapes.get(name, ()) for name in node.input]
        outs = [shapes.get(name, ()) for name in node.output]
        rows.append(
            DlaLayer(
                name=node.name or f"node_of_{node.output[0]}",  # what the parser calls it
                kind=node.op_type,
                macs=macs_of(node, ins, outs[0]),
                reason=_reason(node.op_type, attributes, ins, outs, precision),
            )
        )
    return rows


Shapes = list[tuple[int, ...]]


def _reason(kind: str, attributes: dict[str, Any], ins: Shapes, outs: Shapes, precision: str) -> str:
    """Return the documented limit that a node breaks, "" if none."""
    if precision == "fp32":
        return "DLA computes in FP16 and INT8 only"
    shapes = [shape for shape in (*ins[:1], *outs) if shape]
    if any(shape[0] > _MOST_BATCH for shape in shapes):
        return f"batch beyond {_MOST_BATCH}"
    if any(size > _MOST_SIZE for shape in shapes for size in shape[1:]):
        return f"a size beyond {_MOST_SIZE}"
    if kind in ("Conv", "ConvTranspose"):
        return _convolution(kind, attributes, ins)
    if kind in ("MaxPool", "AveragePool"):
        window, stride = max(attributes["kernel_shape"]), max(attributes.get("strides", [1]))
        if window > 8 or stride > 16:
            return f"window {window}, stride {stride}; at most 8 and 16"
        return ""
    if kind in ("GlobalAveragePool", "GlobalMaxPool"):
        window = max(ins[0][2:], default=0)
        return f"window {window}; at most 8" if window > 8 else ""
    if kind == "Concat":
        return "" if attributes.get("axis", 1) == 1 else "concatenation along another axis than channels"
    return "" if kind in _ALWAYS else f"{kind} is none of its layers"


def _convolution(kind: str, attributes: dict[str, Any], ins: Shapes) -> str:
    if len(ins[0]) != 4:
        return "no 2-D convolution"
    kernel, stride = max(ins[1][2:]), max(attributes.get("strides", [1]))
    if kernel > 32 or stride > 8:
        return f"kernel {kernel}, stride {stride}; at most 32 and 8"
    if kind == "ConvTranspose":
        if any(attributes.get("pads", [0])):
            return "transposed convolution with padding"
        if attributes.get("group", 1) > 1 or max(attributes.get("dilations", [1])) > 1:
            return "transposed convolution with groups or dilation"
    return ""
