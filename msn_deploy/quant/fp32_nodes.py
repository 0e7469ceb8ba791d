"""Which nodes does half precision not suffice for, and why? By the standard, by their constants, by their values.

- The standard: an operator whose schema, at the file's opset, has no FP16 for any of the floats that it reads or makes.
- Constants: one beyond 65504, and one so small that FP16 makes 0 of it, or keeps less than half of its digits. Such an
  epsilon guards a division, so all that computes with it stays in FP32 as well: the sum or norm that it is added to,
  and what follows as far as the division.
- Values: a tensor that comes near 65504 on real inputs, and a sum inside an operator (of a mean, of squares) that does.
- Positions: what makes the boxes that NonMaxSuppression reads, and what reads them: FP16 counts pixels in halves from
  512 on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.model.graphs import activations, all_nodes, constants_of, drop_unread_constants, inner_graphs
from msn_deploy.quant.histograms import Load
from msn_deploy.quant.placement import WEIGHTED, name_of

FP16_MAX = 65504.0
_HALF = "tensor(float16)"
_HEADROOM = 2.0  # inputs that were not looked at may reach higher
_LEAST = 2.0**-19  # FP16 counts in steps of 2^-24 here: below, fewer than half of its 11 bits are left
# FP16 scales are read by TensorRT 10 and later only; QAT files keep theirs in FP32 as well.
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_SIZED = ("Resize",)  # its region, which has a type of its own, is coordinates as its scales are
_MEANS = ("GlobalAveragePool", "AveragePool", "ReduceMean")
_SQUARES = ("InstanceNormalization", "LRN", "LpNormalization", "ReduceSumSquare")  # they square what they read
_ROOTS = ("ReduceL2",)  # what they make is the root of the sum inside
# What stands between an epsilon and the sum that it is added to, or the division that it guards.
_MOVES = ("Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_BEFORE = (*_MOVES, "Abs", "Pow", "Sqrt", "GlobalAveragePool", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum",
           "ReduceSumSquare")  # fmt: skip
_AFTER = (*_MOVES, "Neg", "Pow", "Reciprocal", "Sqrt")
_DIVISIONS = ("Div", "Mul")
_PLACES = (*_MOVES, "Add", "Concat", "Div", "Gather", "GatherElements", "Mul", "Slice", "Split", "Sub")
_RANDOM = ("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
           "RandomUniformLike")  # fmt: skip
_MOST_GROWTH = 1 << 22  # numbers (16 MiB of float32) that a graph may gain, beside as many as it has
_DIVISOR = {"Div": 1, "Reciprocal": 0}  # which input another number is divided by


def needs_fp32(
    model: ModelProto, maxima: Mapping[str, float], minima: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Return the nodes that half precision is not enough for, by name, each with the reason.

    maxima: the largest magnitude of the `activations` on real inputs; of tensors that are not in it nothing is known.
    minima: the smallest magnitude above 0 of the `divisors`. Nodes that compute with no float, and those that say
    themselves what type they make (a Cast), are not listed.
    """
    return _Judge(model, maxima, minima or {}).run()


def divisors(model: ModelProto) -> list[str]:
    """Return the float tensors that depend on an input and that something is divided by, in graph order."""
    read = {node.input[at] for node in model.graph.node if (at := _DIVISOR.get(node.op_type)) is not None}
    return [name for name in activations(model) if name in read]


