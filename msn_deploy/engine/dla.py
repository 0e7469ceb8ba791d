"""What of a network runs on the DLA, what falls back to the GPU, and why?

The builder decides (`can_run_on_DLA`); why it decides so follows from the limits that NVIDIA documents for DLA layers,
the table of `dla_rules`, which is looked up here node by node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from msn_deploy.core.errors import GateError, InputError, MissingDevice
from msn_deploy.engine.backends import Backend
from msn_deploy.engine.dla_rules import Node, reason
from msn_deploy.engine.tensors import Range
from msn_deploy.machine.jetpacks import numbers_of
from msn_deploy.model.opened import OpenModel

NO_DLA = ("10.8.0", "11.4.1")
"""From the first of these releases on TensorRT for Jetson has no DLA, from the second on it has one; see `has_dla`."""
_FREE = {"Constant", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear"}  # no layer of its own on either side
_FEW = 64  # numbers in a constant that decides something, such as scales


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


@dataclass(frozen=True, slots=True)
class DlaSite:
    """Whose limits count. version: 1 of Xavier, 2 of Orin. tensorrt: the release that builds, such as "10.3.0"."""

    version: int
    tensorrt: str


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
        "Change that layer, allow more with `--max-dla-fallback`, or leave out `--dla`."
    )


def has_dla(version: str) -> bool:
    """Whether a release of TensorRT for Jetson has DLA: 8 to 10.7 do, and 11.4.1 and later, on AGX Orin.

    Source: TensorRT documentation 11.4.1, "Working with DLA"; 11.4.0 has it on Windows on ARM alone.
    """
    gone, back = map(numbers_of, NO_DLA)
    return not gone <= numbers_of(version) < back


def takes_table(version: str) -> bool:
    """Whether INT8 on a DLA takes its scales from a calibration table there, and no Q/DQ nodes: 8 to 10.7.

    Source: NVIDIA/Deep-Learning-Accelerator-SW, tools/qdq-translator.
    """
    return numbers_of(version) < (10, 8)


def check_int8(model: OpenModel, version: str, core: int, *, table: bool) -> None:
    """Raise InputError for a Q/DQ network on a DLA that takes a table, and for a table where it takes Q/DQ nodes."""
    if takes_table(version) and model.precision == "int8":
        raise no_quantised_dla(model, f"the DLA of TensorRT {version} does", core)
    if table and not takes_table(version):
        raise InputError(
            f"the DLA of TensorRT {version} takes no calibration table; it takes Q/DQ nodes.\n"
            "Give the INT8 file that `msn-deploy calibrate` wrote with the table, without `--calibration-table`."
        )


def no_quantised_dla(model: OpenModel, which: str, core: int) -> InputError:
    """Return the error for Q/DQ nodes on a DLA; which: "the DLA of TensorRT 10.3.0 does"."""
    return InputError(
        f"{model.path} has Q/DQ nodes, and {which} not take them: up to 10.7 it takes the FP32 file and a calibration "
        "table.\nGive the FP32 file that it was made from, which makes the table on the way: "
        f"`msn-deploy build-engine NAME.onnx --precision int8 --dla {core}`"
    )


def no_dla(title: str, cores: int, core: int) -> MissingDevice:
    """Return the error for a DLA core that is not there."""
    return MissingDevice(
        f"{title} finds {cores} DLA cores here; core {core} was asked for.\n"
        "TensorRT 10.8 to 11.4.0 and TensorRT-RTX have no DLA; Orin Nano and Thor have none at all.\n"
        "Leave out `--dla`, or build with the TensorRT of JetPack 5 or 6."
    )


def use_dla(trt: Any, backend: Backend, builder: Any, config: Any, core: int) -> None:
    """Build for a DLA core, with the GPU for what it can't do. Raises MissingDevice if there is no such core."""
    if builder.num_DLA_cores <= core:
        raise no_dla(backend.title, builder.num_DLA_cores, core)
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def ask_builder(
    model: OpenModel,
    network: Any,
    config: Any,
    *,
    core: int,
    precision: str,
    ranges: Mapping[str, Range],
    site: DlaSite,
) -> DlaPlan:
    """Ask the builder about every layer of a parsed network, and give each "no" its reason.

    The parser names a layer after its node; layers that it adds of its own have no multiply-accumulates.
    """
    known = {row.name: row for row in documented(model, precision=precision, ranges=ranges, site=site)}
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


def documented(model: OpenModel, *, precision: str, ranges: Mapping[str, Range], site: DlaSite) -> list[DlaLayer]:
    """Judge every node by the documented limits alone; no TensorRT needed. ranges: of inputs with open sizes."""
    from onnx.numpy_helper import to_array  # late, as are the next: importing engine/ must stay light

    from msn_deploy.model.cost import macs_of
    from msn_deploy.model.graphs import attributes_of, constants_of, sized

    graph = sized(model.proto, batch=1, shapes={name: most for name, (_, _, most) in ranges.items()})
    constants = constants_of(graph)
    values = {name: to_array(each) for name, each in constants.items() if math.prod(each.dims) <= _FEW}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    fixed = {"", *constants}
    rows = []
    for node in graph.node:
        if node.op_type in _FREE:
            fixed |= set(node.output) if fixed.issuperset(node.input) else set()
            continue
        ins = [shapes.get(name, ()) for name in node.input]
        outs = [shapes.get(name, ()) for name in node.output]
        facts = Node(
            kind=node.op_type,
            attributes=attributes_of(node),
            ins=ins,
            outs=outs,
            values=[values.get(name) for name in node.input],
            fixed=[name in fixed for name in node.input],
            precision=precision,
            dla=site.version,
            tensorrt=numbers_of(site.tensorrt),
        )
        rows.append(
            DlaLayer(
                name=node.name or f"node_of_{node.output[0]}",  # what the parser calls it
                kind=node.op_type,
                macs=macs_of(node, ins, outs[0]),
                reason=reason(facts),
            )
        )
    return rows
