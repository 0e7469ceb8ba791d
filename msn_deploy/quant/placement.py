"""Where does INT8 or FP8 go: which inputs are read through a Q/DQ pair, and which tensors have one scale?

The rules are those by which TensorRT fuses (its documentation, "Working with quantized types"; NVIDIA's
Model-Optimizer places pairs alike):

- the input and the weight of every convolution and matrix product; never its bias, never its output;
- of a residual Add one side, the shortcut: the other comes from a convolution, into which the Add is fused;
- what a Concat or a MaxPool reads, with the scale of what it gives, so that it moves bytes and rounds nothing. Rounding
  twice with one scale changes no value, so this is free; but only where all that read its output read INT8.

FP8 has fewer kernels (asked of TensorRT-RTX 1.7.1, for SM89 and SM120): none moves it, so nothing is said of what a
Concat or a MaxPool reads, and `without_fp8` tells the layers that have none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Quantised, Runtime
from msn_deploy.model.graphs import constants_of

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TRANSPARENT = ("Concat", "MaxPool")
_MOST_TAPS = 32  # of a convolution in FP8: 4x8 has a kernel, 3x11 and 6x6 have none

Read = tuple[str, int]
"""One input of one node: the node's first output, which no other node has, and the input's index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the pairs go in one graph.

    layers: names of the nodes whose weights are quantised, in graph order. reads: the inputs that get a pair. scale_of:
    for each tensor with a pair, the name of the group that has one scale. made: those of them that are quantised where
    they are made, so that whoever reads them reads INT8; for TensorRT none.
    """

    layers: tuple[str, ...]
    reads: frozenset[Read]
    scale_of: Mapping[str, str]
    made: frozenset[str] = frozenset()

    @property
    def tensors(self) -> tuple[str, ...]:
        """The activations whose range has to be known, in name order."""
        return tuple(sorted(self.scale_of))

    def shared(self, ranges: Mapping[str, float]) -> dict[str, float]:
        """Give all tensors of a group the largest range among them. Raises InputError that names a missing one."""
        missing = [name for name in self.tensors if name not in ranges]
        if missing:
            raise InputError(f"the range of {missing[0]} is missing: the graph could not be quantised.")
        largest: dict[str, float] = {}
        for name, group in self.scale_of.items():
            largest[group] = max(largest.get(group, ranges[name]), ranges[name])
        return {name: largest[self.scale_of[name]] for name in self.tensors}


def name_of(node: NodeProto) -> str:
    """Return what a node is called in reports: its name, or what it makes."""
    return node.name or node.output[0]


def place(model: ModelProto, *, leave_out: Collection[str] = (), precision: Quantised = "int8") -> Placement:
    """Decide where the pairs go; leave_out: names of layers that stay float. Raises InputError for an unknown one."""
    graph = model.graph
    constants = constants_of(graph)
    floats = {
        name for name, tensor in constants.items() if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    }
    weighted = {
        node.output[0]: name_of(node)
        for node in graph.node
        if node.op_type in WEIGHTED and node.input[1] in floats and node.input[0] not in constants
    }
    check_leave_out(leave_out, weighted.values())
    floating = {*leave_out, *(without_fp8(model) if precision == "fp8" else ())}
    quantised = {output for output, name in weighted.items() if name not in floating}
    reads: set[Read] = {(output, 0) for output in quantised}
    reads |= _shortcuts(graph.node, weighted, quantised, constants)
    readers = _readers(graph.node)
    kept = {value.name for value in graph.output}
    scale_of = Groups()
    for node in reversed(graph.node) if precision == "int8" else ():  # what reads a tensor stands behind what makes it
        made = node.output[0]
        if (
            node.op_type not in _TRANSPARENT
            or made in kept
            or any(name in constants for name in node.input)
            or len(node.output) > 1
        ):
            continue
        if readers.get(made) and readers[made] <= reads:
            for index, name in enumerate(node.input):
                reads.add((made, index))
                scale_of.join(name, made)
    tensors = {
        node.input[index] for node in graph.node for index in range(len(node.input)) if _read(node, index) in reads
    }
    return Placement(
        layers=tuple(name for output, name in weighted.items() if output in quantised),
        reads=frozenset(reads),
        scale_of={name: scale_of.find(name) for name in tensors},
    )


def without_fp8(model: ModelProto) -> dict[str, str]:
    """Return the convolutions that TensorRT has no FP8 kernel for, by name, each with the reason."""
    found: dict[str, str] = {}
    constants = constants_of(model.graph)
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type in ("Conv", "ConvTranspose") else None
        if weight is None:
            continue
        taps = math.prod(weight.dims[2:])
        if node.op_type == "ConvTranspose":
            found[name_of(node)] = "TensorRT has no FP8 kernel for a ConvTranspose"
        elif taps > _MOST_TAPS:
            found[name_of(node)] = f"its kernel has {taps} taps, and FP8 kernels of TensorRT have {_MOST_TAPS} at most"
    return found


def check_leave_out(leave_out: Collection[str], layers: Collection[str]) -> None:
    """Raise InputError for a layer to leave out that is not there."""
    unknown = sorted(set(leave_out) - set(layers))
    if unknown:
        raise InputError(
            f"there is no layer {unknown[0]!r} to leave out.\nThe layers are {', '.join(list(layers)[:8])}"
            f"{', ...' if len(layers) > 8 else ''}."
        )


def require_layers(
    placement: Placement, *, runtime: Runtime, left_out: bool, without: Mapping[str, str] | None = None
) -> None:
    """Raise InputError for a graph in which nothing is quantised.

    runtime: what it was placed for. left_out: whether layers stay float by choice. without: see `without_fp8`, of a
    graph that is to be FP8.
    """
    if placement.layers:
        return
    for name, why in (without or {}).items():
        raise InputError(f"no layer can be in FP8. {name}: {why}.\nTake `--precision int8`.")
    kernels = " that ONNX Runtime has an INT8 kernel for on a CPU" if runtime == "onnxruntime" else ""
    raise InputError(
        f"the graph holds no {', '.join(WEIGHTED)} with constant weights{kernels}{' that is not left out' * left_out}: "
        "nothing to quantise."
    )


def _shortcuts(
    nodes: Iterable[NodeProto], weighted: Collection[str], quantised: Collection[str], constants: Collection[str]
) -> set[Read]:
    """Return, for every residual Add, the input that is not the convolution which the Add is fused into.

    Where both sides come from one, the deeper is the main branch. An Add of a layer that stays float stays float.
    """
    depth: dict[str, int] = {}
    readers = _readers(nodes)
    found: set[Read] = set()
    for node in nodes:
        depth |= dict.fromkeys(node.output, 1 + max((depth.get(name, 0) for name in node.input), default=0))
        if node.op_type != "Add" or any(name in constants for name in node.input):
            continue
        fusible = [index for index in (0, 1) if node.input[index] in weighted and len(readers[node.input[index]]) == 1]
        if not fusible:
            continue
        main = max(fusible, key=lambda index: depth[node.input[index]])
        if node.input[main] in quantised:
            found.add(_read(node, 1 - main))
    return found


def _readers(nodes: Iterable[NodeProto]) -> dict[str, set[Read]]:
    readers: dict[str, set[Read]] = {}
    for node in nodes:
        for index, name in enumerate(node.input):
            readers.setdefault(name, set()).add(_read(node, index))
    return readers


def _read(node: NodeProto, index: int) -> Read:
    return node.output[0], index


class Groups:
    """Tensors that have one scale: a forest, each tree a group."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def find(self, name: str) -> str:
        while name in self._above:
            name = self._above[name]
        return name

    def join(self, one: str, other: str) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        if first != second:
            self._above[second] = first