@dataclass(frozen=True, slots=True)
class _Operator:
    """What the standard says of an operator's types: of each parameter, whether FP16 is among them."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]
    says_its_types: bool
    stashes: bool
    """Whether it computes its inside in the type that `stash_type` names: FP32 unless told otherwise."""


class Standard:
    """What the standard says of the types in one model, and who reads what there."""

    def __init__(self, model: ModelProto) -> None:
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        self._known: dict[tuple[str, str], _Operator | None] = {}
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self._values = {each.name: each.type for each in (*inferred.input, *inferred.value_info, *inferred.output)}
        self.constants = constants_of(model.graph)
        self.floats = {
            *(name for name, kind in self._values.items() if kind.tensor_type.elem_type == TensorProto.FLOAT),
            *(name for name, tensor in self.constants.items() if tensor.data_type == TensorProto.FLOAT),
        }
        """The float32 tensors of the graph: constants, what is computed from them, and activations."""
        self.readers: dict[str, list[NodeProto]] = {}
        """Of each tensor, those in graphs inside nodes too; an output of the graph is read by a node "Output"."""
        ends = (onnx.helper.make_node("Output", [value.name], []) for value in model.graph.output)
        for node in (*all_nodes(model.graph), *ends):
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def shape(self, name: str) -> list[int]:
        """Return the sizes of a tensor, 1 for one that is open; of what is not known, none."""
        return [dim.dim_value or 1 for dim in self._values[name].tensor_type.shape.dim] if name in self._values else []

    def halves(self, node: NodeProto) -> tuple[frozenset[int], frozenset[int]]:
        """Return which inputs and which outputs of a node may be FP16 where they are float32 now, by index."""
        found = self.operator(node)
        if found is None or found.says_its_types or self.refusal(node):
            return frozenset(), frozenset()
        return self._may(found.inputs, node.input), self._may(found.outputs, node.output)

    def refusal(self, node: NodeProto) -> str:
        """Say why a node that reads or makes floats is never FP16; empty if it may be."""
        if next(inner_graphs(node), None) is not None:
            return "it holds a graph of its own"
        found = self.operator(node)
        if found is None:
            return f"{node.op_type} is not an operator of the standard"
        if any(name in self._values and not self._values[name].HasField("tensor_type") for name in names_in(node)):
            return "it works on sequences of tensors"
        unknown = [name for name in names_in(node) if name and name not in self._values and name not in self.constants]
        if unknown:
            return f"the type of {unknown[0]} is not known"
        if self._may(found.inputs, node.input) or self._may(found.outputs, node.output):
            return ""
        return f"{node.op_type} has no FP16 in opset {self._opsets.get(node.domain)}"

    def operator(self, node: NodeProto) -> _Operator | None:
        """Return what is said of a node's operator at the opset of the model; None: nothing."""
        key = node.domain, node.op_type
        if key not in self._known:
            self._known[key] = self._looked_up(node)
        return self._known[key]

    def _looked_up(self, node: NodeProto) -> _Operator | None:
        try:
            schema: Any = onnx.defs.get_schema(node.op_type, self._opsets.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:
            return None
        halves = {each.type_param_str for each in schema.type_constraints if _HALF in each.allowed_type_strs}
        bound = {each.type_str for each in schema.inputs}
        return _Operator(
            inputs=tuple(
                each.type_str in halves and (at == 0 or node.op_type not in _SIZED)
                for at, each in enumerate(schema.inputs)
            ),
            outputs=tuple(each.type_str in halves for each in schema.outputs),
            says_its_types=node.op_type in _QDQ
            or any(each.type_str in halves and each.type_str not in bound for each in schema.outputs),
            stashes="stash_type" in schema.attributes,
        )

    def _may(self, allowed: Sequence[bool], names: Sequence[str]) -> frozenset[int]:
        """Return the places of float32 tensors where FP16 is allowed; the last parameter may stand for several."""
        return frozenset(
            at for at, name in enumerate(names) if name in self.floats and allowed[min(at, len(allowed) - 1)]
        )

    def saturates(self, node: NodeProto, at: int, values: NDArray[np.float32]) -> bool:
        """Whether the end of FP16 may stand for a constant beyond it, input `at` of a node, and no result changes.

        So it is of a bound that no FP16 value reaches, and of the -3.4e38 by which attention is masked: a Softmax
        makes an exact 0 of both, as long as no row is masked as a whole.
        """
        low, high = bool((values < -FP16_MAX).any()), bool((values > FP16_MAX).any())
        if node.op_type in ("Clip", "Min", "Max") and (at or node.op_type != "Clip"):
            is_lower = at == 1 if node.op_type == "Clip" else node.op_type == "Max"
            return not (high if is_lower else low)
        following = self.readers.get(node.output[0], ())
        if high or not following or any(each.op_type != "Softmax" for each in following):
            return False
        if node.op_type == "Where":  # all that is masked is the same: a row of nothing else is uniform in both
            return at in (1, 2)
        if node.op_type != "Add" or not values.ndim or values.shape[-1] == 1:
            return False
        last = all(self._axis(each) in (-1, len(self.shape(node.output[0])) - 1) for each in following)
        return last and bool((values > -FP16_MAX / _HEADROOM).any(axis=-1).all())

    def _axis(self, softmax: NodeProto) -> int:
        default = -1 if self._opsets.get("", 0) >= 13 else 1
        return next((each.i for each in softmax.attribute if each.name == "axis"), default)


class _Judge:
    def __init__(self, model: ModelProto, maxima: Mapping[str, float], minima: Mapping[str, float]) -> None:
        self.model, self.standard, self.minima = model, Standard(model), minima
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.constants = {
            name: numpy_helper.to_array(tensor)
            for name, tensor in self.standard.constants.items()
            if tensor.data_type == TensorProto.FLOAT
        }
        masked = {node.output[0] for node in model.graph.node for _ in self._beyond(node, saturated=True)}
        self.maxima = {name: size for name, size in maxima.items() if name not in masked}

    def run(self) -> dict[str, str]:
        found: dict[str, str] = {}
        small: list[NodeProto] = []
        large: list[NodeProto] = []
        for node in self.model.graph.node:
            touches = any(name in self.standard.floats for name in names_in(node))
            operator = self.standard.operator(node)
            if not touches or (operator is not None and operator.says_its_types):
                continue
            why = self.standard.refusal(node)
            if not why:
                why = self._too_small(node)
                if why and node.op_type not in WEIGHTED:
                    small.append(node)
            why = why or self._too_large(node)
            if why:
                found[name_of(node)] = why
                large += [node] if node.op_type not in WEIGHTED and any(self._beyond(node, saturated=False)) else []
        for node in small:
            for other in self._around(node):
                found.setdefault(name_of(other), f"it computes with the small numbers of {name_of(node)}")
        for node in large:
            made = [name for name in node.output if name in self.standard.floats and name not in self.maxima]
            for other in (each for name in made for each in self.standard.readers.get(name, ())):
                if any(self.standard.halves(other)):
                    found.setdefault(name_of(other), f"it reads what {name_of(node)} makes, of unknown size")
        for node in self._placing():
            found.setdefault(name_of(node), "it computes where boxes are, in pixels")
        return {name_of(node): found[name_of(node)] for node in self.model.graph.node if name_of(node) in found}

    def _placing(self) -> Iterator[NodeProto]:
        """Yield the nodes around the boxes of NonMaxSuppression that only compute and move positions."""
        for suppression in self.model.graph.node:
            if suppression.op_type == "NonMaxSuppression":
                boxes = suppression.input[0]
                makers = {name: [node] for name, node in self.makers.items()}
                yield from self._along(boxes, makers, 0)
                yield from self._along(boxes, self.standard.readers, 1)

    def _along(self, name: str, step: Mapping[str, Sequence[NodeProto]], end: Literal[0, 1]) -> Iterator[NodeProto]:
        """Yield what moves and computes positions, from a tensor on; end: 0 against the graph's order, 1 with it."""
        waiting, seen = list(step.get(name, ())), set[str]()
        while waiting:
            node = waiting.pop()
            if node.op_type in _PLACES and node.output[0] not in seen and any(self.standard.halves(node)):
                seen.add(node.output[0])
                yield node
                waiting += [each for other in (node.input, node.output)[end] for each in step.get(other, ())]

    def _too_large(self, node: NodeProto) -> str:
        """Say which weight, value or inner sum of a node comes near the end of FP16."""
        beyond = [(size, f"its weight {name}") for name, size in self._beyond(node, saturated=False)]
        values = [(self.maxima[name], name) for name in dict.fromkeys(names_in(node)) if name in self.maxima]
        made = self.maxima.get(node.output[0])
        if node.op_type in _MEANS and made is not None:
            count = self._averaged(node)
            values.append((made * count, f"the sum of {count} values"))
        if node.op_type in _ROOTS and made is not None:
            values.append((made**2, "the sum of squares"))
        if node.op_type in _SQUARES and node.input[0] in self.maxima:
            values.append((self.maxima[node.input[0]] ** 2, "a square inside"))
        beyond += [(size, what) for size, what in values if size * _HEADROOM > FP16_MAX]
        if not beyond:
            return ""
        size, what = max(beyond)
        return f"{what} reaches {size:.4g}"

    def _beyond(self, node: NodeProto, *, saturated: bool) -> Iterator[tuple[str, float]]:
        """Yield the constants of a node beyond FP16, with their size: those that may, or may not, saturate."""
        for at, name in enumerate(node.input):
            values = self.constants.get(name)
            if values is None or not (np.isnan(values).any() or _finite(values).max(initial=0.0) > FP16_MAX):
                continue
            if not np.isnan(values).any() and self.standard.saturates(node, at, values):
                if saturated and node.op_type in ("Add", "Where"):
                    yield name, 0.0
            elif not saturated:
                yield name, float(np.abs(values).max())
        for attribute in node.attribute:
            beyond = attribute.type == attribute.FLOAT and abs(attribute.f) > FP16_MAX
            if beyond and not saturated and node.op_type != "Clip":
                yield attribute.name, abs(attribute.f)

    def _too_small(self, node: NodeProto) -> str:
        """Say which constant of a node FP16 would lose."""
        for at, name in enumerate(node.input):
            sizes = _finite(self.constants.get(name, np.zeros(0)))
            sizes = sizes[sizes > 0]
            if not sizes.size or at not in self.standard.halves(node)[0]:
                continue
            least = float(sizes.min() if node.op_type == "Div" and at == 1 else sizes.max())
            if least < _LEAST:
                return f"FP16 makes {np.float16(least):.3g} of its constant {name}, {least:.3g}"
        divisor = node.input[_DIVISOR[node.op_type]] if node.op_type in _DIVISOR else ""
        if (least := self.minima.get(divisor, np.inf)) < _LEAST:
            return f"FP16 makes {np.float16(least):.3g} of {least:.3g} in {divisor}, by which it divides"
        operator = self.standard.operator(node)
        for attribute in node.attribute if operator is not None and not operator.stashes else ():
            if attribute.type == attribute.FLOAT and 0 < abs(attribute.f) < _LEAST:
                return f"FP16 makes {np.float16(attribute.f):.3g} of its {attribute.name}, {attribute.f:.3g}"
        return ""

    def _around(self, start: NodeProto) -> Iterator[NodeProto]:
        """Yield what a small constant is added to, and what is computed with it up to the division that it guards."""
        seen = {start.output[0]}
        divisor = self.makers.get(start.input[_DIVISOR.get(start.op_type, -1)])
        if divisor is not None and any(self.standard.halves(divisor)):  # FP16 would lose what it makes
            yield divisor
            seen.add(divisor.output[0])
        ahead = [self.makers[name] for each in (start, divisor) if each for name in each.input if name in self.makers]
        while ahead:
            node = ahead.pop()
            is_square = node.op_type == "Mul" and len(set(node.input)) == 1
            if (
                (node.op_type in _BEFORE or is_square)
                and node.output[0] not in seen
                and any(self.standard.halves(node))
            ):
                yield node
                seen.add(node.output[0])
                ahead += [self.makers[name] for name in node.input if name in self.makers]
        ahead = [each for name in start.output for each in self.standard.readers.get(name, ())]
        while ahead:
            node = ahead.pop()
            if node.op_type in (*_AFTER, *_DIVISIONS) and node.output[0] not in seen:
                yield node
                seen.add(node.output[0])
                if node.op_type in _AFTER:
                    ahead += [each for name in node.output for each in self.standard.readers.get(name, ())]

    def _averaged(self, node: NodeProto) -> int:
        """Return how many values a mean is of; 1 where shapes do not tell."""
        if node.op_type == "AveragePool":
            kernel = next((list(each.ints) for each in node.attribute if each.name == "kernel_shape"), [1])
            return int(np.prod(kernel))
        read, made = (float(np.prod(self.standard.shape(name))) for name in (node.input[0], node.output[0]))
        return int(read / max(made, 1)) or 1


def names_in(node: NodeProto) -> list[str]:
    """Return the tensors that a node reads and makes."""
    return [*node.input, *node.output]


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """Return the magnitudes without infinities, which FP16 has as well."""
    sizes: NDArray[Any] = np.abs(values[np.isfinite(values)])
    return sizes


def fold_constants(model: ModelProto, *, load: Load) -> ModelProto:
    """Return the graph with the tensors that depend on no input as constants; the same one where there are none.

    load: what runs a graph, as in `histograms`. What is random, holds a graph of its own or does not run by itself
    stays computed, and all of it where the graph would grow by more than 2^22 numbers and as many as it has.
    """
    made = {value.name for value in model.graph.output}
    constant = set(constants_of(model.graph)) - made
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        computed = node.op_type not in (*_RANDOM, "Constant") and next(inner_graphs(node), None) is None
        if computed and made.isdisjoint(node.output) and all(name in constant or not name for name in node.input):
            constant.update(filter(None, node.output))
            nodes.append(node)
    inside = {id(node) for node in nodes}
    rest = [node for node in model.graph.node if id(node) not in inside]
    read = {name for node in rest for name in node.input}
    read |= {name for node in rest for graph in inner_graphs(node) for each in all_nodes(graph) for name in each.input}
    wanted = [name for node in nodes for name in node.output if name in read]
    if not wanted:
        return model
    part = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = "constants"
    part.graph.initializer.extend(model.graph.initializer)
    part.graph.node.extend([*(node for node in rest if node.op_type == "Constant"), *nodes])
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    drop_unread_constants(part.graph)
    try:
        values = load(part).run({})
    except InputError:
        return model
    has = sum(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)
    if sum(value.size for value in values.values()) > has + _MOST_GROWTH:
        return model
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(rest)
    result.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    drop_unread_constants(result.graph)
    return result
